//! Verifies signatures of tokens with ring, which TLS uses as well. jsonwebtoken's own backends
//! would add code for private keys, with its security advisories.

use jsonwebtoken::{
    Algorithm, DecodingKey,
    DecodingKeyKind::{RsaModulusExponent, SecretOrDer},
    TokenData, Validation,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    decode,
    errors::{ErrorKind, Result},
    signature::{self, Verifier},
};
use ring::{
    error::Unspecified,
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, ED25519_PUBLIC_KEY_LEN, RSA_PKCS1_2048_8192_SHA256,
        RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use serde::de::DeserializeOwned;

/// The header `{"alg":"EdDSA"}`.
const EDDSA_HEADER: &str = "eyJhbGciOiJFZERTQSJ9";

static PROVIDER: CryptoProvider = CryptoProvider {
    #[cfg(not(test))]
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    #[cfg(test)]
    signer_factory: signer::new,
    verifier_factory: verifier,
    // Needed only to create JWKs.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Registers ring as the verifier of jsonwebtoken. Further calls do nothing.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

/// Decodes a token whose header names the algorithm `Ed25519`, as [`decode`] does for `EdDSA`.
///
/// jsonwebtoken cannot read such a header, so it gets one that says `EdDSA`. It passes the key on
/// to [`verify_ed25519`]. The original header is appended to the key, so that the signature is
/// verified over the bytes that were signed.
///
/// # Errors
/// Those of [`decode`].
pub(super) fn decode_ed25519<T: DeserializeOwned>(
    token: &str,
    key: &DecodingKey,
    validation: &Validation,
) -> Result<TokenData<T>> {
    let (header, rest) = token.split_once('.').ok_or(ErrorKind::InvalidToken)?;
    let key = key.try_get_as_bytes()?;
    // Nothing of the token may become a part of the key.
    if key.len() != ED25519_PUBLIC_KEY_LEN {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let key = DecodingKey::from_ed_der(&[key, header.as_bytes()].concat());
    decode(format!("{EDDSA_HEADER}.{rest}"), &key, validation)
}

/// Verifies a signature with an Ed25519 key. If a header is appended to the key, it replaces the
/// header of the message.
fn verify_ed25519(
    key: &[u8],
    message: &[u8],
    given: &[u8],
) -> std::result::Result<(), Unspecified> {
    let (key, header) = key.split_at_checked(ED25519_PUBLIC_KEY_LEN).ok_or(Unspecified)?;
    let key = UnparsedPublicKey::new(&ED25519, key);
    if header.is_empty() {
        return key.verify(message, given);
    }
    let rest = message.strip_prefix(EDDSA_HEADER.as_bytes()).ok_or(Unspecified)?;
    key.verify(&[header, rest].concat(), given)
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    match algorithm {
        Algorithm::EdDSA | Algorithm::ES256 | Algorithm::RS256 | Algorithm::HS256 => {
            Ok(Box::new(Key { algorithm: *algorithm, key: key.clone() }))
        }
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for Key {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Key {
    fn verify(&self, message: &[u8], given: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        let verified = match (self.algorithm, self.key.kind()) {
            (Algorithm::EdDSA, SecretOrDer(key)) => verify_ed25519(key, message, given),
            (Algorithm::ES256, SecretOrDer(point)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, given)
            }
            (Algorithm::RS256, SecretOrDer(der)) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).verify(message, given)
            }
            (Algorithm::RS256, RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, given)
            }
            (Algorithm::HS256, SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), message, given)
            }
            _ => Err(Unspecified),
        };
        verified.map_err(|_| signature::Error::new())
    }
}

/// Signs the tokens of tests.
#[cfg(test)]
mod signer {
    use jsonwebtoken::{EncodingKey, crypto::JwtSigner, signature::Signer};
    use ring::{
        rand::SystemRandom,
        signature::{
            ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256,
            RsaKeyPair,
        },
    };

    use super::*;

    struct Private(Algorithm, EncodingKey);

    pub(super) fn new(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
        Ok(Box::new(Private(*algorithm, key.clone())))
    }

    impl JwtSigner for Private {
        fn algorithm(&self) -> Algorithm {
            self.0
        }
    }

    impl Signer<Vec<u8>> for Private {
        fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
            let (key, random) = (self.1.as_bytes(), SystemRandom::new());
            Ok(match self.0 {
                Algorithm::EdDSA => {
                    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key).expect("a key");
                    pair.sign(message).as_ref().to_vec()
                }
                Algorithm::ES256 => {
                    let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
                    let pair = EcdsaKeyPair::from_pkcs8(kind, key, &random).expect("a key");
                    pair.sign(&random, message).expect("signs").as_ref().to_vec()
                }
                Algorithm::RS256 => {
                    let pair = RsaKeyPair::from_der(key).expect("a key");
                    let mut made = vec![0; pair.public().modulus_len()];
                    pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut made).expect("signs");
                    made
                }
                _ => {
                    let secret = hmac::Key::new(hmac::HMAC_SHA256, key);
                    hmac::sign(&secret, message).as_ref().to_vec()
                }
            })
        }
    }
}
