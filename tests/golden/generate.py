#!/usr/bin/env python3
"""Makes the golden vectors of this folder.

A second implementation of docs/formats.md, in another language and with nothing but the standard library, so that the
vectors do not come from the code they check. Run it in this folder; it writes entries.json, images.json, tree.json,
notes.json, proofs.json, tokens.json and fleets.json, always the same bytes.
"""

import base64
import hashlib
import json
import unicodedata

# --- RFC 6962 ---------------------------------------------------------------------------------------------------------


def sha256(data):
    return hashlib.sha256(data).digest()


def leaf_hash(entry):
    return sha256(b"\x00" + entry)


def node_hash(left, right):
    return sha256(b"\x01" + left + right)


def split(n):
    """The largest power of two below n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(leaves):
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m, leaves):
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return path(m, leaves[:k]) + [mth(leaves[k:])]
    return path(m - k, leaves[k:]) + [mth(leaves[:k])]


def subproof(m, leaves, whole):
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return subproof(m, leaves[:k], whole) + [mth(leaves[k:])]
    return subproof(m - k, leaves[k:], False) + [mth(leaves[:k])]


# --- tlog-tiles -------------------------------------------------------------------------------------------------------


def tile_path(level, index, width):
    groups = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03}")
    return f"tile/{level}/{'/'.join(groups)}" + (f".p/{width}" if width < 256 else "")


def tiles_but_full_leaf_tiles(size):
    paths, level = [], 0
    while size >> (8 * level):
        hashes = size >> (8 * level)
        if level > 0:
            paths += [tile_path(level, index, 256) for index in range(hashes // 256)]
        if hashes % 256:
            paths.append(tile_path(level, hashes // 256, hashes % 256))
        level += 1
    return paths


# --- Ed25519 (RFC 8032), for signing the test notes: neither fast nor safe against side channels ---------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
BASE_Y = 4 * pow(5, -1, P) % P


def recover_x(y):
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return x if x % 2 == 0 else P - x


BASE = (recover_x(BASE_Y), BASE_Y)


def add(a, b):
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def multiply(scalar, point):
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def compress(point):
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def expand(seed):
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little")
    return scalar & ((1 << 254) - 8) | 1 << 254, digest[32:]


def public_key(seed):
    return compress(multiply(expand(seed)[0], BASE))


def sign(seed, message):
    scalar, prefix = expand(seed)
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % L
    point = compress(multiply(r, BASE))
    challenge = hashlib.sha512(point + public_key(seed) + message).digest()
    s = (r + int.from_bytes(challenge, "little") * scalar) % L
    return point + s.to_bytes(32, "little")


# --- signed-note ------------------------------------------------------------------------------------------------------


def b64(data):
    return base64.b64encode(data).decode()


def key_id(name, key_type, seed):
    return sha256(name.encode() + b"\n" + bytes([key_type]) + public_key(seed))[:4]


def vkey(name, key_type, seed):
    key = b64(bytes([key_type]) + public_key(seed))
    return f"{name}+{key_id(name, key_type, seed).hex()}+{key}"


def signature_line(name, key_type, seed, signature):
    return f"— {name} {b64(key_id(name, key_type, seed) + signature)}\n"


# --- tlog-proof -------------------------------------------------------------------------------------------------------


def tlog_proof(extra, index, hashes, note):
    lines = ["c2sp.org/tlog-proof@v1"]
    if extra:
        lines.append(f"extra {b64(extra)}")
    lines.append(f"index {index}")
    lines += [b64(h) for h in hashes]
    return "\n".join(lines) + "\n\n" + note


# --- JSON Web Tokens (RFC 7515, RFC 7519, RFC 8037) -------------------------------------------------------------------


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(seed, header, claims):
    """Header and claims are objects, or bytes as they are."""
    parts = [p if isinstance(p, bytes) else json.dumps(p, separators=(",", ":")).encode() for p in (header, claims)]
    signed = ".".join(map(b64url, parts))
    return f"{signed}.{b64url(sign(seed, signed.encode()))}"


# --- agd --------------------------------------------------------------------------------------------------------------


def civil(days):
    """Year, month and day of a day counted from 1970-01-01, by walking: slow and plain."""

    def leap(year):
        return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)

    year = 1970 + 400 * (days // 146097)
    days %= 146097
    while days >= 365 + leap(year):
        days -= 365 + leap(year)
        year += 1
    month = 1
    for length in (31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31):
        if days < length:
            break
        days -= length
        month += 1
    return year, month, days + 1


def time(micros):
    year, month, day = civil(micros // 86_400_000_000)
    rest = micros % 86_400_000_000
    second, fraction = divmod(rest, 1_000_000)
    sign_ = "-" if year < 0 else "+"
    shown = f"{year:04}" if 0 <= year <= 9999 else f"{sign_}{abs(year):06}"
    return (
        f"{shown}-{month:02}-{day:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{fraction:06}Z"
    )


def entry(event):
    fields = {key: value for key, value in event.items() if key not in ("xact_id", "n")}
    fields["v"] = 1
    fields["event_id"] = f"{event['xact_id']}-{event['n']}"
    for key in ("at", "committed_at"):
        fields[key] = time(int(event[key]))
    for key in ("row_key", "old", "new"):
        if key in fields:
            fields[key] = "sha256:" + fields[key]
    # All keys are ASCII and the one number is 1: this is RFC 8785.
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def image_digest(kind, salt, text):
    return sha256(b"agd-image-v1\x00" + kind.encode() + b"\x00" + salt + text.encode())


def checkpoint(origin, size, root):
    return f"{origin}\n{size}\n{b64(root)}\n"


def fleet_vector(tenant, template, version, cause, generation):
    digest = sha256(cause.encode()).hex()
    return f"agd-fleet-v1:{tenant}:{template}@{version}:{digest}:{generation}"


def fleet_context(agents):
    """The digest of what a fleet's agents are told; goals and memory scope as PostgreSQL prints jsonb."""
    lines = "".join(f"{role}\n{goals}\n{scope}\n" for role, goals, scope in sorted(agents))
    return hashlib.sha256(f"agd-fleet-context-v1\n{lines}".encode()).hexdigest()


