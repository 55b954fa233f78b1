//! Tokens: who acts for which tenant, signed outside the database, in a form that any language can mint.
//!
//! Owns the format that `agd.bind` takes: a JSON Web Token (RFC 7519) in the compact serialization of a JSON Web Signature
//! (RFC 7515) under EdDSA with Ed25519 (RFC 8037). Promises that one algorithm and one spelling are accepted and nothing
//! else: no other `alg`, no header that names or carries a key, no member twice, no claim that is not understood, no base64
//! that does not print the same again, no key of small order, no signature that another verifier might refuse. So no
//! restriction that an issuer writes into a token is ever dropped in silence. Never reads a clock, never looks a key up, and
//! never puts a piece of a token into an error.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::cause::is_plain;
use crate::name::validate_tenant;

/// The longest token, in bytes.
pub const MAX_TOKEN_LEN: usize = 4096;

/// The longest time between `iat` and `exp`, in seconds.
pub const MAX_LIFETIME: u64 = 3600;

/// How far the issuer's clock may run ahead of the verifier's, in seconds. `exp` is never stretched.
pub const CLOCK_SKEW: u64 = 2;

/// The longest principal, in characters.
pub const MAX_PRINCIPAL_CHARS: usize = 128;

/// The longest key id and token id, in bytes.
pub const MAX_ID_LEN: usize = 64;

/// The most scopes in one token, and the longest of them, in bytes.
pub const MAX_SCOPES: usize = 32;

/// Why a token was refused, or could not be made. Holds nothing of the token itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// More than [`MAX_TOKEN_LEN`] bytes.
    #[error("it is longer than {MAX_TOKEN_LEN} bytes")]
    TooLong,
    /// Not three parts between two dots.
    #[error("it is not header.claims.signature")]
    Layout,
    /// A part that is not unpadded base64url in its one spelling.
    #[error("its {0} is not canonical base64url without padding")]
    Base64(Part),
    /// A part that is not one JSON object without a member that is there twice.
    #[error("its {0} is not a JSON object with each member once")]
    Json(Part),
    /// `alg` is missing or not `EdDSA`.
    #[error("its algorithm is not EdDSA")]
    Algorithm,
    /// `typ` is there and not `JWT`.
    #[error("its type is not JWT")]
    Type,
    /// A header member other than `alg`, `kid` and `typ`: `crit`, `jwk`, `jku`, `x5c` and all the others.
    #[error("its header has a member other than alg, kid and typ")]
    HeaderMember,
    /// `kid` is missing or not 1 to [`MAX_ID_LEN`] characters of `A-Z a-z 0-9 . _ -`.
    #[error("its header has no kid of 1 to {MAX_ID_LEN} characters of A-Z, a-z, 0-9, '.', '_' and '-'")]
    KeyId,
    /// Bytes that are no Ed25519 public key, or one of small order, which anybody can sign for.
    #[error("not an Ed25519 public key")]
    PublicKey,
    /// The signature is not 64 bytes or does not hold.
    #[error("its signature does not hold")]
    Signature,
    /// A claim that is not understood: it might restrict what the token is good for.
    #[error("it has a claim that is not understood")]
    UnknownClaim,
    /// A claim that must be there is missing, or one has another type or another shape than it must.
    #[error("its claim {0} is missing or malformed")]
    Claim(&'static str),
    /// `exp` is not after `iat`, more than [`MAX_LIFETIME`] (or a stricter limit) after it, or not after `nbf`.
    #[error("its lifetime is not between 1 second and the longest that is allowed")]
    Lifetime,
    /// `aud` is another database's.
    #[error("it is for another audience than this database")]
    Audience,
    /// `role` is another login role.
    #[error("it is for another login role")]
    Role,
    /// `iat` or `nbf` is in the future.
    #[error("it is not valid yet")]
    NotYetValid,
    /// `exp` is past.
    #[error("it has expired")]
    Expired,
    /// `iat` is before the verifier's memory of used tokens begins.
    #[error("it was issued before this server began to remember used tokens")]
    IssuedTooEarly,
}

