use std::{fs, time::Duration};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto, encode, jwk::Jwk};
use serde_json::{Value, json};

use super::*;
use crate::{base::document_id::DocumentId, config::scopes::Scope};

fn client() -> Client {
    Client { address: Some([203, 0, 113, 9].into()), ..Client::default() }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs()
}

fn policy(auth: &config::Auth) -> Policy {
    Policy::load(auth, false).expect("loads")
}

#[test]
fn without_a_mode_only_clients_of_this_machine_are_admitted() {
    let unset = policy(&config::Auth::default());
    assert_eq!(
        unset.admit(&Tokens::default(), None, client()).expect_err("remote"),
        Refusal::Remote
    );
    let local =
        Client { address: Some([127, 0, 0, 1].into()), is_local: true, ..Client::default() };
    assert!(unset.admit(&Tokens::default(), None, local).expect("local").rights.admin);
    let forwarded = Client { address: Some([127, 0, 0, 1].into()), ..Client::default() };
    assert_eq!(
        unset.admit(&Tokens::default(), None, forwarded).expect_err("forwarded"),
        Refusal::Remote
    );
}

#[test]
fn a_token_gives_its_scopes_until_it_expires_or_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens");
    let document = DocumentId::random();
    let (secret, token) = tokens::generate("phone", vec![Scope::Read(Some(document))], None);
    let (over, mut old) = tokens::generate("phone", vec![Scope::Write(None)], None);
    old.expires = Some(SystemTime::now() - Duration::from_secs(1));
    tokens::write(&file, vec![token.clone(), old], folder.path()).expect("written");
    let auth = config::Auth { mode: AuthMode::Token, tokens: file.clone(), ..Default::default() };
    let auth = Auth::new(policy(&auth), LastUse::new(folder.path(), folder.path().into()));
    assert_eq!(auth.admit(None, client()).expect_err("none"), Refusal::NoToken);
    assert_eq!(auth.admit(Some("tonk_x"), client()).expect_err("other"), Refusal::Unknown);
    assert_eq!(auth.admit(Some(&over), client()).expect_err("over"), Refusal::Expired);
    let access = auth.admit(Some(&secret), client()).expect("admitted");
    assert_eq!(&*access.principal.0, "token:phone");
    assert!(access.rights.may_read(document) && !access.rights.may_write(document));

    let wider = tokens::Token { scopes: vec![Scope::Write(None)], ..token };
    tokens::write(&file, vec![wider], folder.path()).expect("written");
    let config = config::Auth { mode: AuthMode::Token, tokens: file.clone(), ..Default::default() };
    auth.set(policy(&config));
    let again = auth.admit_again(&access, client()).expect("still in");
    assert!(again.rights.may_write(document));
    tokens::write(&file, Vec::new(), folder.path()).expect("written");
    auth.set(policy(&config));
    assert_eq!(auth.admit_again(&access, client()).expect_err("revoked"), Refusal::Unknown);
}

#[test]
fn a_client_without_a_token_has_the_anonymous_scopes_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens");
    tokens::write(&file, Vec::new(), folder.path()).expect("written");
    let auth = config::Auth {
        mode: AuthMode::Token,
        tokens: file,
        anonymous: vec![Scope::Download],
        ..Default::default()
    };
    let access = policy(&auth).admit(&Tokens::default(), None, client()).expect("admitted");
    assert!(access.rights.download && !access.rights.may_sync() && !access.rights.upload);
    assert_eq!(
        policy(&auth).admit(&Tokens::default(), Some("wrong"), client()).expect_err("wrong"),
        Refusal::Unknown
    );
}

// Generated with openssl for these tests only.
const ED_PRIVATE: &str = include_str!("testdata/ed25519.pem");
const ED_PUBLIC: &str = include_str!("testdata/ed25519.pub.pem");
const EC_PRIVATE: &str = include_str!("testdata/p256.pem");
const EC_PUBLIC: &str = include_str!("testdata/p256.pub.pem");
const RSA_PRIVATE: &str = include_str!("testdata/rsa.pem");
const RSA_PUBLIC: &str = include_str!("testdata/rsa.pub.pem");
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn jwt(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    // Loading keys registers the tests' signer.
    jwt_policy(ED_PUBLIC, "", "").expect("keys");
    encode(&Header::new(algorithm), claims, key).expect("signed")
}

/// A part of a token: JSON in base64url.
fn part(content: &Value) -> String {
    let token = jwt(Algorithm::HS256, &EncodingKey::from_secret(SECRET), content);
    token.split('.').nth(1).expect("a payload").to_owned()
}

