use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper_util::service::TowerToHyperService;
use prometheus::IntCounter;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pair::Files;
use super::*;
use crate::clock::{Clock, UnixMillis};
use crate::follow::Follower;
use crate::http::peer::Peer;
use crate::http::{Limits, Server};

const GET: &[u8] = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(120);

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

/// A certificate authority for tests.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: pem("CERTIFICATE", certificate.der()), issuer: Issuer::new(params, key) }
    }

    /// Issues a certificate for these names. Returns the certificate and its key, both in PEM.
    fn issue(&self, names: &[SanType], until: i32) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names.to_vec();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn write(directory: &Path, (cert, key): &(String, String)) {
    std::fs::write(directory.join("cert.pem"), cert).unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
}

fn files(directory: &Path) -> Files {
    Files { cert: directory.join("cert.pem"), key: directory.join("key.pem"), client_ca: None }
}

fn following(files: Files) -> Follower<Pair> {
    let failures = IntCounter::new("failures", "help").unwrap();
    Follower::new("certificate", Clock::system(), failures, move || files.load()).unwrap()
}

fn connector(authority: &Authority, of_client: Option<&(String, String)>) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots());
    TlsConnector::from(Arc::new(match of_client {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    }))
}

/// A server that answers with the names that its peer has proven.
struct Running {
    server: Server,
    clock: Clock,
    address: std::net::SocketAddr,
    failures: IntCounter,
}

impl Running {
    async fn with(pair: watch::Receiver<Arc<Pair>>, client_required: bool, header_timeout: Duration) -> Self {
        let limits = Limits { connections_max: 8, headers_max: 16, header_bytes_max: 8 * 1024, header_timeout };
        let clock = Clock::system();
        let server = Server::new(limits, None, clock.clone(), CancellationToken::new(), TaskTracker::new());
        let hello = axum::routing::get(|request: axum::extract::Request| async move {
            request.extensions().get::<Peer>().unwrap().names().join(" ")
        });
        let router = TowerToHyperService::new(axum::Router::new().route("/hello", hello));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let failures = IntCounter::new("handshakes", "help").unwrap();
        let port = Port::new(listener, Some(Tls::new(pair, client_required, failures.clone())));
        server.connections.spawn(server.clone().serve(port, router));
        Self { server, clock, address, failures }
    }

    async fn connect(&self, connector: &TlsConnector) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        connector.connect(ServerName::try_from("sendoff.test").unwrap(), stream).await
    }

    /// Sends a request on this connection and returns the server's answer.
    async fn asked(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<String> {
        stream.write_all(GET).await?;
        let mut text = Vec::new();
        loop {
            let (head, length) = match std::str::from_utf8(&text).unwrap().split_once("\r\n\r\n") {
                Some((head, _)) => {
                    (head.len() + 4, head.lines().find_map(|line| line.strip_prefix("content-length: ")))
                }
                None => (0, None),
            };
            if head > 0 && text.len() >= head + length.map_or(0, |length| length.parse().unwrap()) {
                return Ok(String::from_utf8(text).unwrap());
            }
            text.push(stream.read_u8().await?);
        }
    }

    async fn stopped(self) {
        self.server.stop.cancel();
        self.server.connections.close();
        self.server.connections.wait().await;
    }
}

#[tokio::test]
async fn new_connections_get_the_latest_certificate_and_open_ones_keep_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Authority::new(), Authority::new());
    write(directory.path(), &first.issue(&[dns("sendoff.test")], 2100));
    let files = files(directory.path());
    let (_, pair) = files.load().unwrap();
    assert_eq!(pair.expires, UnixMillis(4_102_444_800_000), "the first of January 2100");
    let (serving, served) = watch::channel(Arc::new(pair));
    let running = Running::with(served, false, LONG).await;
    let (by_first, by_second) = (connector(&first, None), connector(&second, None));
    let mut kept = running.connect(&by_first).await.unwrap();
    assert!(Running::asked(&mut kept).await.unwrap().starts_with("HTTP/1.1 200"));

    write(directory.path(), &second.issue(&[dns("sendoff.test")], 2101));
    serving.send_replace(Arc::new(files.load().unwrap().1));
    assert!(running.connect(&by_first).await.is_err());
    let mut new = running.connect(&by_second).await.unwrap();
    assert!(Running::asked(&mut new).await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(Running::asked(&mut kept).await.unwrap().starts_with("HTTP/1.1 200"), "what was open stays open");
    drop((kept, new));
    running.stopped().await;
}