/// Which part of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first.
    Header,
    /// The second.
    Claims,
    /// The third.
    Signature,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Claims => "claims part",
            Self::Signature => "signature",
        })
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `aud`: the name of the database's platform log.
    pub audience: String,
    /// `tenant`: for whom.
    pub tenant: String,
    /// `sub`: who acts.
    pub principal: String,
    /// `role`: the PostgreSQL login role that may present it.
    pub role: String,
    /// `scope`: what the application's own policies may ask for; `None` is another thing than an empty list.
    pub scopes: Option<Vec<String>>,
    /// `fleet`: the fleet that acts.
    pub fleet: Option<String>,
    /// `iat`, seconds since 1970.
    pub issued_at: u64,
    /// `nbf`, seconds since 1970.
    pub not_before: Option<u64>,
    /// `exp`, seconds since 1970: the first second in which it is not valid any more.
    pub expires_at: u64,
    /// `jti`: never used twice by one key.
    pub token_id: String,
}

/// What a token must fit to be accepted.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// This database.
    pub audience: &'a str,
    /// The login role that presents it.
    pub role: &'a str,
    /// The time, seconds since 1970.
    pub now: u64,
    /// Tokens issued in this second or before were possibly used already, and nobody remembers.
    pub issued_after: u64,
    /// The longest lifetime in seconds; above [`MAX_LIFETIME`] it counts as that.
    pub max_lifetime: u64,
}

impl Claims {
    /// Checks what does not depend on who verifies.
    ///
    /// # Errors
    /// [`TokenError::Claim`], [`TokenError::Lifetime`].
    fn check(&self) -> Result<(), TokenError> {
        let text = |name, value: &str, longest: usize| {
            let length = value.chars().count();
            if (1..=longest).contains(&length) && !value.chars().any(char::is_control) {
                Ok(())
            } else {
                Err(TokenError::Claim(name))
            }
        };
        text("aud", &self.audience, crate::name::MAX_LOG_NAME_LEN)?;
        validate_tenant(&self.tenant).map_err(|_| TokenError::Claim("tenant"))?;
        validate_principal(&self.principal)?;
        text("role", &self.role, 63)?;
        if !is_token_id(&self.token_id) {
            return Err(TokenError::Claim("jti"));
        }
        if let Some(scopes) = &self.scopes {
            let fits = |scope: &String| scope.len() <= MAX_ID_LEN && is_scope(scope);
            if scopes.len() > MAX_SCOPES || !scopes.iter().all(fits) {
                return Err(TokenError::Claim("scope"));
            }
        }
        if let Some(fleet) = &self.fleet {
            text("fleet", fleet, MAX_ID_LEN)?;
        }
        let begins = self.not_before.map_or(self.issued_at, |not_before| not_before.max(self.issued_at));
        if self.expires_at <= begins || self.expires_at - self.issued_at > MAX_LIFETIME {
            return Err(TokenError::Lifetime);
        }
        Ok(())
    }

    /// Checks that the token is good here and now.
    ///
    /// # Errors
    /// [`TokenError::Audience`], [`TokenError::Role`], [`TokenError::Lifetime`], [`TokenError::NotYetValid`],
    /// [`TokenError::Expired`], [`TokenError::IssuedTooEarly`].
    pub fn expect(&self, expected: &Expected<'_>) -> Result<(), TokenError> {
        if self.audience != expected.audience {
            return Err(TokenError::Audience);
        }
        if self.role != expected.role {
            return Err(TokenError::Role);
        }
        if self.expires_at.saturating_sub(self.issued_at) > expected.max_lifetime {
            return Err(TokenError::Lifetime);
        }
        if self.expires_at <= expected.now {
            return Err(TokenError::Expired);
        }
        let latest = expected.now.saturating_add(CLOCK_SKEW);
        if self.issued_at > latest || self.not_before.is_some_and(|not_before| not_before > latest) {
            return Err(TokenError::NotYetValid);
        }
        if self.issued_at <= expected.issued_after {
            return Err(TokenError::IssuedTooEarly);
        }
        Ok(())
    }

