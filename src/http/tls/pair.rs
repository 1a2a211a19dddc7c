//! Reads the certificate and the key of the listeners from files, and checks them as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};

use super::expiry::validity;
use super::pem::{certificates, private_key};
use crate::clock::UnixMillis;
use crate::follow::Bad;

/// A chain of certificates has a few KiB, a bundle of all public authorities a few hundred.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The paths of the certificate, the key and the client authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// PEM: the server's certificate, then the intermediate ones.
    pub cert: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: the authorities whose client certificates are accepted.
    pub client_ca: Option<PathBuf>,
}

/// The contents of the files.
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// The TLS configurations made from the files.
#[derive(Clone)]
pub struct Pair {
    /// For listeners where a client may present a certificate.
    pub optional: Arc<ServerConfig>,
    /// For listeners where a client must present one. The same as `optional` if there is no `client_ca`.
    pub required: Arc<ServerConfig>,
    /// From when on all certificates of the chain are valid.
    pub begins: UnixMillis,
    /// When the first certificate of the chain expires.
    pub expires: UnixMillis,
}

impl Files {
    /// Reads and checks the files, except whether the certificate is valid now. Also returns a digest of the contents.
    /// Blocks on the disk.
    pub fn load(&self) -> Result<([u8; 32], Pair), Bad> {
        let contents = self.read()?;
        let pair = self.check(&contents)?;
        let all = [Some(&contents.cert), Some(&contents.key), contents.client_ca.as_ref()];
        let digest = all.into_iter().flatten().fold(Sha256::new(), |digest, content| {
            digest.chain_update((content.len() as u64).to_be_bytes()).chain_update(content)
        });
        Ok((digest.finalize().into(), pair))
    }

    /// As [`Files::load`], but refuses a certificate that is not valid now, so that it does not replace one in service.
    pub fn load_valid(&self, now: UnixMillis) -> Result<([u8; 32], Pair), Bad> {
        let (digest, pair) = self.load()?;
        let why = if pair.expires <= now {
            format!("expired on {}; renew it: clients refuse it", pair.expires.rfc3339())
        } else if pair.begins > now {
            format!(
                "not valid before {}: clients refuse it until then; check the clock of this machine",
                pair.begins.rfc3339()
            )
        } else {
            return Ok((digest, pair));
        };
        Err(Bad { key: "tls.cert".to_owned(), path: self.cert.clone(), why })
    }

    fn read(&self) -> Result<Contents, Bad> {
        let read =
            |key, path: &Path| read(path).map_err(|why| Bad { key: str::to_owned(key), path: path.to_owned(), why });
        Ok(Contents {
            cert: read("tls.cert", &self.cert)?,
            key: read("tls.key", &self.key)?,
            client_ca: self.client_ca.as_deref().map(|path| read("tls.client_ca", path)).transpose()?,
        })
    }

    fn check(&self, contents: &Contents) -> Result<Pair, Bad> {
        let bad_cert = |why: String| Bad { key: "tls.cert".to_owned(), path: self.cert.clone(), why };
        let bad_key = |why: String| Bad { key: "tls.key".to_owned(), path: self.key.clone(), why };
        let chain = certificates(&contents.cert).map_err(bad_cert)?;
        let times = chain.iter().map(|certificate| validity(certificate)).collect::<Option<Vec<_>>>();
        let all = |(begins, expires): (UnixMillis, UnixMillis), next: (UnixMillis, UnixMillis)| {
            (begins.max(next.0), expires.min(next.1))
        };
        let times = times.and_then(|times| times.into_iter().reduce(all));
        let (begins, expires) = times.ok_or_else(|| bad_cert("not an X.509 certificate".to_owned()))?;
        let key = private_key(&contents.key).map_err(bad_key)?;
        let authorities = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(text)) => Some(authorities(text).map_err(|why| Bad {
                key: "tls.client_ca".to_owned(),
                path: path.clone(),
                why,
            })?),
            (_, _) => None,
        };
        let config = |required| config(&chain, &key, authorities.as_ref(), required).map_err(bad_key);
        let optional = config(false)?;
        let required = if authorities.is_some() { config(true)? } else { Arc::clone(&optional) };
        Ok(Pair { optional, required, begins, expires })
    }
}

/// Reads a file up to a limit. The error says why it cannot be used.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    crate::readable::read(path, FILE_BYTES_MAX).map_err(|error| format!("cannot be read: {error}"))
}

fn authorities(pem: &[u8]) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| format!("holds a certificate that is no authority: {error}"))?;
    }
    Ok(Arc::new(roots))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// An error concerns the key: the chain was checked before.
fn config(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    authorities: Option<&Arc<RootCertStore>>,
    required: bool,
) -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
            let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
        }
    };
    let config = builder.with_single_cert(chain.to_vec(), key.clone_key());
    let mut config = config.map_err(|error| {
        if let rustls::Error::General(why) = error {
            return format!(
                "cannot be used; sendoff takes ECDSA (P-256, P-384), Ed25519 and RSA of 2048 to 8192 bits ({why})"
            );
        }
        format!("is not the key of the certificate ({error})")
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
