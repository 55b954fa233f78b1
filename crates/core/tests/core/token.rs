//! Tokens against the vectors of another implementation, and against what nobody wrote a vector for.

use std::path::Path;

use agd_core::token::{
    CLOCK_SKEW, Claims, Expected, MAX_LIFETIME, MAX_TOKEN_LEN, TokenError, TokenSigner, TokenVerifier, Unverified,
    validate_kid, validate_principal,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::Value;

const NOW: u64 = 1_795_210_265;

fn claims() -> Claims {
    Claims {
        audience: "agd-7/db".into(),
        tenant: "acme".into(),
        principal: "writer-1".into(),
        role: "app".into(),
        scopes: None,
        fleet: None,
        issued_at: NOW,
        not_before: None,
        expires_at: NOW + 60,
        token_id: "0f8b6a52".into(),
    }
}

fn signer() -> TokenSigner {
    TokenSigner::from_seed("k1", &[7; 32]).unwrap()
}

fn expected() -> Expected<'static> {
    Expected { audience: "agd-7/db", role: "app", now: NOW, issued_after: NOW - 100, max_lifetime: MAX_LIFETIME }
}

fn accept(token: &str, key: &[u8; 32], expected: &Expected<'_>) -> Result<Claims, TokenError> {
    let claims = Unverified::parse(token)?.verify(&TokenVerifier::new(key)?)?;
    claims.expect(expected)?;
    Ok(claims)
}

/// The vectors of `tests/golden/generate.py`: 155 tokens, each with its claims or the one reason to refuse it.
#[test]
fn the_golden_tokens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokens.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |value: &Value, name: &str| value[name].as_str().map(str::to_owned);
    let bytes = |name: &str| <[u8; 32]>::try_from(hex::decode(text(&vectors, name).unwrap()).unwrap()).unwrap();
    let key = bytes("public_key");
    let (audience, role) =
        (text(&vectors["expected"], "audience").unwrap(), text(&vectors["expected"], "role").unwrap());
    let number = |name: &str| vectors["expected"][name].as_u64().unwrap();
    let expected = Expected {
        audience: &audience,
        role: &role,
        now: number("now"),
        issued_after: number("issued_after"),
        max_lifetime: number("max_lifetime"),
    };
    let tokens = vectors["tokens"].as_array().unwrap();
    assert!(tokens.len() >= 150);
    for vector in tokens {
        let name = text(vector, "name").unwrap();
        let token = text(vector, "token").unwrap();
        let found = accept(&token, &key, &expected);
        if let Some(error) = text(vector, "error") {
            assert_eq!(found.map_err(|found| format!("{found:?}")), Err(error), "{name}");
            continue;
        }
        let said = &vector["claims"];
        let wanted = Claims {
            audience: text(said, "aud").unwrap(),
            tenant: text(said, "tenant").unwrap(),
            principal: text(said, "sub").unwrap(),
            role: text(said, "role").unwrap(),
            scopes: said["scope"].as_array().map(|all| all.iter().map(|s| s.as_str().unwrap().to_owned()).collect()),
            fleet: text(said, "fleet"),
            issued_at: said["iat"].as_u64().unwrap(),
            not_before: said["nbf"].as_u64(),
            expires_at: said["exp"].as_u64().unwrap(),
            token_id: text(said, "jti").unwrap(),
        };
        assert_eq!(found, Ok(wanted), "{name}");
        assert_eq!(Unverified::parse(&token).unwrap().kid(), text(&vectors, "kid").unwrap());
    }
    // What we mint, the other implementation's key verifies, and byte for byte what it would have minted in our order.
    let signer = TokenSigner::from_seed("acme-2026", &bytes("seed")).unwrap();
    assert_eq!(signer.public_key(), key);
    let minted = Claims { issued_at: number("now"), expires_at: number("now") + 60, ..claims() }.sign(&signer).unwrap();
    let header = URL_SAFE_NO_PAD.decode(minted.split('.').next().unwrap()).unwrap();
    assert_eq!(header, br#"{"alg":"EdDSA","kid":"acme-2026","typ":"JWT"}"#);
    let body = URL_SAFE_NO_PAD.decode(minted.split('.').nth(1).unwrap()).unwrap();
    let written = format!(
        r#"{{"aud":"agd-7/db","exp":{},"iat":{NOW},"jti":"0f8b6a52","role":"app","sub":"writer-1","tenant":"acme"}}"#,
        NOW + 60
    );
    assert_eq!(String::from_utf8(body).unwrap(), written);
}

