//! Fleets' lives lived again, event by event in the order of their log.
//!
//! Owns what may follow on what: the rules of the gate and of agd's functions, once more and from nothing but what they left.
//! Each finding names the event that breaks one, and the fleet.

use std::collections::{BTreeMap, BTreeSet};

use super::super::closed_by;
use super::super::lifecycle;
use super::super::statement::Place;
use super::super::verify::{Check, Evidence, Signed, Signer, verify};
use super::row::Row;
use super::{Database, FleetFinding, JudgedFleet, Judgement, Leaf, Stream, Table, Told, What};
use crate::merkle::{HASH_SIZE, Hash};
use crate::name;

/// Columns of agd.tenant_agent_fleet that a fleet keeps for good.
const KEPT: [&str; 13] = [
    "fleet_id",
    "digest",
    "tenant",
    "template",
    "template_version",
    "cause_snapshot",
    "unicode_version",
    "cause_digest",
    "generation",
    "origin",
    "agents",
    "minted_at",
    "countersign_deadline",
];

/// A row, and the event that made it what it is.
#[derive(Clone)]
struct Kept {
    row: Row,
    leaf: Leaf,
}

/// One fleet.
struct Life {
    fleet: Kept,
    minted: Leaf,
    /// The events that made it active, and that ended it.
    active: Option<Leaf>,
    ended: Option<Leaf>,
    agents: BTreeMap<String, Kept>,
    request: Option<Kept>,
    signatures: BTreeMap<String, Kept>,
    /// One of its events is not what it must be.
    broken: bool,
}

impl Life {
    fn state(&self) -> &str {
        self.fleet.row.get("state").unwrap_or_default()
    }

    fn is_signed(&self) -> bool {
        self.fleet.row.get("signed_at").is_some()
    }

    /// Pending until an instant, or active.
    fn is_live(&self, at: i64) -> bool {
        match self.state() {
            "active" => true,
            "pending" => self.fleet.row.time("countersign_deadline").is_some_and(|deadline| at < deadline),
            _ => false,
        }
    }
}

/// The fleets of one vector.
#[derive(Default)]
struct Family {
    /// The newest.
    generation: u32,
    /// Those that are not over.
    open: BTreeSet<String>,
}

/// What makes fleets one family: template, its version, the cause.
fn family(row: &Row) -> [String; 3] {
    ["template", "template_version", "cause_digest"].map(|column| row.text(column))
}

/// One log on its way.
struct Replay<'a> {
    log_name: &'a str,
    tenant: Option<&'a str>,
    from_start: bool,
    lives: BTreeMap<String, Life>,
    families: BTreeMap<[String; 3], Family>,
    /// Fleets that are pending, whether in time or not, or active.
    open: BTreeSet<String>,
    /// Events of fleets whose mint is not here.
    strangers: u64,
    findings: &'a mut Vec<FleetFinding>,
}

/// What the platform log has: signers and templates.
#[derive(Default)]
struct Registry {
    known: bool,
    signers: BTreeMap<String, Signer>,
    templates: BTreeMap<(String, String), Row>,
}

pub(super) fn judge(log_name: &str, database: Database, judgement: &mut Judgement) {
    let registry = registry(log_name, database.platform, judgement);
    for (tenant, stream) in database.tenants {
        let Stream { mut told, acts, from_start, unread } = stream;
        told.sort_by_key(|told| told.leaf);
        if unread > 0 {
            judgement.unchecked.push(format!(
                "{unread} events of fleets of tenant {tenant} of {log_name}: their row images are not in the dump"
            ));
        }
        let mut replay = Replay {
            log_name,
            tenant: Some(&tenant),
            from_start: from_start && unread == 0,
            lives: BTreeMap::new(),
            families: BTreeMap::new(),
            open: BTreeSet::new(),
            strangers: 0,
            findings: &mut judgement.findings,
        };
        for told in told {
            replay.event(told);
        }
        replay.acts(acts);
        let judged = judgement.fleets.len();
        replay.finish(&registry, &mut judgement.fleets);
        let strangers = replay.strangers;
        if strangers > 0 {
            judgement.unchecked.push(format!(
                "{strangers} events of fleets of tenant {tenant} of {log_name}: the dump does not have the events before"
            ));
        }
        if !registry.known && judgement.fleets.len() > judged {
            judgement.unchecked.push(format!(
                "signatures under fleets of tenant {tenant} of {log_name}: the signers' keys are row images of its platform log"
            ));
        }
    }
}