    /// Mints a token.
    ///
    /// # Errors
    /// [`TokenError::Claim`] and [`TokenError::Lifetime`] for claims that no database would accept, [`TokenError::KeyId`],
    /// [`TokenError::TooLong`].
    pub fn sign(&self, key: &TokenSigner) -> Result<String, TokenError> {
        self.check()?;
        let mut header = Map::new();
        for (name, value) in [("alg", "EdDSA"), ("kid", key.kid.as_str()), ("typ", "JWT")] {
            header.insert(name.to_owned(), value.into());
        }
        let mut claims = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                claims.insert(name.to_owned(), value);
            }
        };
        put("aud", Some(self.audience.as_str().into()));
        put("exp", Some(self.expires_at.into()));
        put("fleet", self.fleet.as_deref().map(Value::from));
        put("iat", Some(self.issued_at.into()));
        put("jti", Some(self.token_id.as_str().into()));
        put("nbf", self.not_before.map(Value::from));
        put("role", Some(self.role.as_str().into()));
        put("scope", self.scopes.clone().map(Value::from));
        put("sub", Some(self.principal.as_str().into()));
        put("tenant", Some(self.tenant.as_str().into()));
        let part = |object| URL_SAFE_NO_PAD.encode(Value::Object(object).to_string());
        let mut token = format!("{}.{}", part(header), part(claims));
        let signature = key.secret.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.to_bytes(), &mut token);
        if token.len() > MAX_TOKEN_LEN { Err(TokenError::TooLong) } else { Ok(token) }
    }
}

/// A token whose header was read and whose signature was not checked yet: it says which key to check with, no more.
#[derive(Clone)]
pub struct Unverified<'a> {
    /// `header.claims`, what the signature is over.
    signed: &'a str,
    claims: &'a str,
    signature: [u8; 64],
    kid: String,
}

impl<'a> Unverified<'a> {
    /// Takes a token apart and reads its header.
    ///
    /// # Errors
    /// [`TokenError::TooLong`], [`TokenError::Layout`], [`TokenError::Base64`], [`TokenError::Json`] and those of the
    /// header: [`TokenError::Algorithm`], [`TokenError::Type`], [`TokenError::HeaderMember`], [`TokenError::KeyId`];
    /// [`TokenError::Signature`] when it has not 64 bytes.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Layout)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Layout)?;
        if claims.contains('.') {
            return Err(TokenError::Layout);
        }
        let kid = read_header(&object(header, Part::Header)?)?;
        let signature = decode(signature, Part::Signature)?.try_into().map_err(|_| TokenError::Signature)?;
        Ok(Self { signed, claims, signature, kid })
    }

    /// The id of the key that it claims to be signed with.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Checks the signature, then reads the claims.
    ///
    /// # Errors
    /// [`TokenError::Signature`]; and of what is signed [`TokenError::Base64`], [`TokenError::Json`],
    /// [`TokenError::UnknownClaim`], [`TokenError::Claim`], [`TokenError::Lifetime`].
    pub fn verify(&self, key: &TokenVerifier) -> Result<Claims, TokenError> {
        key.0
            .verify_strict(self.signed.as_bytes(), &Signature::from_bytes(&self.signature))
            .map_err(|_| TokenError::Signature)?;
        let claims = read_claims(object(self.claims, Part::Claims)?)?;
        claims.check()?;
        Ok(claims)
    }
}

// Not derived: it would print the token.
impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unverified(kid {})", self.kid)
    }
}

/// A tenant's public key.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenVerifier(VerifyingKey);

impl TokenVerifier {
    /// From its 32 bytes.
    ///
    /// # Errors
    /// [`TokenError::PublicKey`] for bytes that are no point in its one encoding, and for points of small order.
    pub fn new(public_key: &[u8; 32]) -> Result<Self, TokenError> {
        let key = VerifyingKey::from_bytes(public_key).map_err(|_| TokenError::PublicKey)?;
        // A point has one encoding that is its own; `from_bytes` also takes a few others (y of the field's order and more).
        if key.is_weak() || key.to_edwards().compress().as_bytes() != public_key {
            return Err(TokenError::PublicKey);
        }
        Ok(Self(key))
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenVerifier({})", URL_SAFE_NO_PAD.encode(self.as_bytes()))
    }
}

/// A tenant's secret key, under the id by which the database knows its public half. Wiped on drop; `Debug` does not show it.
pub struct TokenSigner {
    kid: String,
    secret: SigningKey,
}

impl TokenSigner {
    /// The key that this 32-byte Ed25519 seed (RFC 8032) gives. The caller wipes its own copy of the seed.
    ///
    /// # Errors
    /// [`TokenError::KeyId`].
    pub fn from_seed(kid: &str, seed: &[u8; 32]) -> Result<Self, TokenError> {
        validate_kid(kid)?;
        Ok(Self { kid: kid.to_owned(), secret: SigningKey::from_bytes(seed) })
    }