#[test]
fn what_has_expired_is_served_only_where_nothing_better_is() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &Authority::new().issue(&[dns("sendoff.test")], 2001));
    let files = files(directory.path());
    assert!(files.load().is_ok());
    let bad = files.load_valid(UnixMillis(1_790_000_000_000)).map(drop).unwrap_err();
    assert!(bad.to_string().starts_with("tls.cert = ") && bad.why.starts_with("expired on 2001-01-01"), "{bad}");
}

#[test]
fn what_is_not_valid_yet_does_not_replace_what_is() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &Authority::new().issue(&[dns("sendoff.test")], 2100));
    let files = files(directory.path());
    let at = |seconds: u64| files.load_valid(UnixMillis(seconds * 1_000)).map(drop);
    // rcgen's certificates begin in 1975.
    assert!(at(1_790_000_000).is_ok());
    let bad = at(86_400).unwrap_err();
    assert!(bad.why.starts_with("not valid before 1975-01-01"), "{bad}");
}

#[tokio::test]
async fn files_that_cannot_be_served_are_named_with_their_key_and_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (authority, other) = (Authority::new(), Authority::new());
    let good = authority.issue(&[dns("sendoff.test")], 2100);
    let refused = |files: &Files| files.load().map(drop).unwrap_err();
    assert_eq!(refused(&files(path)).key, "tls.cert");
    write(path, &good);
    assert!(files(path).load().is_ok());
    for (key, (cert, pem_key), why) in [
        ("tls.cert", ("nothing".to_owned(), good.1.clone()), "holds no certificate"),
        ("tls.cert", (pem("CERTIFICATE", b"junk"), good.1.clone()), "not an X.509 certificate"),
        ("tls.key", (good.0.clone(), good.0.clone()), "holds no private key"),
        ("tls.key", (good.0.clone(), other.issue(&[dns("a.test")], 2100).1), "is not the key of the certificate"),
    ] {
        write(path, &(cert, pem_key));
        let bad = refused(&files(path));
        assert!(bad.key == key && bad.why.contains(why), "{bad}");
        assert!(!bad.to_string().contains("PRIVATE"), "{bad}");
    }
    write(path, &good);
    let client_ca = Some(path.join("cert.pem"));
    assert!(Files { client_ca: Some(path.join("none.pem")), ..files(path) }.load().is_err());
    assert!(Files { client_ca, ..files(path) }.load().is_ok());
}

#[tokio::test]
async fn a_client_is_known_by_the_names_in_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new(), Authority::new());
    write(directory.path(), &authority.issue(&[dns("sendoff.test")], 2100));
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let files = Files { client_ca: Some(ca), ..files(directory.path()) };
    let follower = following(files);
    let known = authority.issue(&[dns("Orders.Shop.test"), uri("spiffe://shop.test/orders")], 2100);
    let (forged, late) = (stranger.issue(&[dns("orders.shop.test")], 2100), authority.issue(&[dns("a.test")], 2001));
    for required in [false, true] {
        let running = Running::with(follower.value(), required, LONG).await;
        let mut stream = running.connect(&connector(&authority, Some(&known))).await.unwrap();
        let answer = Running::asked(&mut stream).await.unwrap();
        assert!(answer.ends_with("spiffe://shop.test/orders orders.shop.test"), "{answer}");
        // In TLS 1.3 the client learns of a refusal when it reads.
        let without = async {
            let mut stream = running.connect(&connector(&authority, None)).await?;
            Running::asked(&mut stream).await
        };
        assert_eq!(without.await.is_err(), required);
        for bad in [&forged, &late] {
            let refused = async {
                let mut stream = running.connect(&connector(&authority, Some(bad))).await?;
                Running::asked(&mut stream).await
            };
            assert!(refused.await.is_err());
        }
        drop(stream);
        running.stopped().await;
    }
}