#[test]
fn keys_that_anybody_can_sign_for_are_refused() {
    // The eight points of small order, and encodings of points whose y is not below the field's order.
    let small = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    ];
    for hex in small {
        let key: [u8; 32] = hex::decode(hex).unwrap().try_into().unwrap();
        assert_eq!(TokenVerifier::new(&key), Err(TokenError::PublicKey), "{hex}");
    }
    // Of numbers that are no y of any point, about half of all are.
    let not_on_the_curve = (2..40u8).filter(|y| {
        let mut key = [0; 32];
        key[0] = *y;
        TokenVerifier::new(&key).is_err()
    });
    assert!(not_on_the_curve.count() > 5);
    assert!(TokenVerifier::new(&signer().public_key()).is_ok());
}

#[test]
fn what_no_database_would_accept_is_not_minted() {
    let refused = |claims: Claims| claims.sign(&signer()).unwrap_err();
    assert_eq!(refused(Claims { tenant: "Acme".into(), ..claims() }), TokenError::Claim("tenant"));
    assert_eq!(refused(Claims { principal: "a\u{7f}".into(), ..claims() }), TokenError::Claim("sub"));
    assert_eq!(refused(Claims { principal: "ü".repeat(129), ..claims() }), TokenError::Claim("sub"));
    assert_eq!(refused(Claims { role: String::new(), ..claims() }), TokenError::Claim("role"));
    assert_eq!(refused(Claims { token_id: "a.b".into(), ..claims() }), TokenError::Claim("jti"));
    assert_eq!(refused(Claims { scopes: Some(vec!["a\"b".into()]), ..claims() }), TokenError::Claim("scope"));
    assert_eq!(refused(Claims { expires_at: NOW + MAX_LIFETIME + 1, ..claims() }), TokenError::Lifetime);
    assert_eq!(refused(Claims { expires_at: NOW, ..claims() }), TokenError::Lifetime);
    assert_eq!(refused(Claims { not_before: Some(NOW + 60), ..claims() }), TokenError::Lifetime);
    // Everything at its longest is too much.
    let fullest = Claims {
        audience: "a".repeat(128),
        tenant: "t".repeat(63),
        role: "r".repeat(63),
        principal: "\u{1f600}".repeat(128),
        scopes: Some(vec!["s".repeat(64); 32]),
        token_id: "j".repeat(64),
        ..claims()
    };
    assert_eq!(refused(fullest), TokenError::TooLong);
    assert_eq!(TokenSigner::from_seed("a b", &[7; 32]).map(|_| ()), Err(TokenError::KeyId));
    assert_eq!((validate_kid("a.b_c-1"), validate_kid("")), (Ok(()), Err(TokenError::KeyId)));
    assert_eq!((validate_principal("ü"), validate_principal("\n")), (Ok(()), Err(TokenError::Claim("sub"))));
    // The longest that there can be still fits: what is minted is accepted.
    let longest = Claims { principal: "\u{1f600}".repeat(128), role: "r".repeat(63), ..claims() };
    assert!(longest.sign(&signer()).unwrap().len() < MAX_TOKEN_LEN);
}

#[test]
fn a_stricter_lifetime_is_a_stricter_lifetime() {
    let token = claims().sign(&signer()).unwrap();
    let key = signer().public_key();
    let within = |max_lifetime| accept(&token, &key, &Expected { max_lifetime, ..expected() }).map(|_| ());
    assert_eq!((within(60), within(59), within(u64::MAX)), (Ok(()), Err(TokenError::Lifetime), Ok(())));
}

#[test]
fn every_second_of_a_token_counts() {
    let token = Claims { not_before: Some(NOW + 10), ..claims() }.sign(&signer()).unwrap();
    let key = signer().public_key();
    let at = |now| accept(&token, &key, &Expected { now, ..expected() }).map(|_| ());
    assert_eq!(at(NOW + 10 - CLOCK_SKEW - 1), Err(TokenError::NotYetValid));
    assert_eq!((at(NOW + 10 - CLOCK_SKEW), at(NOW + 59)), (Ok(()), Ok(())));
    assert_eq!((at(NOW + 60), at(u64::MAX)), (Err(TokenError::Expired), Err(TokenError::Expired)));
    let after =
        |issued_after| accept(&token, &key, &Expected { now: NOW + 30, issued_after, ..expected() }).map(|_| ());
    assert_eq!((after(NOW - 1), after(NOW)), (Ok(()), Err(TokenError::IssuedTooEarly)));
}