    /// The public half: what `agd.add_tenant_key` takes.
    pub fn public_key(&self) -> [u8; 32] {
        self.secret.verifying_key().to_bytes()
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSigner({}, secret not shown)", self.kid)
    }
}

/// Checks a key id: 1 to [`MAX_ID_LEN`] characters of `A-Z a-z 0-9 . _ -`.
///
/// # Errors
/// [`TokenError::KeyId`].
pub fn validate_kid(kid: &str) -> Result<(), TokenError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=MAX_ID_LEN).contains(&kid.len()) && kid.bytes().all(allowed) { Ok(()) } else { Err(TokenError::KeyId) }
}

/// Checks a principal: 1 to [`MAX_PRINCIPAL_CHARS`] characters that are all seen as what they are, by the rules of a cause
/// ([`crate::cause`]): no control, nothing without a shape, nothing that turns text round or that Unicode does not assign, and
/// of white space the space alone. Not only spaces.
///
/// # Errors
/// [`TokenError::Claim`].
pub fn validate_principal(principal: &str) -> Result<(), TokenError> {
    let length = principal.chars().count();
    let is_seen = principal.chars().all(is_plain) && principal.chars().any(|character| character != ' ');
    if (1..=MAX_PRINCIPAL_CHARS).contains(&length) && is_seen { Ok(()) } else { Err(TokenError::Claim("sub")) }
}

/// 1 to [`MAX_ID_LEN`] characters of base64url: a random number or a UUID, in any usual spelling.
fn is_token_id(id: &str) -> bool {
    (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// A scope-token of RFC 6749, section 3.3: printable ASCII without space, quote and backslash.
fn is_scope(scope: &str) -> bool {
    !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'))
}

/// Canonical only: no padding, no trailing bits, no other alphabet, no white space.
fn decode(text: &str, part: Part) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Base64(part))
}

fn object(text: &str, part: Part) -> Result<Members, TokenError> {
    serde_json::from_slice(&decode(text, part)?).map_err(|_| TokenError::Json(part))
}

/// A JSON object in which each member stands once. Objects inside of it are nobody's valid claim, so they need no such look.
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

/// The header is read to the last member before any key is looked at. Returns `kid`.
fn read_header(header: &Members) -> Result<String, TokenError> {
    let text = |name: &str| header.0.get(name).map(|value| value.as_str().unwrap_or_default());
    if text("alg") != Some("EdDSA") {
        return Err(TokenError::Algorithm);
    }
    if text("typ").is_some_and(|typ| typ != "JWT") {
        return Err(TokenError::Type);
    }
    if header.0.keys().any(|name| !matches!(name.as_str(), "alg" | "kid" | "typ")) {
        return Err(TokenError::HeaderMember);
    }
    let kid = text("kid").ok_or(TokenError::KeyId)?;
    validate_kid(kid)?;
    Ok(kid.to_owned())
}

fn read_claims(claims: Members) -> Result<Claims, TokenError> {
    let mut claims = claims.0;
    let mut text = |name: &'static str| match claims.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(TokenError::Claim(name)),
    };
    let must = |name, value: Option<String>| value.ok_or(TokenError::Claim(name));
    let audience = must("aud", text("aud")?)?;
    let tenant = must("tenant", text("tenant")?)?;
    let principal = must("sub", text("sub")?)?;
    let role = must("role", text("role")?)?;
    let token_id = must("jti", text("jti")?)?;
    let fleet = text("fleet")?;
    // Whole numbers alone: RFC 7519 would allow fractions, which nobody needs.
    let mut time = |name: &'static str| match claims.remove(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(TokenError::Claim(name)),
    };
    let issued_at = time("iat")?.ok_or(TokenError::Claim("iat"))?;
    let not_before = time("nbf")?;
    let expires_at = time("exp")?.ok_or(TokenError::Claim("exp"))?;
    let scopes = match claims.remove("scope") {
        None => None,
        Some(Value::Array(scopes)) => {
            let scope = |scope: Value| match scope {
                Value::String(scope) => Ok(scope),
                _ => Err(TokenError::Claim("scope")),
            };
            Some(scopes.into_iter().map(scope).collect::<Result<Vec<_>, _>>()?)
        }
        Some(_) => return Err(TokenError::Claim("scope")),
    };
    if !claims.is_empty() {
        return Err(TokenError::UnknownClaim);
    }
    Ok(Claims { audience, tenant, principal, role, scopes, fleet, issued_at, not_before, expires_at, token_id })
}