/// A token with this header, signed with the tests' Ed25519 key.
fn ed25519_jwt(header: &Value, claims: &Value) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_ed_pem(ED_PRIVATE.as_bytes()).expect("a key");
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).expect("signed");
    format!("{message}.{signature}")
}

fn signers() -> Vec<(Algorithm, EncodingKey)> {
    vec![
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(ED_PRIVATE.as_bytes()).expect("a key")),
        (Algorithm::ES256, EncodingKey::from_ec_pem(EC_PRIVATE.as_bytes()).expect("a key")),
        (Algorithm::RS256, EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()).expect("a key")),
        (Algorithm::HS256, EncodingKey::from_secret(SECRET)),
    ]
}

fn jwt_policy(keys: &str, issuer: &str, audience: &str) -> Result<Policy, AuthError> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    fs::write(&file, keys).expect("written");
    Policy::load(
        &config::Auth {
            mode: AuthMode::Jwt,
            jwt_keys: file,
            jwt_issuer: issuer.to_owned(),
            jwt_audience: audience.to_owned(),
            ..Default::default()
        },
        false,
    )
}

fn jwks() -> String {
    let k = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";
    json!({ "keys": [
        { "kty": "oct", "k": k, "alg": "HS256", "kid": "one" },
        { "kty": "OKP", "crv": "Ed25519", "use": "sig",
          "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" },
    ] })
    .to_string()
}

#[test]
fn a_jwks_may_name_the_algorithm_of_an_ed25519_key_eddsa_or_ed25519() {
    let claims = json!({ "sub": "ann", "exp": now() + 60, "scope": "sync:read" });
    let (_, key) = signers().swap_remove(0);
    let token = jwt(Algorithm::EdDSA, &key, &claims);
    let key = DecodingKey::from_ed_pem(ED_PUBLIC.as_bytes()).expect("a key");
    let jwk = Jwk::from_decoding_key(&key, None).expect("a JWK");
    for (name, is_known) in [("EdDSA", true), ("Ed25519", true), ("ES256", false)] {
        let mut named = json!(jwk);
        named["alg"] = json!(name);
        let k = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";
        let keys = json!({ "keys": [named, { "kty": "oct", "k": k, "alg": "HS256" }] });
        let policy = jwt_policy(&keys.to_string(), "", "").expect("keys");
        assert_eq!(
            policy.admit(&Tokens::default(), Some(&token), client()).is_ok(),
            is_known,
            "{name}"
        );
    }
}

#[test]
fn a_token_may_name_its_algorithm_ed25519() {
    let claims = json!({ "sub": "ann", "exp": now() + 60, "scope": "sync:read upload" });
    let key = DecodingKey::from_ed_pem(ED_PUBLIC.as_bytes()).expect("a key");
    let mut jwk = json!(Jwk::from_decoding_key(&key, None).expect("a JWK"));
    jwk["kid"] = json!("one");
    let keys = format!("{RSA_PUBLIC}{ED_PUBLIC}");
    let pem = jwt_policy(&keys, "", "").expect("keys");
    let jwks = jwt_policy(&json!({ "keys": [jwk] }).to_string(), "", "").expect("keys");
    for header in [
        json!({ "alg": "Ed25519" }),
        json!({ "typ": "JWT", "alg": "Ed25519", "kid": "one" }),
        json!({ "alg": "Ed25519", "theirs": { "a": [1, 2] }, "b64": true, "crit": null }),
    ] {
        let token = ed25519_jwt(&header, &claims);
        for policy in [&pem, &jwks] {
            let access =
                policy.admit(&Tokens::default(), Some(&token), client()).expect("admitted");
            assert_eq!(&*access.principal.0, "jwt:ann", "{header}");
            assert!(access.rights.upload && access.rights.may_sync() && !access.rights.admin);
        }
    }
    for (header, why) in [
        (json!({ "alg": "Ed25519", "kid": "two" }), "no key"),
        (json!({ "alg": "Ed448" }), "no key"),
        (json!({ "alg": "ed25519" }), "no key"),
        (json!({ "alg": "Ed25519", "crit": ["theirs"] }), "crit"),
        (json!({ "alg": "Ed25519", "b64": false }), "crit"),
        (json!({ "alg": null }), "not a JWT"),
        (json!({}), "not a JWT"),
    ] {
        let token = ed25519_jwt(&header, &claims);
        let refusal = jwks
            .admit(&Tokens::default(), Some(&token), client())
            .expect_err("refused")
            .to_string();
        assert!(refusal.contains(why), "{header}: {refusal}");
    }
}

