//! The mint vector: where a fleet's name comes from (LOCK-FLEET-1).
//!
//! `agd-fleet-v1:<tenant>:<template>@<version>:<hex sha256 of causeNormalised>:<generation>`. Promises that no two different
//! fleets share a vector: each part is of characters that are neither `:` nor `@`, by the rules checked here, so the string
//! can be taken apart in one way only.

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::cause;
use crate::merkle::{HASH_SIZE, Hash};
use crate::name::validate_tenant;

/// What every vector begins with.
const PREFIX: &str = "agd-fleet-v1";

/// Hexadecimal digits of an id: LOCK-FLEET-1's `truncate_hex(16)`.
const ID_DIGITS: usize = 16;

/// Why a fleet cannot be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VectorError {
    /// Not a tenant's name.
    #[error("that is no tenant's name")]
    Tenant,
    /// Not a template's name: the same characters as a tenant's.
    #[error("that is no template's name")]
    Template,
    /// Versions and generations are counted from 1.
    #[error("versions and generations are counted from 1")]
    Zero,
    /// The cause is not normalised.
    #[error("the cause is not in its normal form")]
    Cause,
}

/// What a fleet is named by.
///
/// ```
/// use agd_core::fleet::Vector;
/// let vector = Vector::new("acme", "standard", 1, "onboarding of acme", 1).unwrap();
/// assert!(vector.to_string().starts_with("agd-fleet-v1:acme:standard@1:"));
/// assert_eq!(vector.fleet_id().len(), 16);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Vector {
    tenant: String,
    template: String,
    version: u32,
    cause_digest: Hash,
    generation: u32,
}

impl Vector {
    /// From a fleet's parts; `cause` as [`cause::normalised`] gives it.
    ///
    /// # Errors
    /// [`VectorError`].
    pub fn new(tenant: &str, template: &str, version: u32, cause: &str, generation: u32) -> Result<Self, VectorError> {
        validate_tenant(tenant).map_err(|_| VectorError::Tenant)?;
        validate_tenant(template).map_err(|_| VectorError::Template)?;
        if version == 0 || generation == 0 {
            return Err(VectorError::Zero);
        }
        if !cause::is_normalised(cause) {
            return Err(VectorError::Cause);
        }
        let cause_digest = Sha256::digest(cause.as_bytes()).into();
        Ok(Self { tenant: tenant.into(), template: template.into(), version, cause_digest, generation })
    }

    /// SHA-256 of the normalised cause.
    pub fn cause_digest(&self) -> &Hash {
        &self.cause_digest
    }

    /// SHA-256 of the vector.
    pub fn digest(&self) -> Hash {
        Sha256::digest(self.to_string().as_bytes()).into()
    }

    /// The fleet's id: the first 16 hexadecimal digits of the digest.
    pub fn fleet_id(&self) -> String {
        hex(&self.digest()[..ID_DIGITS / 2])
    }
}

/// The string that is hashed.
impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, template, version, cause_digest, generation } = self;
        write!(f, "{PREFIX}:{tenant}:{template}@{version}:{}:{generation}", hex(cause_digest))
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(2 * HASH_SIZE);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
