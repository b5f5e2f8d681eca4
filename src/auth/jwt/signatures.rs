//! Verifies signatures of tokens with ring, which TLS uses as well. jsonwebtoken's own backends
//! would add code for private keys, with its security advisories.

use jsonwebtoken::{
    Algorithm, DecodingKey,
    DecodingKeyKind::{RsaModulusExponent, SecretOrDer},
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
    signature::{self, Verifier},
};
use ring::{
    error::Unspecified,
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
        UnparsedPublicKey,
    },
};

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
            (Algorithm::EdDSA, SecretOrDer(key)) => {
                UnparsedPublicKey::new(&ED25519, key).verify(message, given)
            }
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
