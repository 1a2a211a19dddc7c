//! Certificates for tests, and a raw TLS client.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::rig::PATIENCE;
use crate::rig::http::{self, Response};

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    // OpenSSL reads no lines of more than 76 characters.
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A private authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: pem("CERTIFICATE", certificate.der()), issuer: Issuer::new(params, key) }
    }

    /// Issues a certificate for these names. A name with a colon is a URI.
    pub fn issue(&self, names: &[&str], until_year: i32) -> Pair {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains(':') => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: pem("CERTIFICATE", certificate.der()), key: pem("PRIVATE KEY", &key.serialize_der()) }
    }

    /// The certificate of a server on loopback.
    pub fn for_loopback(&self, until_year: i32) -> Pair {
        self.issue(&["127.0.0.1", "localhost"], until_year)
    }

    pub fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join("ca.pem");
        std::fs::write(&path, &self.pem).unwrap();
        path
    }
}

impl Pair {
    /// Writes the files as Kubernetes mounts a Secret: each name is a link through `..data`, itself a link that is
    /// replaced at once.
    pub fn swap_in(&self, directory: &Path) {
        let version = directory.join(format!("..{}", uuid::Uuid::from_u128(rand())));
        std::fs::create_dir(&version).unwrap();
        std::fs::write(version.join("tls.crt"), &self.cert).unwrap();
        std::fs::write(version.join("tls.key"), &self.key).unwrap();
        let link = |target: &Path, at: &Path| {
            let new = directory.join("..new");
            std::os::unix::fs::symlink(target, &new).unwrap();
            std::fs::rename(&new, at).unwrap();
        };
        link(Path::new(version.file_name().unwrap()), &directory.join("..data"));
        for name in ["tls.crt", "tls.key"] {
            if !directory.join(name).is_symlink() {
                link(&Path::new("..data").join(name), &directory.join(name));
            }
        }
    }
}

/// Only distinguishes directories.
fn rand() -> u128 {
    use std::hash::{BuildHasher, Hasher};
    u128::from(std::hash::RandomState::new().build_hasher().finish())
}

/// A client that trusts one authority, and may have a certificate itself.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

/// A connection to `127.0.0.1`.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Client {
    pub fn new(authority: &Authority, own: Option<&Pair>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Self(Arc::new(match own {
            None => config.with_no_client_auth(),
            Some(Pair { cert, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        }))
    }

    pub fn connect(&self, to: SocketAddr) -> io::Result<Tls> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut tls = StreamOwned::new(ClientConnection::new(Arc::clone(&self.0), name).unwrap(), stream);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(tls)
    }

    /// Sends one request on a new connection.
    pub fn request(
        &self,
        to: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut tls = self.connect(to)?;
        let mut bytes = http::head(to, method, path, headers, body.len());
        bytes.extend_from_slice(body);
        // A server may refuse and close before it has read everything.
        let sent = tls.write_all(&bytes);
        let mut answer = Vec::new();
        let received = tls.read_to_end(&mut answer);
        http::parse(&answer).ok_or_else(|| io::Error::other(format!("no answer: sent {sent:?}, received {received:?}")))
    }
}

/// Sends one request on a connection that stays open. Returns the status.
pub fn again(tls: &mut Tls, path: &str, body: &str) -> io::Result<u16> {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nX-Amz-Invocation-Type: Event\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    tls.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer).unwrap();
    Ok(answer["HTTP/1.1 ".len()..][..3].parse().unwrap())
}
