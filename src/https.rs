//! Connects to a daemon over TLS: which certificates to trust, and by which token the daemon knows the caller. Used by
//! commands, and by a hand-off to another sendoff.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderValue, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::auth::secret;
use crate::http::tls::pem;
use crate::readable;

pub type Connector = HttpsConnector<HttpConnector>;

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("cannot use the certificates of {path}: {why}")]
    Certificates { path: String, why: String },
    #[error("cannot use the token of {path}: {why}")]
    Token { path: String, why: String },
    #[error("cannot use TLS: {0}")]
    Tls(String),
}

/// Which certificates a caller accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that this machine trusts.
    System,
    /// Those of the authorities in this file.
    Authorities(PathBuf),
    /// Only the one in this file, for every name and address of the daemon, because it is the daemon's own.
    Own(PathBuf),
}

impl Trust {
    /// The trust that `--ca` selects.
    pub fn of(ca: Option<&Path>) -> Self {
        ca.map_or(Self::System, |path| Self::Authorities(path.to_owned()))
    }
}

/// A connector for this endpoint. With http:// nothing is verified.
pub fn connector(endpoint: &Uri, trust: &Trust) -> Result<Connector, Unusable> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| Unusable::Tls(error.to_string()))?;
    let config = match trust {
        _ if endpoint.scheme_str() != Some("https") => builder.with_root_certificates(RootCertStore::empty()),
        Trust::System => builder.with_root_certificates(roots(rustls_native_certs::load_native_certs().certs)),
        Trust::Authorities(path) => {
            let own = certificates(path)?;
            let by_authorities =
                WebPkiServerVerifier::builder_with_provider(roots(own.clone()).into(), provider).build();
            let by_authorities = by_authorities.map_err(|error| unusable(path, &error.to_string()))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(OrItself { own, by_authorities }))
        }
        Trust::Own(path) => {
            let own =
                certificates(path)?.into_iter().next().ok_or_else(|| unusable(path, "it holds no certificate"))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Exactly { own, provider }))
        }
    };
    let config = config.with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build())
}

/// The header that shows the first secret of a file.
pub fn bearer(path: &Path) -> Result<HeaderValue, Unusable> {
    let unusable = |why: String| Unusable::Token { path: path.display().to_string(), why };
    let secrets = secret::read(path).map_err(unusable)?;
    let text = secrets.first().map(|secret| [b"Bearer ", secret.expose()].concat()).unwrap_or_default();
    let mut value = HeaderValue::from_bytes(&text).map_err(|error| unusable(error.to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    roots
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    /// The most bytes of a file. All certificates of a machine have about 250 KiB.
    const BYTES_MAX: u64 = 16 << 20;
    let text = readable::read(path, BYTES_MAX).map_err(|error| unusable(path, &error.to_string()))?;
    pem::certificates(&text).map_err(|why| unusable(path, &format!("it {why}")))
}

fn unusable(path: &Path, why: &str) -> Unusable {
    Unusable::Certificates { path: path.display().to_string(), why: why.to_owned() }
}

/// The TLS error of a failed connection. `None` means that it failed for another reason.
pub fn trouble(error: &hyper_util::client::legacy::Error) -> Option<String> {
    let mut source = error.source();
    while let Some(cause) = source {
        // An `io::Error` hides its inner error from `source`, and may contain another `io::Error`.
        let mut inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        while let Some(error) = inner {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                if is_an_authority(tls) {
                    return Some("the certificate is its own authority, and not a trusted one".to_owned());
                }
                return Some(tls.to_string());
            }
            inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        }
        source = cause.source();
    }
    None
}

/// Accepts the certificates of authorities, and their own: `openssl req -x509` makes a certificate that is its own authority,
/// and webpki takes that for no server's. OpenSSL, Node.js and Go accept it.
#[derive(Debug)]
struct OrItself {
    own: Vec<CertificateDer<'static>>,
    by_authorities: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for OrItself {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.by_authorities.verify_server_cert(presented, intermediates, name, ocsp, now) {
            // webpki has checked before that it is valid now.
            Err(error) if is_an_authority(&error) && self.own.contains(presented) => {
                verify_server_name(&ParsedCertificate::try_from(presented)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authorities.supported_verify_schemes()
    }
}

/// Whether a server's certificate is refused only because it is an authority's.
fn is_an_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error else { return false };
    inner.downcast_ref::<webpki::Error>() == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// Accepts exactly one certificate. The peer must prove that it has its key.
#[derive(Debug)]
struct Exactly {
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *presented == self.own {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("the daemon presents another certificate than the one of tls.cert".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
