//! What an origin tells about its log.
//!
//! Owns the reading of origins that `agd_core::name` writes: a platform log of any incarnation, or a tenant's log under it.
//! Promises that an origin has one reading.

use agd_core::name;

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// The log of a whole database; its origin is the log name, or `<log name>/i<n>` for a later incarnation.
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
    /// Reads an origin. `None` when it is neither a platform log's nor `<platform log>/t/<tenant>`.
    pub fn of(origin: &'a str) -> Option<Self> {
        let is_platform = |origin| name::validate_log_name(name::split_incarnation(origin).0).is_ok();
        if is_platform(origin) {
            return Some(Self::Platform);
        }
        // `t` is reserved in log names, so only one place can be the mark.
        let (platform, tenant) = origin.rsplit_once("/t/")?;
        if !is_platform(platform) {
            return None;
        }
        name::validate_tenant(tenant).ok()?;
        Some(Self::Tenant { platform, tenant })
    }

    /// Which incarnation of its database's logs the log of this origin belongs to: 1, 2, …
    pub fn incarnation(self, origin: &str) -> u32 {
        let platform = match self {
            Self::Platform => origin,
            Self::Tenant { platform, .. } => platform,
        };
        name::split_incarnation(platform).1
    }

    /// The tenant's name, none for a platform log.
    pub fn tenant(self) -> Option<&'a str> {
        match self {
            Self::Platform => None,
            Self::Tenant { tenant, .. } => Some(tenant),
        }
    }
}

/// Whether a key named `key_name` speaks for `origin`: it is the log of that name, a later incarnation of it, or one of
/// their tenants' logs.
///
/// Every log of a database is signed with the same key under the log's own origin as the key's name. So one key file and
/// one `log` line of a policy stand for the platform log, all its tenants, and all that follows when it begins anew.
pub fn speaks_for(key_name: &str, origin: &str) -> bool {
    let platform_of = |platform: &str| platform == key_name || name::split_incarnation(platform).0 == key_name;
    match Kind::of(origin) {
        Some(Kind::Platform) => platform_of(origin),
        Some(Kind::Tenant { platform, .. }) => origin == key_name || platform_of(platform),
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
        assert_eq!(Kind::of("agd-1/app/i2"), Some(Kind::Platform));
        let tenant = Kind::Tenant { platform: "agd-1/app/i2", tenant: "acme" };
        assert_eq!(Kind::of("agd-1/app/i2/t/acme"), Some(tenant));
        for neither in [
            "",
            "agd-1/app/t/",
            "agd-1/app/t/a/b",
            "agd-1/app/i1",
            "agd-1/app/i02",
            "agd-1/app/i2/i3",
            "agd-1/app/i2/x",
            "agd-1/app/t/acme/i2",
            "../x",
            "A",
            "agd-1/t/x/t/y",
        ] {
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
        assert!(speaks_for("a", "a/i2"));
        assert!(speaks_for("a", "a/i13/t/x"));
        assert!(speaks_for("a/i2", "a/i2/t/x"));
        assert!(!speaks_for("a/i2", "a"));
        assert!(!speaks_for("a/i2", "a/i3"));
        assert!(!speaks_for("a/t/x", "a/i2/t/x"));
        assert!(!speaks_for("a", "b/i2"));
    }
}
