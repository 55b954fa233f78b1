-- Fleets: who signs, what a fleet is made of, and every fleet that ever was. Behind the gate like tenants and guards
-- (agd.every_guard), and written by agd's own functions alone. Rows with a tenant are recorded in that tenant's log.
--
-- Each row's constraints say what agd_core::fleet says: a name that follows from the cause, a state that agrees with its times.
-- Which state follows on which, the gate checks (src/fleet/mod.rs): a constraint sees one row at one time.

CREATE TABLE agd.signer (
  signer         text COLLATE "C" PRIMARY KEY CHECK (signer ~ '^[A-Za-z0-9]([A-Za-z0-9_.@-]{0,61}[A-Za-z0-9])?$'),
  duty           text COLLATE "C" NOT NULL CHECK (duty IN ('coordinator', 'countersigner')),
  public_key     bytea NOT NULL UNIQUE CHECK (pg_catalog.octet_length(public_key) = 32),   -- one key has one name and one duty
  registered_at  timestamptz NOT NULL,
  revoked_at     timestamptz,
  revoked_reason text,
  CHECK ((revoked_at IS NULL) = (revoked_reason IS NULL))
);
COMMENT ON TABLE agd.signer IS 'who may sign or countersign fleets: Ed25519 public keys, each with one name and one duty';

CREATE TABLE agd.fleet_template (
  template   text COLLATE "C" NOT NULL CHECK (template ~ '^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$'),
  version    int NOT NULL CHECK (version > 0),
  roles      jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(roles) = 'object' AND roles <> '{}'),
  created_at timestamptz NOT NULL,
  PRIMARY KEY (template, version)
);
COMMENT ON TABLE agd.fleet_template IS 'what fleets are instantiated from: roles with their goals and memory scope; a version never changes';

CREATE TABLE agd.tenant_agent_fleet (
  fleet_id             text COLLATE "C" PRIMARY KEY,
  digest               bytea NOT NULL UNIQUE,
  tenant               text COLLATE "C" NOT NULL CHECK (tenant ~ '^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$'),
  template             text COLLATE "C" NOT NULL CHECK (template ~ '^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$'),
  template_version     int  NOT NULL CHECK (template_version > 0),
  cause_snapshot       text NOT NULL,                  -- causeNormalised, by
  unicode_version      text COLLATE "C" NOT NULL,      -- this version of Unicode
  cause_digest         bytea NOT NULL,
  generation           int  NOT NULL CHECK (generation > 0),
  origin               text COLLATE "C" NOT NULL,      -- the platform log's, when the fleet was minted: which database
  agents               int  NOT NULL CHECK (agents > 0),
  context_digest       bytea NOT NULL CHECK (pg_catalog.octet_length(context_digest) = 32),   -- of what they are told
  state                text COLLATE "C" NOT NULL,
  minted_at            timestamptz NOT NULL,
  countersign_deadline timestamptz NOT NULL CHECK (countersign_deadline > minted_at),
  signed_at            timestamptz CHECK (signed_at >= minted_at AND signed_at < countersign_deadline),
  activated_at         timestamptz CHECK (activated_at >= signed_at AND activated_at < countersign_deadline),
  sealed_at            timestamptz CHECK (sealed_at >= activated_at),
  cancelled_at         timestamptz CHECK (cancelled_at >= minted_at AND cancelled_at <= countersign_deadline),
  reason               text CHECK (reason <> ''),
  -- LOCK-FLEET-1.
  CONSTRAINT fleet_cause CHECK (cause_digest = pg_catalog.sha256(pg_catalog.convert_to(cause_snapshot, 'UTF8'))),
  CONSTRAINT fleet_vector CHECK (digest = pg_catalog.sha256(pg_catalog.convert_to(
    'agd-fleet-v1:' || tenant || ':' || template || '@' || template_version || ':' || pg_catalog.encode(cause_digest, 'hex')
      || ':' || generation, 'UTF8'))),
  CONSTRAINT fleet_id_begins_digest CHECK (fleet_id = pg_catalog.encode(pg_catalog.substr(digest, 1, 8), 'hex')),
  CONSTRAINT fleet_lifecycle CHECK (
    CASE state
      WHEN 'pending'   THEN activated_at IS NULL AND sealed_at IS NULL AND cancelled_at IS NULL AND reason IS NULL
      WHEN 'active'    THEN signed_at IS NOT NULL AND activated_at IS NOT NULL AND sealed_at IS NULL AND cancelled_at IS NULL
                            AND reason IS NULL
      WHEN 'sealed'    THEN signed_at IS NOT NULL AND activated_at IS NOT NULL AND sealed_at IS NOT NULL
                            AND cancelled_at IS NULL AND reason IS NOT NULL
      WHEN 'cancelled' THEN activated_at IS NULL AND sealed_at IS NULL AND cancelled_at IS NOT NULL AND reason IS NOT NULL
      ELSE false
    END)
);
-- One fleet of a vector at a time: whoever mints the same meets this index.
CREATE UNIQUE INDEX fleet_live ON agd.tenant_agent_fleet (tenant, template, template_version, cause_digest)
  WHERE state IN ('pending', 'active');