fn registry(log_name: &str, stream: Stream, judgement: &mut Judgement) -> Registry {
    let Stream { mut told, from_start, unread, .. } = stream;
    told.sort_by_key(|told| told.leaf);
    let mut replay = Replay {
        log_name,
        tenant: None,
        from_start: from_start && unread == 0,
        lives: BTreeMap::new(),
        families: BTreeMap::new(),
        open: BTreeSet::new(),
        strangers: 0,
        findings: &mut judgement.findings,
    };
    let mut registry = Registry { known: replay.from_start, ..Registry::default() };
    let (mut signers, mut templates) = (BTreeMap::new(), BTreeMap::new());
    for Told { leaf, what, .. } in told {
        let What::Row { table, action, old, new } = what else { continue };
        let row = new.as_ref().or(old.as_ref());
        match table {
            Table::Signer => {
                let key = row.map(|row| row.text("signer")).unwrap_or_default();
                replay.row(leaf, None, Table::Signer, &action, &mut signers, key, (old, new), |before, after| {
                    let strange =
                        before.differs_in(after).find(|column| !matches!(*column, "revoked_at" | "revoked_reason"));
                    match strange {
                        Some(column) => Some(format!("changes {column}, which a signer keeps")),
                        None if before.get("revoked_at").is_some() => Some("changes a revocation".to_owned()),
                        None => None,
                    }
                });
            }
            Table::Template => {
                let key = row.map(|row| (row.text("template"), row.text("version"))).unwrap_or_default();
                replay.row(leaf, None, Table::Template, &action, &mut templates, key, (old, new), |_, _| {
                    Some("changes a version of a template".to_owned())
                });
            }
            other => replay.say(leaf, None, format!("writes {} in the platform log", other.name())),
        }
    }
    registry.signers =
        signers.into_iter().filter_map(|(name, kept): (String, Kept)| Some((name, kept.row.signer()?))).collect();
    registry.templates = templates.into_iter().map(|(key, kept)| (key, kept.row)).collect();
    registry
}