#[test]
fn the_header_of_an_ed25519_token_is_part_of_what_is_signed() {
    let policy = jwt_policy(ED_PUBLIC, "", "").expect("keys");
    let claims = json!({ "sub": "ann", "exp": now() + 60 });
    let header = part(&json!({ "alg": "Ed25519" }));
    let eddsa = part(&json!({ "alg": "EdDSA" }));
    let other = part(&json!({ "alg": "Ed25519", "kid": "one" }));
    let split = |token: &str| token.rsplit_once('.').map(|(_, s)| s.to_owned()).expect("a part");
    let signature = split(&ed25519_jwt(&json!({ "alg": "Ed25519" }), &claims));
    let of_eddsa = split(&ed25519_jwt(&json!({ "alg": "EdDSA" }), &claims));
    let payload = part(&claims);
    let forged = part(&json!({ "sub": "bob", "exp": now() + 60 }));
    let whole = format!("{header}.{payload}.{signature}");
    assert!(policy.admit(&Tokens::default(), Some(&whole), client()).is_ok());
    for altered in [
        format!("{other}.{payload}.{signature}"),
        format!("{eddsa}.{payload}.{signature}"),
        format!("{header}.{payload}.{of_eddsa}"),
        format!("{header}.{forged}.{signature}"),
        format!("{header}.{payload}."),
        format!("{header}.{payload}"),
        format!("{header}.{header}.{payload}.{signature}"),
        format!("{header}.{eddsa}.{payload}.{of_eddsa}"),
        format!("{header}.{payload}.{signature}."),
        format!("{whole}.{signature}"),
        format!(".{whole}"),
    ] {
        let refusal =
            policy.admit(&Tokens::default(), Some(&altered), client()).expect_err(&altered);
        assert!(matches!(refusal, Refusal::Invalid(_)), "{altered}: {refusal}");
    }
}

#[test]
fn every_kind_of_key_verifies_its_own_tokens_only() {
    let keys = format!("{ED_PUBLIC}{EC_PUBLIC}{RSA_PUBLIC}");
    let pem = jwt_policy(&keys, "", "").expect("keys");
    let jwks = jwt_policy(&jwks(), "", "").expect("keys");
    let claims = json!({ "sub": "ann", "exp": now() + 60, "scope": "openid sync:write upload" });
    for (algorithm, key) in signers() {
        let token = jwt(algorithm, &key, &claims);
        let policy = if algorithm == Algorithm::HS256 { &jwks } else { &pem };
        let access = policy.admit(&Tokens::default(), Some(&token), client()).expect("admitted");
        assert_eq!(&*access.principal.0, "jwt:ann", "{algorithm:?}");
        assert!(access.rights.upload && access.rights.may_sync() && !access.rights.admin);
        let other = if algorithm == Algorithm::HS256 { &pem } else { &jwks };
        assert!(
            other.admit(&Tokens::default(), Some(&token), client()).is_err(),
            "{algorithm:?}: no such key there"
        );
    }
}

#[test]
fn a_token_with_critical_extensions_is_refused() {
    let policy = jwt_policy(&jwks(), "", "").expect("keys");
    let claims = json!({ "sub": "ann", "exp": now() + 60 });
    let admit = |change: &dyn Fn(&mut Header)| {
        let mut header = Header::new(Algorithm::HS256);
        change(&mut header);
        let token = encode(&header, &claims, &EncodingKey::from_secret(SECRET)).expect("signed");
        policy.admit(&Tokens::default(), Some(&token), client())
    };
    admit(&|_| {}).expect("admitted");
    admit(&|header| header.extras.insert("theirs", 1)).expect("extensions may be ignored");
    let changes: [&dyn Fn(&mut Header); 3] = [
        &|header| header.crit = Some(vec!["theirs".to_owned()]),
        &|header| header.crit = Some(Vec::new()),
        &|header| header.extras.insert("b64", false),
    ];
    for change in changes {
        let refusal = admit(change).expect_err("refused").to_string();
        assert!(refusal.contains("crit"), "{refusal}");
    }
}