def fleet_statement(origin, vector, minted_at, deadline, context):
    return f"agd-fleet-statement-v2\n{origin}\n{vector}\n{time(minted_at)}\n{time(deadline)}\n{context}\n"


def fleet_id(vector):
    return sha256(vector.encode()).hex()[:16]


def fleet_batch_statement(size, root):
    return f"agd-fleet-batch-v1\n{size}\n{b64(root)}\n"


# --- the vectors ------------------------------------------------------------------------------------------------------

SALT = bytes(range(16))
AT = 1_795_210_265_000_001  # 2026-11-20T21:31:05.000001Z


def event(name, **fields):
    base = {
        "xact_id": "7431",
        "n": 2,
        "action": "INSERT",
        "at": str(AT),
        "committed_at": str(AT + 1),
        "session_user_name": "app",
        "role_name": "app",
        "binding": "role",
    }
    return name, base | fields


def events():
    controls = "".join(map(chr, range(0x20)))
    yield event("least")
    yield event(
        "all fields",
        action="UPDATE",
        tenant="acme",
        relation="public.orders",
        guard_id="0193f1c2-5d3e-7c41-9a53-0b6d1f2e3a4b",
        row_key=image_digest("key", SALT, '{"id":7}').hex(),
        old=image_digest("old", SALT, '{"id":7,"total":1}').hex(),
        new=image_digest("new", SALT, '{"id":7,"total":2}').hex(),
        body="text",
        principal="writer-1",
        fleet_id="9f86d081884c7d65",
        cause="ticket 4711",
        binding="token",
        application_name="orders-api",
        client_addr="192.0.2.7",
    )
    yield event("escapes", cause=controls + '"\\/\x7f\u0080\u2028\u2029€\ufffd😀', application_name='"', relation="\\")
    yield event("empty strings", action="", session_user_name="", role_name="", binding="", cause="", tenant="")
    yield event("largest ids", xact_id=str(2**64 - 1), n=2**32 - 1)
    yield event("smallest ids", xact_id="0", n=0)
    yield event("epoch", at="0", committed_at="-1")
    yield event("leap days", at="951782400000000", committed_at="-2203891200000000")
    yield event("four-digit years", at="-62167219200000000", committed_at="253402300799999999")
    yield event("six-digit years", at="-62167219200000001", committed_at="253402300800000000")
    yield event("all of i64", at=str(-(2**63)), committed_at=str(2**63 - 1))
    yield event(
        "tenant checkpoint",
        action="CHECKPOINT",
        body=checkpoint("agd-7/db/t/acme", 256, sha256(b"root")),
        session_user_name="postgres",
        role_name="postgres",
        binding="system",
    )
    yield event(
        "denied", action="DENIED", tenant="acme", relation="public.orders", cause="42501", client_addr="2001:db8::1"
    )