impl Replay<'_> {
    fn say(&mut self, leaf: Leaf, fleet_id: Option<&str>, message: String) {
        let platform = name::incarnation_origin(self.log_name, leaf.incarnation);
        let origin = match self.tenant {
            Some(tenant) => name::tenant_origin(&platform, tenant),
            None => platform,
        };
        if let Some(life) = fleet_id.and_then(|fleet_id| self.lives.get_mut(fleet_id)) {
            life.broken = true;
        }
        let fleet_id = fleet_id.map(str::to_owned);
        self.findings.push(FleetFinding { origin, index: leaf.index, event_id: leaf.event_id, fleet_id, message });
    }

    /// What an event makes of one row: it must begin where the event before has ended, and `objection` must find nothing.
    #[allow(clippy::too_many_arguments, reason = "one event of one row, as it is recorded")]
    fn row<K: Ord>(
        &mut self,
        leaf: Leaf,
        fleet_id: Option<&str>,
        table: Table,
        action: &str,
        rows: &mut BTreeMap<K, Kept>,
        key: K,
        (old, new): (Option<Row>, Option<Row>),
        objection: impl FnOnce(&Row, &Row) -> Option<String>,
    ) {
        let present = rows.get(&key).map(|kept| &kept.row);
        let wrong = match (action, present, &old, &new) {
            ("INSERT", None, None, Some(_)) => None,
            ("INSERT", Some(_), ..) => Some(format!("makes a row of {} that is there already", table.name())),
            ("UPDATE", Some(present), Some(old), Some(new)) if present == old => objection(old, new),
            ("UPDATE", Some(_), Some(_), Some(_)) => {
                Some(format!("changes a row of {} that is not as the event before left it", table.name()))
            }
            ("UPDATE", None, ..) if self.from_start => {
                Some(format!("changes a row of {} that no event made", table.name()))
            }
            ("UPDATE", None, ..) => {
                self.strangers += 1;
                return;
            }
            ("BASELINE", ..) => Some(format!("a row of {} was there that no event made", table.name())),
            ("DELETE" | "TRUNCATE", ..) => Some(format!("removes from {}", table.name())),
            _ => Some(format!("is no event of {}", table.name())),
        };
        if let Some(wrong) = wrong {
            self.say(leaf, fleet_id, wrong);
        }
        if let Some(row) = new {
            rows.insert(key, Kept { row, leaf });
        }
    }

    fn event(&mut self, told: Told) {
        let Told { leaf, at, what } = told;
        let (table, action, old, new) = match what {
            What::Close { body } => return self.close(leaf, at, &body),
            What::Row { table, action, old, new } => (table, action, old, new),
        };
        let row = new.as_ref().or(old.as_ref());
        let fleet_id = row.map(|row| row.text("fleet_id")).unwrap_or_default();
        let id = Some(fleet_id.as_str());
        if row.is_some_and(|row| row.get("tenant") != self.tenant) {
            self.say(leaf, id, format!("a row of {} is another tenant's", table.name()));
        }
        if table == Table::Fleet {
            return self.fleet(leaf, &fleet_id, &action, old, new);
        }
        let Some(mut life) = self.lives.remove(&fleet_id) else {
            if self.from_start {
                self.say(leaf, id, format!("is of {}, and no fleet of that id was minted", table.name()));
            } else {
                self.strangers += 1;
            }
            return;
        };
        let key = |column: &str| row.map(|row| row.text(column)).unwrap_or_default();
        let before = self.findings.len();
        match table {
            Table::Agent => {
                let role = key("role");
                let (signed, over) = (life.state() != "pending" || life.is_signed(), life.ended.is_some());
                self.row(leaf, id, table, &action, &mut life.agents, role, (old, new), |before, after| {
                    before.differs_in(after).find_map(|column| match column {
                        "goals" | "memory_scope" if !signed => None,
                        "goals" | "memory_scope" => Some(format!("changes an agent's {column} after they were signed")),
                        "archived_at" if over && before.get("archived_at").is_none() => None,
                        "archived_at" => Some("archives an agent of a fleet that is not over".to_owned()),
                        other => Some(format!("changes {other}, which an agent keeps")),
                    })
                });
            }
            Table::Request => {
                let mut requests: BTreeMap<(), Kept> = life.request.take().map(|kept| ((), kept)).into_iter().collect();
                self.row(leaf, id, table, &action, &mut requests, (), (old, new), |before, after| {
                    let strange = before.differs_in(after).find(|column| !matches!(*column, "state" | "closed_at"));
                    strange.map(|column| format!("changes {column}, which a countersign request keeps"))
                });
                life.request = requests.remove(&());
            }
            _ => {
                let duty = key("duty");
                self.row(leaf, id, table, &action, &mut life.signatures, duty, (old, new), |_, _| {
                    Some("changes a signature".to_owned())
                });
            }
        }
        life.broken |= self.findings.len() > before;
        self.lives.insert(fleet_id, life);
    }

    fn fleet(&mut self, leaf: Leaf, fleet_id: &str, action: &str, old: Option<Row>, new: Option<Row>) {
        let id = Some(fleet_id);
        let mut rows: BTreeMap<(), Kept> = BTreeMap::new();
        let life = self.lives.remove(fleet_id);
        if let Some(life) = &life {
            rows.insert((), life.fleet.clone());
            self.families.entry(family(&life.fleet.row)).or_default().open.remove(fleet_id);
            self.open.remove(fleet_id);
        }
        let before = self.findings.len();
        if let ("INSERT", Some(new)) = (action, &new) {
            self.mint(leaf, fleet_id, new);
        }
        self.row(leaf, id, Table::Fleet, action, &mut rows, (), (old, new), objection);
        let Some(fleet) = rows.remove(&()) else { return };
        let mut life = life.unwrap_or_else(|| Life {
            fleet: fleet.clone(),
            minted: leaf,
            active: None,
            ended: None,
            agents: BTreeMap::new(),
            request: None,
            signatures: BTreeMap::new(),
            broken: false,
        });
        life.fleet = fleet;
        life.broken |= self.findings.len() > before;
        match life.state() {
            "active" if life.active.is_none() => life.active = Some(leaf),
            "sealed" | "cancelled" if life.ended.is_none() => life.ended = Some(leaf),
            _ => {}
        }
        let family = self.families.entry(family(&life.fleet.row)).or_default();
        family.generation = family.generation.max(life.fleet.row.number("generation").unwrap_or_default());
        if matches!(life.state(), "pending" | "active") {
            family.open.insert(fleet_id.to_owned());
            self.open.insert(fleet_id.to_owned());
        }
        self.lives.insert(fleet_id.to_owned(), life);
    }

    /// A new fleet begins pending and unsigned; of its vector it is the next generation, and the only one that is not over.
    fn mint(&mut self, leaf: Leaf, fleet_id: &str, new: &Row) {
        let id = Some(fleet_id);
        let late = ["signed_at", "activated_at", "sealed_at", "cancelled_at", "reason"];
        if new.get("state") != Some("pending") || late.iter().any(|column| new.get(column).is_some()) {
            self.say(leaf, id, "makes a fleet that does not begin pending and unsigned".to_owned());
        }
        let others = self.families.get(&family(new));
        let generation = others.map_or(0, |others| others.generation);
        if others.is_some_and(|others| !others.open.is_empty()) {
            self.say(leaf, id, "makes a fleet whose vector another has that is not over".to_owned());
        }
        let next = generation.checked_add(1);
        if self.from_start && new.number("generation") != next {
            let told = new.get("generation").unwrap_or("none");
            self.say(leaf, id, format!("makes generation {told}, and {generation} came before"));
        }
    }

    /// A log is closed when its tenant has no fleet that is not over.
    fn close(&mut self, leaf: Leaf, at: i64, body: &str) {
        let Some(last) = closed_by(body) else {
            return self.say(leaf, None, "closes the log, and names no fleet".to_owned());
        };
        let is_live = |id: &&String| self.lives.get(*id).is_some_and(|life| life.is_live(at));
        let live = self.open.iter().find(is_live).cloned();
        if let Some(live) = live {
            self.say(leaf, Some(&live), "closes the log, and this fleet is not over".to_owned());
        }
        let over = self.lives.get(last).map(|life| life.ended.is_some());
        if over == Some(false) || over.is_none() && self.from_start {
            self.say(leaf, Some(last), "closes the log by the end of a fleet that has not ended".to_owned());
        }
    }

    /// Nothing is done in a fleet's name before it is active or after it was sealed.
    fn acts(&mut self, acts: BTreeMap<String, (Leaf, Leaf)>) {
        for (fleet_id, (first, last)) in acts {
            let Some(life) = self.lives.get(&fleet_id) else {
                if self.from_start {
                    self.say(
                        first,
                        Some(&fleet_id),
                        "is done in the name of a fleet that is none of the tenant's".to_owned(),
                    );
                }
                continue;
            };
            let (active, ended) = (life.active, life.ended);
            if active.is_none_or(|active| first < active) {
                self.say(first, Some(&fleet_id), "is done in the name of a fleet that was not active yet".to_owned());
            }
            if ended.is_some_and(|ended| last > ended) {
                self.say(last, Some(&fleet_id), "is done in the name of a fleet that was over".to_owned());
            }
        }
    }

    /// What each fleet has become.
    fn finish(&mut self, registry: &Registry, fleets: &mut Vec<JudgedFleet>) {
        for (fleet_id, life) in std::mem::take(&mut self.lives) {
            let (mut checks, mut ok) = (Vec::new(), !life.broken);
            match life.evidence(registry) {
                None => {
                    ok = false;
                    let leaf = life.fleet.leaf;
                    self.say(leaf, Some(&fleet_id), "leaves a row that is no fleet's".to_owned());
                }
                Some(evidence) => {
                    checks = verify(&evidence);
                    let signatures = ["coordinator", "countersigner", "two_signers"];
                    checks.retain(|check| registry.known || !signatures.contains(&check.name));
                    let problems = life.problems(registry);
                    let agree = problems.is_empty();
                    let detail =
                        if agree { "agents, request and signatures agree with the fleet".to_owned() } else { problems };
                    checks.push(Check { name: "rows", ok: agree, detail });
                }
            }
            for check in checks.iter().filter(|check| !check.ok) {
                ok = false;
                let signature = |duty: &str| life.signatures.get(duty).map(|kept| kept.leaf);
                let leaf = match check.name {
                    "cause" | "vector" | "fleet_id" => life.minted,
                    "coordinator" => signature("coordinator").or(life.active).unwrap_or(life.fleet.leaf),
                    "countersigner" | "two_signers" => {
                        signature("countersigner").or(life.active).unwrap_or(life.fleet.leaf)
                    }
                    _ => life.fleet.leaf,
                };
                self.say(leaf, Some(&fleet_id), format!("{}: {}", check.name, check.detail));
            }
            let tenant = life.fleet.row.text("tenant");
            fleets.push(JudgedFleet { fleet_id, tenant, state: life.state().to_owned(), checks, ok });
        }
    }
}