#[test]
fn a_public_key_is_not_accepted_as_an_hmac_secret() {
    // Algorithm confusion: an attacker signs with HS256 and the text of the public key as the
    // secret.
    let policy = jwt_policy(RSA_PUBLIC, "", "").expect("keys");
    let claims = json!({ "sub": "ann", "exp": now() + 60, "scope": "sync:write" });
    let forged = jwt(Algorithm::HS256, &EncodingKey::from_secret(RSA_PUBLIC.as_bytes()), &claims);
    assert!(matches!(
        policy.admit(&Tokens::default(), Some(&forged), client()),
        Err(Refusal::Invalid(_))
    ));
    let claims = part(&claims);
    let named = format!("{}.{claims}", part(&json!({ "alg": "Ed25519" })));
    let secret = EncodingKey::from_secret(RSA_PUBLIC.as_bytes());
    let signature = crypto::sign(named.as_bytes(), &secret, Algorithm::HS256).expect("signed");
    let forged = format!("{named}.{signature}");
    assert!(matches!(
        policy.admit(&Tokens::default(), Some(&forged), client()),
        Err(Refusal::Invalid(_))
    ));
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4iLCJleHAiOjk5OTk5OTk5OTl9.";
    assert!(matches!(
        policy.admit(&Tokens::default(), Some(none), client()),
        Err(Refusal::Invalid(_))
    ));
}

#[test]
fn a_jwt_without_a_required_claim_is_refused() {
    refuse_bad_claims("EdDSA");
    refuse_bad_claims("Ed25519");
}

fn refuse_bad_claims(algorithm: &str) {
    let policy = jwt_policy(ED_PUBLIC, "https://id.example.org", "relay").expect("keys");
    let good = json!({
        "sub": "ann", "exp": now() + 60, "scopes": ["sync:read"],
        "iss": "https://id.example.org", "aud": ["x", "relay"],
    });
    let admit = |claims: &Value| {
        policy.admit(
            &Tokens::default(),
            Some(&ed25519_jwt(&json!({ "alg": algorithm }), claims)),
            client(),
        )
    };
    let access = admit(&good).expect("admitted");
    assert!(access.rights.may_sync());
    assert!(access.expires.expect("ends") > SystemTime::now());
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().expect("an object").remove(name);
        admit(&claims)
    };
    for name in ["sub", "exp", "iss", "aud"] {
        assert!(matches!(without(name), Err(Refusal::Invalid(_))), "{name}");
    }
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        admit(&claims)
    };
    assert_eq!(with("exp", json!(now() - 60)).expect_err("over"), Refusal::Expired);
    assert!(with("nbf", json!(now() + 600)).is_err());
    assert!(with("iss", json!("https://other.example.org")).is_err());
    assert!(with("aud", json!("other")).is_err());
    for unreadable in ["", "ann\nbob", "ann\u{202e}", "ann\u{2028}", "ann\u{200b}"] {
        assert!(with("sub", json!(unreadable)).is_err(), "{unreadable:?}");
    }
    assert!(with("exp", json!(253_402_300_799u64)).is_ok(), "the end of 9999, meant as never");
    let refusal = with("exp", json!((now() + 60) * 1000)).expect_err("milliseconds");
    assert!(refusal.to_string().contains("not milliseconds"), "{refusal}");
    for odd in [json!(1e300), json!(-1), json!("soon"), json!(u64::MAX)] {
        let _ = with("exp", odd);
    }
    assert!(!with("scopes", json!([])).expect("admitted").rights.may_sync());
}

#[test]
fn an_unusable_file_of_keys_is_refused_with_the_reason() {
    let problem = |keys: &str| jwt_policy(keys, "", "").expect_err(keys).to_string();
    assert!(problem("").contains("no key"));
    assert!(problem(ED_PRIVATE).contains("PRIVATE KEY; expected public keys"));
    assert!(problem("{}").contains("is not a valid JWKS"));
    assert!(problem(r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#).contains("32 or more"));
    assert!(
        problem(r#"{"keys":[{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}]}"#)
            .contains("no key for")
    );
    // A header must not become a part of the key.
    for x in ["AAAA", "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURpyZXN0"] {
        let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": x }] });
        assert!(problem(&keys.to_string()).contains("is not an Ed25519 key"), "{x}");
    }
    let broken = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    assert!(problem(broken).contains("key number 1"));
}

#[test]
fn no_token_makes_verification_panic() {
    let policy = jwt_policy(ED_PUBLIC, "", "").expect("keys");
    let long = "x".repeat(1 << 20);
    for token in [
        "",
        ".",
        "..",
        "a.b.c",
        "eyJhbGciOiJFZERTQSJ9..",
        "eyJhbGciOiJFZDI1NTE5In0",
        "eyJhbGciOiJFZDI1NTE5In0.",
        "eyJhbGciOiJFZDI1NTE5In0..",
        "eyJhbGciOiJFZDI1NTE5In0.é.é",
        &long,
        "é.é.é",
    ] {
        assert!(policy.admit(&Tokens::default(), Some(token), client()).is_err(), "{token:.20}");
    }
}