TOKEN_SEED = bytes([0x17] * 32)
TOKEN_HEADER = {"alg": "EdDSA", "kid": "acme-2026", "typ": "JWT"}
NOW = 1_795_210_265
TOKEN_CLAIMS = {
    "aud": "agd-7/db",
    "tenant": "acme",
    "sub": "writer-1",
    "role": "app",
    "iat": NOW - 5,
    "exp": NOW + 55,
    "jti": "0f8b6a52-3c1e-4c6e-9a53-0b6d1f2e3a4b",
}


def claims_of(expected):
    return json.loads(expected) if isinstance(expected, bytes) else expected


def tokens():
    """Name, token, what becomes of it: its claims, or the error."""
    good, seed = TOKEN_CLAIMS, TOKEN_SEED

    def changed(name, expected, header=None, claims=None, without=(), raw_header=None, raw_claims=None):
        header = raw_header or {k: v for k, v in (TOKEN_HEADER | (header or {})).items() if k not in without}
        claims = raw_claims or {k: v for k, v in (good | (claims or {})).items() if k not in without}
        return name, token(seed, header, claims), claims if expected is None else expected

    yield changed("least", None, without=("typ",))
    yield changed("with a type", None)
    yield changed("all claims", None, claims={"nbf": NOW - 1, "scope": ["read", "orders:write"], "fleet": "9f86d081884c7d65"})
    yield changed("no scope at all", None, claims={"scope": []})
    yield changed("another script", None, claims={"sub": "Zo\u00eb \u20ac \U0001f600"})
    yield changed("an hour", None, claims={"iat": NOW - 1, "exp": NOW + 3599})
    yield changed("white space", None, raw_claims=json.dumps(good, indent=2).encode())
    yield changed("skewed clock", None, claims={"iat": NOW + 2, "nbf": NOW + 2})
    for algorithm in ("none", "HS256", "ES256", "eddsa", "EdDSA ", "Ed25519", "Ed448", None, 7, ["EdDSA"]):
        yield changed(f"algorithm {algorithm!r}", "Algorithm", header={"alg": algorithm})
    yield changed("no algorithm", "Algorithm", without=("alg",))
    for name, value in (
        ("crit", ["exp"]),
        ("jwk", {"kty": "OKP", "crv": "Ed25519", "x": b64url(public_key(seed))}),
        ("jku", "https://example.com/keys"),
        ("x5u", "https://example.com/chain"),
        ("x5c", ["MIIB"]),
        ("x5t", "x"),
        ("x5t#S256", "x"),
        ("b64", False),
        ("cty", "JWT"),
        ("zip", "DEF"),
    ):
        yield changed(f"header {name}", "HeaderMember", header={name: value})
    for kid in ("", "a b", "a/b", "a\n", "k" * 65, "\u00e9", 7, None):
        yield changed(f"kid {kid!r}", "KeyId", header={"kid": kid})
    yield changed("no kid", "KeyId", without=("kid",))
    for typ in ("jwt", "JOSE", "at+jwt", 7, None):
        yield changed(f"type {typ!r}", "Type", header={"typ": typ})
    for raw in (b"", b"[]", b"null", b'"x"', b'{"alg":"EdDSA"', b'{"alg":"EdDSA","kid":"a"}x', b'["EdDSA","a"]', b"\xff",
                b'{"alg":"EdDSA","kid":"a","alg":"EdDSA"}', b'\xef\xbb\xbf{"alg":"EdDSA","kid":"a"}'):
        yield changed(f"header {raw!r}", "Json(Header)", raw_header=raw or b" ")
    for raw in (b" ", b"[]", b"{", b'{"aud":"\xff"}', b'{"a":"\\ud800"}', json.dumps(good).encode()[:-1] + b',"sub":"boss"}',
                json.dumps(good).encode()[:-1] + b',"tenant":"acme"}'):
        yield changed(f"claims {raw[-20:]!r}", "Json(Claims)", raw_claims=raw)
    for name in ("aud", "tenant", "sub", "role", "iat", "exp", "jti"):
        yield changed(f"without {name}", f'Claim("{name}")', without=(name,))
        yield changed(f"{name} null", f'Claim("{name}")', claims={name: None})
        yield changed(f"{name} a list", f'Claim("{name}")', claims={name: [good[name]]})
    for name, value in (
        ("tenant", "Acme"), ("tenant", "acme "), ("tenant", ""), ("tenant", "a" * 64), ("tenant", "\u0430cme"),
        ("sub", ""), ("sub", "a\nb"), ("sub", "\u0085"), ("sub", "p" * 129), ("sub", "\x00"),
        ("sub", "pay\u202eroll"), ("sub", "a\u200bb"), ("sub", "a\u00adb"), ("sub", "\u0378"), ("sub", "\ue000"), ("sub", "a\u00a0b"),
        ("sub", "a\u2028b"), ("sub", "\U000e0041"), ("sub", "  "),
        ("role", ""), ("role", "r" * 64),
        ("jti", ""), ("jti", "a b"), ("jti", "j" * 65), ("jti", "a=="), ("jti", 7),
        ("iat", str(NOW)), ("iat", NOW + 0.5), ("iat", -1), ("iat", True), ("exp", str(NOW + 5)), ("exp", 1e400),
        ("nbf", None), ("nbf", "now"), ("scope", "read"), ("scope", [""]), ("scope", [7]), ("scope", ["a b"]),
        ("scope", ["s"] * 33), ("scope", ["s" * 65]), ("scope", None), ("fleet", None), ("fleet", ""),
    ):
        expected = f'Claim("{name}")'
        if value == 1e400:
            value = 2**64
        yield changed(f"{name} {str(value)[:20]!r}", expected, claims={name: value})
    for name, value in (("iss", "https://issuer"), ("azp", "x"), ("cnf", {"jkt": "x"}), ("Tenant", "acme"), ("not_before", 1)):
        yield changed(f"claim {name}", "UnknownClaim", claims={name: value})
    yield changed("longer than an hour", "Lifetime", claims={"iat": NOW - 1, "exp": NOW + 3600})
    yield changed("no lifetime", "Lifetime", claims={"iat": NOW, "exp": NOW})
    yield changed("backwards", "Lifetime", claims={"iat": NOW + 1, "exp": NOW})
    yield changed("ends before it begins", "Lifetime", claims={"nbf": NOW + 55})
    for audience in ("agd-7/db/i2", "agd-7/DB", "agd-7", "agd-7/db/t/acme"):
        yield changed(f"audience {audience}", "Audience", claims={"aud": audience})
    for role in ("App", "postgres", "app "):
        yield changed(f"role {role}", "Role", claims={"role": role})
    yield changed("expired this second", "Expired", claims={"exp": NOW})
    yield changed("from the future", "NotYetValid", claims={"iat": NOW + 3})
    yield changed("not yet", "NotYetValid", claims={"nbf": NOW + 3})
    yield changed("from before the start", "IssuedTooEarly", claims={"iat": NOW - 100})
    yield changed("long", "TooLong", claims={"sub": "p" * 4096})

    right = token(seed, TOKEN_HEADER, good)
    header, claims, signature = right.split(".")
    for name, text, expected in (
        ("empty", "", "Layout"),
        ("one part", header, "Layout"),
        ("two parts", f"{header}.{claims}", "Layout"),
        ("four parts", f"{right}.{signature}", "Layout"),
        ("five parts", f"{header}..{claims}..{signature}", "Layout"),
        ("no header", f".{claims}.{signature}", "Json(Header)"),
        ("no signature", f"{header}.{claims}.", "Signature"),
        ("truncated", right[:-1], "Base64(Signature)"),
        ("truncated by a byte", right[:-2], "Signature"),
        ("padded", f"{right}==", "Base64(Signature)"),
        ("a padded header", f"{header}=.{claims}.{signature}", "Base64(Header)"),
        ("a space before", f" {right}", "Base64(Header)"),
        ("a line feed after", f"{right}\n", "Base64(Signature)"),
        ("the other alphabet", f"{header}.{claims}.{'+/' + signature[2:]}", "Base64(Signature)"),
        ("trailing bits", right[:-1] + chr(ord(right[-1]) + 1), "Base64(Signature)"),
        ("another key", token(bytes([0x18] * 32), TOKEN_HEADER, good), "Signature"),
        ("claims of another", f"{header}.{b64url(json.dumps(good | {'sub': 'boss'}).encode())}.{signature}", "Signature"),
        ("header of another", f"{b64url(json.dumps({'alg': 'EdDSA', 'kid': 'acme-2026'}).encode())}.{claims}.{signature}", "Signature"),
    ):
        yield name, text, expected
    # The same signature with the field's order added to its scalar: valid for a verifier that does not look.
    raw = sign(seed, f"{header}.{claims}".encode())
    again = raw[:32] + (int.from_bytes(raw[32:], "little") + L).to_bytes(32, "little")
    yield "a malleated signature", f"{header}.{claims}.{b64url(again)}", "Signature"