/// What is wrong with a change of a fleet's row.
fn objection(before: &Row, after: &Row) -> Option<String> {
    if let Some(column) = before.differs_in(after).find(|column| KEPT.contains(column)) {
        return Some(format!("changes {column}, which a fleet keeps"));
    }
    let state = |row: &Row| row.text("state");
    let (from, to) = (state(before), state(after));
    if !lifecycle::may_follow(&from, &to) {
        return Some(format!("makes a fleet that is {from} {to}"));
    }
    let signed = before.get("signed_at").is_some();
    let wanted: &[&str] = match to.as_str() {
        "pending" if signed => return Some("changes a fleet that is signed, and leaves it pending".to_owned()),
        "pending" if after.get("signed_at").is_none() => &["context_digest"],
        "pending" => &["signed_at"],
        "active" if !signed => return Some("makes a fleet active that is not signed".to_owned()),
        "active" => &["state", "activated_at"],
        "sealed" => &["state", "sealed_at", "reason"],
        _ => &["state", "cancelled_at", "reason"],
    };
    let strange = before.differs_in(after).find(|column| !wanted.contains(column));
    strange.map(|column| format!("makes a fleet that is {from} {to}, and changes {column} with it"))
}

impl Life {
    fn evidence(&self, registry: &Registry) -> Option<Evidence> {
        let row = &self.fleet.row;
        let signed = |duty: &str| -> Option<Option<(Signed, &Row)>> {
            let Some(kept) = self.signatures.get(duty) else { return Some(None) };
            let signer = registry.signers.get(&kept.row.text("signer")).cloned();
            let signature = kept.row.bytes("signature")?;
            Some(Some((Signed { signer, signature, at: kept.row.time("signed_at")? }, &kept.row)))
        };
        let countersigner = match signed("countersigner")? {
            Some((signed, row)) => Some((signed, place(row)?)),
            None => None,
        };
        Some(Evidence {
            fleet_id: row.text("fleet_id"),
            digest: row.bytes("digest")?,
            tenant: row.text("tenant"),
            template: (row.text("template"), row.number("template_version")?),
            cause: row.text("cause_snapshot"),
            generation: row.number("generation")?,
            origin: row.text("origin"),
            minted_at: row.time("minted_at")?,
            deadline: row.time("countersign_deadline")?,
            agents: self.agents.values().map(|kept| kept.row.agent()).collect(),
            context_digest: row.bytes("context_digest")?,
            state: row.text("state"),
            coordinator: signed("coordinator")?.map(|(signed, _)| signed),
            countersigner,
        })
    }