CREATE UNIQUE INDEX fleet_generation ON agd.tenant_agent_fleet (tenant, template, template_version, cause_digest, generation);
CREATE INDEX fleet_pending ON agd.tenant_agent_fleet (countersign_deadline) WHERE state = 'pending';
COMMENT ON TABLE agd.tenant_agent_fleet IS 'every fleet that was ever minted; agd.fleets shows its state now';

CREATE TABLE agd.fleet_agent (
  fleet_id     text COLLATE "C" NOT NULL,
  role         text COLLATE "C" NOT NULL CHECK (role ~ '^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$'),
  tenant       text COLLATE "C" NOT NULL,
  goals        jsonb NOT NULL,
  memory_scope jsonb NOT NULL CHECK (memory_scope @> pg_catalog.jsonb_build_object('tenant', tenant)),
  archived_at  timestamptz,
  PRIMARY KEY (fleet_id, role)
);
COMMENT ON TABLE agd.fleet_agent IS 'the agents of each fleet, with their tenant''s context';

CREATE TABLE agd.countersign_request (
  fleet_id     text COLLATE "C" PRIMARY KEY,
  tenant       text COLLATE "C" NOT NULL,
  requested_at timestamptz NOT NULL,
  deadline     timestamptz NOT NULL CHECK (deadline > requested_at),
  state        text COLLATE "C" NOT NULL CHECK (state IN ('open', 'granted', 'cancelled')),
  closed_at    timestamptz CHECK (closed_at >= requested_at AND closed_at <= deadline),
  CHECK ((state = 'open') = (closed_at IS NULL))
);
COMMENT ON TABLE agd.countersign_request IS 'what each fleet asks of the countersigners, from its mint until its window ends';

CREATE TABLE agd.fleet_signature (
  fleet_id    text COLLATE "C" NOT NULL,
  duty        text COLLATE "C" NOT NULL CHECK (duty IN ('coordinator', 'countersigner')),
  tenant      text COLLATE "C" NOT NULL,
  signer      text COLLATE "C" NOT NULL,
  signature   bytea NOT NULL CHECK (pg_catalog.octet_length(signature) = 64),
  signed_at   timestamptz NOT NULL,
  batch_size  bigint,                    -- a countersignature: how many fleets its batch had,
  batch_index bigint,                    -- which of them this one is,
  batch_path  bytea,                     -- and the hashes from its leaf to the root, 32 bytes each
  PRIMARY KEY (fleet_id, duty),
  CHECK (CASE duty WHEN 'countersigner' THEN batch_index >= 0 AND batch_index < batch_size
                                             AND pg_catalog.octet_length(batch_path) % 32 = 0
                   ELSE batch_size IS NULL AND batch_index IS NULL AND batch_path IS NULL END)
);
COMMENT ON TABLE agd.fleet_signature IS 'the signatures under each fleet, as they were verified';