def write(file, content):
    with open(file, "w", encoding="utf-8") as out:
        json.dump(content, out, ensure_ascii=True, indent=1)
        out.write("\n")


def main():
    vectors = [
        {"name": name, "event": fields, "entry": entry(fields).decode(), "leaf_hash": leaf_hash(entry(fields)).hex()}
        for name, fields in events()
    ]
    framed = b"".join(len(entry(f)).to_bytes(2, "big") + entry(f) for _, f in events())
    write("entries.json", {"entries": vectors, "bundle": framed.hex()})

    texts = ["", "{}", '{"id":7,"name":"Zo\u00eb 😀"}', "x" * 300]
    images = [
        {"kind": kind, "salt": salt.hex(), "text": text, "digest": image_digest(kind, salt, text).hex()}
        for kind in ("key", "old", "new")
        for salt in (bytes(16), SALT)
        for text in texts
    ]
    write("images.json", {"images": images})

    # The inputs of Certificate Transparency's own tests.
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    entries = [bytes.fromhex(i) for i in inputs]
    leaves = [leaf_hash(e) for e in entries]
    sizes = range(1, len(leaves) + 1)
    decimal = [leaf_hash(str(i).encode()) for i in range(70_000)]
    write(
        "tree.json",
        {
            "leaves": [{"entry": i, "leaf_hash": h.hex()} for i, h in zip(inputs, leaves)],
            "roots": [mth(leaves[:size]).hex() for size in range(len(leaves) + 1)],
            "inclusion": [
                {"index": index, "size": size, "path": [h.hex() for h in path(index, leaves[:size])]}
                for size in sizes
                for index in range(size)
            ],
            "consistency": [
                {"from": old, "to": new, "path": [h.hex() for h in subproof(old, leaves[:new], True)]}
                for new in sizes
                for old in range(1, new + 1)
            ],
            "large_leaf": "the entry of leaf i is i in decimal ASCII",
            "large": [
                {"size": size, "root": mth(decimal[:size]).hex(), "tiles": tiles_but_full_leaf_tiles(size)}
                for size in (1, 255, 256, 257, 65_535, 65_536, 65_537, 70_000)
            ],
        },
    )

    notes = []
    witness, witness_seed, witness_time = "witness.example/w1", bytes([0x42] * 32), 1_795_210_266
    for origin, size, leaf_count in (("agd-7/db", "8", 8), ("agd-7/db/t/acme", "0", 0)):
        seed = bytes(range(32))
        root = mth(leaves[:leaf_count])
        body = checkpoint(origin, size, root)
        note = body + "\n" + signature_line(origin, 1, seed, sign(seed, body.encode()))
        cosigned = f"cosignature/v1\ntime {witness_time}\n{body}".encode()
        cosignature = witness_time.to_bytes(8, "big") + sign(witness_seed, cosigned)
        notes.append(
            {
                "name": origin,
                "seed": seed.hex(),
                "vkey": vkey(origin, 1, seed),
                "origin": origin,
                "size": size,
                "root": root.hex(),
                "body": body,
                "note": note,
                "witness_vkey": vkey(witness, 4, witness_seed),
                "witness_time": witness_time,
                "cosigned": note + signature_line(witness, 4, witness_seed, cosignature),
            }
        )
    write("notes.json", {"notes": notes})

    proofs = []
    thousands = [event("n", n=n) for n in range(1_000)]
    thousands = [entry(fields) for _, fields in thousands]
    for log, index, size in (
        (entries, 0, 1),
        (entries, 0, 8),
        (entries, 5, 8),
        (entries, 6, 7),
        (thousands, 0, 1_000),
        (thousands, 256, 257),
        (thousands, 999, 1_000),
    ):
        origin, seed = "agd-7/db", bytes(range(32))
        hashes = [leaf_hash(e) for e in log[:size]]
        body = checkpoint(origin, size, mth(hashes))
        note = body + "\n" + signature_line(origin, 1, seed, sign(seed, body.encode()))
        if size == 8:
            note = notes[0]["cosigned"]
        proofs.append(
            {
                "entry": log[index].hex(),
                "index": index,
                "size": size,
                "path": [h.hex() for h in path(index, hashes)],
                "vkey": vkey(origin, 1, seed),
                "proof": tlog_proof(log[index], index, path(index, hashes), note),
            }
        )
    write("proofs.json", {"proofs": proofs})

    write(
        "tokens.json",
        {
            "kid": TOKEN_HEADER["kid"],
            "seed": TOKEN_SEED.hex(),
            "public_key": public_key(TOKEN_SEED).hex(),
            "expected": {"audience": "agd-7/db", "role": "app", "now": NOW, "issued_after": NOW - 100, "max_lifetime": 3600},
            "tokens": [{"name": n, "token": t, ("error" if isinstance(e, str) else "claims"): claims_of(e)} for n, t, e in tokens()],
        },
    )

    loom, river = bytes([0x11] * 32), bytes([0x22] * 32)
    fleets = []
    for origin, tenant, template, version, cause, generation, window in (
        ("agd-7/db", "acme", "standard", 1, "onboarding of acme", 1, 86_400_000_000),
        ("agd-7/db", "acme", "standard", 1, "onboarding of acme", 2, 86_400_000_000),
        ("agd-7/db", "globex", "standard", 1, "onboarding of acme", 1, 86_400_000_000),
        ("agd-7/db", "a", "t-1_x", 4_294_967_295, "cafe\u0301 \u212b\n\tq\u0307\u0323 \u1112\u1161\u11ab", 4_294_967_295, 1),
        ("agd-7/db/i2", "acme", "research", 3, "\ufb01le \u00b2 \U0001f600", 7, 3_600_000_000),
    ):
        normalised = unicodedata.normalize("NFC", cause)
        vector = fleet_vector(tenant, template, version, normalised, generation)
        # Goals and memory scope as PostgreSQL prints jsonb: keys by length, then bytes; ", " and ": " between.
        agents = [
            (role, goals, f'{{"role": "{role}", "fleet": "{fleet_id(vector)}", "tenant": "{tenant}"}}')
            for role, goals in (
                ("writer", '["writes on the tenant\'s behalf"]'),
                ("coordinator", '{"why": "caf\u00e9\\n\\"quoted\\"", "limit": 1.50}'),
                ("gate-keeper", "[]"),
            )[: 1 + generation % 3]
        ]
        context = fleet_context(agents)
        statement = fleet_statement(origin, vector, AT, AT + window, context)
        fleets.append(
            {
                "origin": origin,
                "tenant": tenant,
                "template": template,
                "version": version,
                "cause": cause,
                "cause_normalised": normalised,
                "generation": generation,
                "minted_at": str(AT),
                "deadline": str(AT + window),
                "agents": [dict(zip(("role", "goals", "memory_scope"), agent)) for agent in agents],
                "context": context,
                "vector": vector,
                "digest": sha256(vector.encode()).hex(),
                "fleet_id": fleet_id(vector),
                "statement": statement,
                "signature": sign(loom, statement.encode()).hex(),
            }
        )
    batches = []
    for size in range(1, len(fleets) + 1):
        members = sorted(fleets[:size], key=lambda fleet: fleet["fleet_id"])
        hashes = [leaf_hash(fleet["statement"].encode()) for fleet in members]
        statement = fleet_batch_statement(size, mth(hashes))
        batches.append(
            {
                "members": [fleet["fleet_id"] for fleet in members],
                "paths": [[h.hex() for h in path(index, hashes)] for index in range(size)],
                "statement": statement,
                "signature": sign(river, statement.encode()).hex(),
            }
        )
    write(
        "fleets.json",
        {
            "coordinator": public_key(loom).hex(),
            "countersigner": public_key(river).hex(),
            "fleets": fleets,
            "batches": batches,
        },
    )


if __name__ == "__main__":
    main()