    /// Where the other tables' rows do not agree with the fleet's. The same of rows alone: `agd.verify_fleet`.
    fn problems(&self, registry: &Registry) -> String {
        let row = &self.fleet.row;
        let over = !matches!(self.state(), "pending" | "active");
        let mut problems = Vec::new();
        let archived = |kept: &Kept| kept.row.get("archived_at").is_some();
        if row.number("agents") != Some(self.agents.len()) || self.agents.values().any(|kept| archived(kept) != over) {
            problems.push("its agents are not those it was minted with, or not archived with it");
        }
        let template = registry.templates.get(&(row.text("template"), row.text("template_version")));
        let roles = template.and_then(|template| Row::parse(template.get("roles")?));
        if registry.known && !roles.is_some_and(|roles| roles.columns().eq(self.agents.keys().map(String::as_str))) {
            problems.push("its agents are not the roles of its template");
        }
        let wanted = match self.state() {
            "pending" => "open",
            "cancelled" => "cancelled",
            _ => "granted",
        };
        let agrees = self.request.as_ref().is_some_and(|Kept { row: request, .. }| {
            request.get("state") == Some(wanted)
                && request.get("requested_at") == row.get("minted_at")
                && request.get("deadline") == row.get("countersign_deadline")
        });
        if !agrees {
            problems.push("its countersign request is not what its state says");
        }
        let taken = |duty: &str| self.signatures.get(duty).and_then(|kept| kept.row.get("signed_at"));
        if taken("coordinator") != row.get("signed_at") || taken("countersigner") != row.get("activated_at") {
            problems.push("its signatures were not taken when its row says");
        }
        problems.join("; ")
    }
}

fn place(row: &Row) -> Option<Place> {
    let path = row.bytes("batch_path")?;
    if !path.len().is_multiple_of(HASH_SIZE) {
        return None;
    }
    let path = path.chunks_exact(HASH_SIZE).map(|hash| Hash::try_from(hash).ok()).collect::<Option<_>>()?;
    Some(Place { size: row.number("batch_size")?, index: row.number("batch_index")?, path })
}