/// Errors and debug output end up in logs.
#[test]
fn nothing_prints_a_token_or_a_secret() {
    let token = claims().sign(&signer()).unwrap();
    let shown = format!("{:?} {:?}", Unverified::parse(&token).unwrap(), signer());
    for part in token.split('.') {
        assert!(!shown.contains(part), "{shown}");
    }
    assert!(!shown.contains(&hex::encode([7; 32])) && !shown.contains("7, 7"), "{shown}");
}

proptest! {
    #[test]
    fn what_is_minted_is_accepted_as_it_is(
        tenant in "[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?",
        principal in "[ -~\u{a1}-\u{ac}\u{ae}-\u{24f}\u{4e00}-\u{9fff}\u{1f600}-\u{1f64f}]{0,63}[a-z]",
        role in "[^\\p{Cc}]{1,15}",
        token_id in "[A-Za-z0-9_-]{1,64}",
        scopes in proptest::option::of(proptest::collection::vec("[!#-\\[\\]-~]{1,20}", 0..8)),
        lifetime in 2..=MAX_LIFETIME,
        kid in "[A-Za-z0-9._-]{1,64}",
        seed in any::<[u8; 32]>(),
    ) {
        // Names that are another tenant's number or uuid are refused elsewhere.
        prop_assume!(agd_core::name::validate_tenant(&tenant).is_ok());
        let wanted = Claims { tenant, principal, role, token_id, scopes, expires_at: NOW + lifetime, not_before: Some(NOW + 1), ..claims() };
        let signer = TokenSigner::from_seed(&kid, &seed).unwrap();
        let token = wanted.sign(&signer).unwrap();
        prop_assert!(token.len() <= MAX_TOKEN_LEN);
        let parsed = Unverified::parse(&token).unwrap();
        prop_assert_eq!(parsed.kid(), kid);
        prop_assert_eq!(parsed.verify(&TokenVerifier::new(&signer.public_key()).unwrap()), Ok(wanted.clone()));
        prop_assert_eq!(wanted.expect(&Expected { role: &wanted.role, ..expected() }), Ok(()));
    }

    #[test]
    fn one_byte_changed_is_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let token = claims().sign(&signer()).unwrap();
        let mut bytes = token.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        if let Ok(changed) = String::from_utf8(bytes) {
            prop_assert!(accept(&changed, &signer().public_key(), &expected()).is_err());
        }
    }

    #[test]
    fn a_part_left_out_is_refused(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let token = claims().sign(&signer()).unwrap();
        let (from, to) = (from.index(token.len()), to.index(token.len()));
        prop_assume!(from < to);
        let shorter = format!("{}{}", &token[..from], &token[to..]);
        prop_assert!(accept(&shorter, &signer().public_key(), &expected()).is_err());
    }

    #[test]
    fn another_key_does_not_verify(seed in any::<[u8; 32]>()) {
        prop_assume!(seed != [7; 32]);
        let token = claims().sign(&signer()).unwrap();
        let other = TokenSigner::from_seed("k1", &seed).unwrap().public_key();
        prop_assert_eq!(accept(&token, &other, &expected()), Err(TokenError::Signature));
    }

    #[test]
    fn no_text_is_a_token_by_chance(text in "\\PC*") {
        prop_assert!(accept(&text, &signer().public_key(), &expected()).is_err());
    }

    #[test]
    fn no_json_is_a_header_or_claims_by_chance(header in "\\PC{0,80}", claims in "\\PC{0,80}") {
        // Signed rightly, so that the reader of claims sees them too.
        for (header, claims) in [(header.as_str(), claims.as_str()), (r#"{"alg":"EdDSA","kid":"k1"}"#, claims.as_str())] {
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
            let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
            let signature = ed25519_dalek::Signer::sign(&secret, signed.as_bytes()).to_bytes();
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
            prop_assert!(accept(&token, &signer().public_key(), &expected()).is_err());
        }
    }
}
