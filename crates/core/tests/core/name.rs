use agd_core::name::{
    MAX_LOG_NAME_LEN, NameError, default_log_name, incarnation_origin, split_incarnation, tenant_origin,
    validate_log_name, validate_origin, validate_tenant,
};
use proptest::prelude::*;

#[test]
fn tenants() {
    let longest = "a".repeat(63);
    for good in ["a", "0", "acme", "a-b_c", "a--b", "a__b", "9lives", &longest] {
        assert_eq!(validate_tenant(good), Ok(()), "{good}");
    }
    // One number, one uuid: one tenant.
    let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    for good in ["7", "0", "1000", "18446744073709551616", uuid, "0face", "0xyz", "0b2", "0o8", "1e3", "7-8", "7a"] {
        assert_eq!(validate_tenant(good), Ok(()), "{good}");
    }
    let hyphens = ["a0eebc999c0b4ef8bb6d6bb9bd380a11", "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11"];
    for bad in ["007", "00", "1_000", "0x7", "0xcafe", "0o17", "0b101", "0x_f", hyphens[0], hyphens[1]] {
        assert_eq!(validate_tenant(bad), Err(NameError::Ambiguous), "{bad}");
    }
    let too_long = "a".repeat(64);
    for bad in [
        "", "-a", "a-", "_a", "a_", "-", "A", "aCme", "a b", "a ", " a", "a.b", "a/b", "a:b", "a'b", "a\"b", "é",
        "асме", "a\n", "a\0", "a+b", "..", &too_long,
    ] {
        assert_eq!(validate_tenant(bad), Err(NameError::Tenant), "{bad:?}");
    }
}

#[test]
fn log_names() {
    for good in ["a", "agd-7/postgres", "log.example.com/a/b", "-", "a-", "x..y", "t", "tile", "i2", "a/it", "a/i"] {
        assert_eq!(validate_log_name(good), Ok(()), "{good}");
    }
    let too_long = "a".repeat(MAX_LOG_NAME_LEN + 1);
    for (bad, error) in [
        ("", NameError::Length),
        (&too_long, NameError::Length),
        ("A", NameError::Character),
        ("a_b", NameError::Character),
        ("a b", NameError::Character),
        ("a+b", NameError::Character),
        ("a\\b", NameError::Character),
        ("a\n", NameError::Character),
        ("é", NameError::Character),
        ("/a", NameError::Segment),
        ("a/", NameError::Segment),
        ("a//b", NameError::Segment),
        (".", NameError::Segment),
        ("a/..", NameError::Segment),
        ("../a", NameError::Segment),
        ("a/./b", NameError::Segment),
        ("a/...", NameError::Segment),
        ("a/t/acme", NameError::Reserved),
        ("a/t", NameError::Reserved),
        ("a/i2", NameError::Reserved),
        ("a/tile/0", NameError::Reserved),
        ("a/checkpoint", NameError::Reserved),
        ("a/checkpoints", NameError::Reserved),
        ("a/timestamps", NameError::Reserved),
    ] {
        assert_eq!(validate_log_name(bad), Err(error), "{bad:?}");
    }
}

#[test]
fn default_names() {
    for (database, name) in [
        ("postgres", "agd-7/postgres"),
        ("Sales_EU", "agd-7/sales-eu-20ba09a9"),
        ("a b/c", "agd-7/a-b-c-539138d5"),
        ("é", "agd-7/---4a99557e"),
        (".", "agd-7/--cdb4ee2a"),
        ("..", "agd-7/---5ec1f7e7"),
        ("a.b", "agd-7/a.b"),
        ("", "agd-7/--e3b0c442"),
        ("T", "agd-7/t--e632b709"),
        ("i2", "agd-7/i2--420fce31"),
        ("tile", "agd-7/tile--8b668b89"),
    ] {
        assert_eq!(default_log_name(7, database), name, "{database:?}");
    }
    assert_eq!(default_log_name(u64::MAX, "x"), "agd-18446744073709551615/x");
    assert_ne!(default_log_name(7, "a_b"), default_log_name(7, "a-b"));
}

#[test]
fn origins() {
    assert_eq!(tenant_origin("agd-7/db", "acme"), "agd-7/db/t/acme");
    assert_eq!(incarnation_origin("agd-7/db", 0), "agd-7/db");
    assert_eq!(incarnation_origin("agd-7/db", 1), "agd-7/db");
    assert_eq!(incarnation_origin("agd-7/db", 2), "agd-7/db/i2");
    let too_long = "a".repeat(256);
    for (bad, error) in [
        ("", NameError::Length),
        (&too_long, NameError::Length),
        ("a\\b", NameError::Character),
        ("a b", NameError::Character),
        ("a\0", NameError::Character),
        ("a/../b", NameError::Segment),
        ("/etc", NameError::Segment),
        ("a/", NameError::Segment),
    ] {
        assert_eq!(validate_origin(bad), Err(error), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn every_default_name_is_valid(system in any::<u64>(), database in any::<String>(), near in "[tile.i0-9_A-Z]{0,70}") {
        for database in [database, near] {
            let name = default_log_name(system, &database);
            prop_assert_eq!(validate_log_name(&name), Ok(()), "{:?} from {:?}", name, database);
        }
    }

    #[test]
    fn every_origin_made_of_valid_names_is_valid(
        log in "[a-z0-9.-]{1,20}(/[a-z0-9.-]{1,20}){0,3}", tenant in "[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", n in any::<u32>()
    ) {
        prop_assume!(validate_tenant(&tenant) != Err(NameError::Ambiguous));
        prop_assert_eq!(validate_tenant(&tenant), Ok(()));
        if validate_log_name(&log).is_ok() {
            let origin = tenant_origin(&incarnation_origin(&log, n), &tenant);
            prop_assert_eq!(validate_origin(&origin), Ok(()));
            prop_assert_eq!(validate_origin(&incarnation_origin(&origin, n)), Ok(()));
            // No log's own name can be another log's tenant or incarnation.
            prop_assert_eq!(validate_log_name(&origin).is_err(), true);
        }
    }

    #[test]
    fn no_name_panics(name in any::<String>()) {
        let safe = |name: &str| !name.starts_with('/') && !name.split('/').any(|s| s.is_empty() || s == "." || s == "..");
        if validate_log_name(&name).is_ok() || validate_origin(&name).is_ok() {
            prop_assert!(safe(&name));
        }
        if validate_tenant(&name).is_ok() {
            prop_assert!(safe(&name) && !name.contains('/'));
        }
    }
}

#[test]
fn incarnations() {
    for incarnation in [1, 2, 3, 10, 4_294_967_295] {
        for log_name in ["a", "i2", "agd-7/app", "agd-7/app/i"] {
            let origin = incarnation_origin(log_name, incarnation);
            assert_eq!(split_incarnation(&origin), (log_name, incarnation), "{origin}");
        }
    }
    for plain in ["a/i1", "a/i02", "a/i", "a/i2x", "a/i-2", "a/i+2", "a/i4294967296", "a/i2/t/x", "i2", ""] {
        assert_eq!(split_incarnation(plain), (plain, 1), "{plain}");
    }
}
