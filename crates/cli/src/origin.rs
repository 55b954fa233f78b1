//! What an origin tells about its log.
//!
//! Owns the reading of origins that `agd_core::name` writes: a platform log, or a tenant's log under it. Promises that an
//! origin has one reading. Later incarnations of a log (`…/i2`) have none here: this version neither publishes nor
//! verifies them, and says so.

use agd_core::name;

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// The log of a whole database; its origin is the log name.
    Platform,
    /// One tenant's log.
    Tenant {
        /// The origin of the platform log that covers it.
        platform: &'a str,
        /// The tenant's name.
        tenant: &'a str,
    },
}

impl<'a> Kind<'a> {
    /// Reads an origin. `None` when it is neither a log name nor `<log name>/t/<tenant>`.
    pub fn of(origin: &'a str) -> Option<Self> {
        if name::validate_log_name(origin).is_ok() {
            return Some(Self::Platform);
        }
        // `t` is reserved in log names, so only one place can be the mark.
        let (platform, tenant) = origin.rsplit_once("/t/")?;
        name::validate_log_name(platform).ok()?;
        name::validate_tenant(tenant).ok()?;
        Some(Self::Tenant { platform, tenant })
    }

    /// The tenant's name, none for a platform log.
    pub fn tenant(self) -> Option<&'a str> {
        match self {
            Self::Platform => None,
            Self::Tenant { tenant, .. } => Some(tenant),
        }
    }
}

/// Whether a key named `key_name` speaks for `origin`: it is the log of that name, or one of its tenants' logs.
///
/// Every log of a database is signed with the same key under the log's own origin as the key's name. So one key file and
/// one `log` line of a policy stand for the platform log and all its tenants.
pub fn speaks_for(key_name: &str, origin: &str) -> bool {
    match Kind::of(origin) {
        Some(Kind::Platform) => origin == key_name,
        Some(Kind::Tenant { platform, .. }) => origin == key_name || platform == key_name,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_reading() {
        assert_eq!(Kind::of("agd-1/app"), Some(Kind::Platform));
        let tenant = Kind::Tenant { platform: "agd-1/app", tenant: "acme" };
        assert_eq!(Kind::of("agd-1/app/t/acme"), Some(tenant));
        for neither in
            ["", "agd-1/app/t/", "agd-1/app/t/a/b", "agd-1/app/i2", "agd-1/app/t/acme/i2", "../x", "A", "agd-1/t/x/t/y"]
        {
            assert_eq!(Kind::of(neither), None, "{neither}");
        }
    }

    #[test]
    fn a_key_speaks_for_its_log_and_the_tenants_under_it_only() {
        assert!(speaks_for("a", "a"));
        assert!(speaks_for("a", "a/t/x"));
        assert!(speaks_for("a/t/x", "a/t/x"));
        assert!(!speaks_for("a/t/x", "a"));
        assert!(!speaks_for("a", "ab"));
        assert!(!speaks_for("a", "b/t/x"));
        assert!(!speaks_for("a", "a/b"));
    }
}