#[tokio::test]
async fn plain_http_is_told_to_speak_tls_and_silence_ends_in_time() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &Authority::new().issue(&[dns("sendoff.test")], 2100));
    let follower = following(files(directory.path()));
    let running = Running::with(follower.value(), false, Duration::from_secs(2)).await;

    let mut plain = TcpStream::connect(running.address).await.unwrap();
    let body = "x".repeat(30_000);
    let request = format!(
        "POST /2015-03-31/functions/orders/invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 30000\r\n\r\n{body}"
    );
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.contains("speaks TLS"), "{answer}");

    let mut junk = TcpStream::connect(running.address).await.unwrap();
    junk.write_all(&[0xff; 32]).await.unwrap();
    let mut rest = Vec::new();
    // The server sends an alert. The client sees a reset instead if the alert came too late.
    junk.read_to_end(&mut rest).await.unwrap_or_default();

    let began = running.clock.instant();
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    let mut halfway = TcpStream::connect(running.address).await.unwrap();
    halfway.write_all(&[HANDSHAKE, 3, 1]).await.unwrap();
    assert_eq!(halfway.read(&mut [0]).await.unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(running.failures.get(), 2, "who only stays silent has not failed");
    running.stopped().await;
}

/// Polls for the end of the stream as hyper's connection does: in a task that also reads.
async fn looked_at(stream: &mut Wire) -> Poll<()> {
    std::future::poll_fn(|cx| Poll::Ready(stream.poll_closed(cx))).await
}

#[tokio::test]
async fn a_peer_that_closes_is_seen_by_looking_and_what_it_sent_before_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    write(directory.path(), &authority.issue(&[dns("sendoff.test")], 2100));
    let follower = following(files(directory.path()));
    for says_so in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Tls::new(follower.value(), false, IntCounter::new("handshakes", "help").unwrap());
        let port = Port::new(listener, Some(tls));
        let client = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("sendoff.test").unwrap();
            connector(&authority, None).connect(name, stream).await.unwrap()
        };
        let server = async { Listener::accept(&port).await.unwrap().open().await.unwrap().0 };
        let (mut client, mut server) = tokio::join!(client, server);
        assert!(looked_at(&mut server).await.is_pending());

        client.write_all(b"more").await.unwrap();
        client.flush().await.unwrap();
        let mut all = [0; 4];
        while !matches!(&server, Wire::Tls(secured) if secured.ahead.is_some()) {
            assert!(looked_at(&mut server).await.is_pending(), "there is more to read");
            tokio::task::yield_now().await;
        }
        server.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"more");

        if says_so {
            client.shutdown().await.unwrap();
        }
        let (stream, _) = client.into_inner();
        drop(stream);
        std::future::poll_fn(|cx| server.poll_closed(cx)).await;
        assert!(looked_at(&mut server).await.is_ready(), "it stays so");
    }
}

#[test]
fn the_clock_of_the_wall_is_what_certificates_are_compared_with() {
    let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
    assert_eq!(clock.wall_millis(), UnixMillis(1_790_000_000_000));
}

#[test]
fn names_of_a_certificate_are_kept_up_to_a_limit() {
    let certificate = |count: usize| {
        let names: Vec<_> = (0..count).map(|n| dns(&format!("N{n}.test"))).collect();
        let pem = Authority::new().issue(&names, 2100).0;
        super::names(&[CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()])
    };
    assert_eq!(certificate(2), ["n0.test", "n1.test"]);
    assert_eq!(certificate(NAMES_MAX).len(), NAMES_MAX);
    assert_eq!(certificate(NAMES_MAX + 2).len(), NAMES_MAX);
}
