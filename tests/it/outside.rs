//! Tests proxies and certificates from the environment, and environment values that cannot be used.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::rig::daemon::{Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::process::Process;
use crate::rig::{PATIENCE, eventually, python};

/// A Lambda behind TLS with a certificate for `lambda.test`. It prefers HTTP/2 and reports what was negotiated.
const TLS_LAMBDA: &str = r#"
import datetime, http.server, ipaddress, socket, ssl, sys, threading
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

scratch = sys.argv[1]
now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)

def make(name, issuer, issuer_key, ca):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True))
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]), critical=False)
    return key, subject, builder.sign(issuer_key or key, hashes.SHA256())

ca_key, ca_name, ca = make('test CA', None, None, True)
key, _, certificate = make('lambda.test', ca_name, ca_key, False)
pem = lambda one: one.public_bytes(serialization.Encoding.PEM)
open(scratch + '/ca.pem', 'wb').write(pem(ca))
open(scratch + '/server.pem', 'wb').write(pem(certificate) + key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        self.rfile.read(int(self.headers['content-length']))
        print('taken', self.connection.selected_alpn_protocol(), flush=True)
        self.send_response(202)
        self.send_header('x-amzn-RequestId', 'r-1')
        self.send_header('content-length', '0')
        self.end_headers()
    def log_message(self, *_):
        pass

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(scratch + '/server.pem')
context.set_alpn_protocols(['h2', 'http/1.1'])
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)

def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass

def tunnel(plain):
    client = proxy_context.wrap_socket(plain, server_side=True)
    head = b''
    while not head.endswith(b'\r\n\r\n'):
        head += client.recv(1)
    print('asked', head.decode().splitlines()[0], flush=True)
    client.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
    target = socket.create_connection(('127.0.0.1', server.server_address[1]))
    threading.Thread(target=pump, args=(target, client), daemon=True).start()
    pump(client, target)

# A proxy that itself speaks TLS.
proxy_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
proxy_context.load_cert_chain(scratch + '/server.pem')
proxy = socket.create_server(('127.0.0.1', 0))

def serve_proxy():
    while True:
        threading.Thread(target=tunnel, args=(proxy.accept()[0],), daemon=True).start()

threading.Thread(target=serve_proxy, daemon=True).start()
print('proxy', proxy.getsockname()[1], flush=True)
print('port', server.server_address[1], flush=True)
server.serve_forever()
"#;

/// A proxy that opens tunnels to 127.0.0.1 for every name. Also returns the heads of its requests.
fn proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || drop(tunnel(client, &log)));
        }
    });
    (address, asked)
}

fn tunnel(mut client: TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let port: u16 = head.split([' ', ':']).nth(2).and_then(|port| port.parse().ok()).unwrap_or_default();
    log.lock().unwrap().push(head);
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || drop(std::io::copy(&mut from_server, &mut to_client)));
    std::io::copy(&mut client, &mut server).map(drop)
}

/// The Lambda behind TLS, its port, and the port of its proxy. The certificate of its CA is `ca.pem` in the scratch
/// directory.
fn tls_lambda(scratch: &std::path::Path) -> (Process, String, String) {
    let script = scratch.join("tls_lambda.py");
    std::fs::write(&script, TLS_LAMBDA).unwrap();
    let mut command = Command::new(python::program("python"));
    let server = Process::spawn("a Lambda behind TLS", command.arg(&script).arg(scratch));
    let port = server.line(PATIENCE, |line| line.strip_prefix("port ").map(str::to_owned)).expect("its port");
    let proxy = server.line(PATIENCE, |line| line.strip_prefix("proxy ").map(str::to_owned)).expect("its proxy");
    (server, port, proxy)
}

#[test]
fn a_proxy_that_speaks_tls_and_the_bundle_of_the_profile_are_used() {
    let (scratch, state) = scratch();
    let (server, port, proxy) = tls_lambda(scratch.path());
    let profile = scratch.path().join("profile");
    let bundle = scratch.path().join("ca.pem");
    std::fs::write(&profile, format!("[default]\nca_bundle = {}\n", bundle.display())).unwrap();
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &format!("https://lambda.test:{port}"))
        .env("HTTPS_PROXY", &format!("https://127.0.0.1:{proxy}"))
        .env("AWS_CONFIG_FILE", profile.to_str().unwrap())
        .start();
    daemon.accept("orders", &[], &payload("one"));
    daemon.wait_until_empty();
    assert!(server.line(PATIENCE, |line| line.starts_with("taken ").then_some(())).is_some());
    let asked = server.line(PATIENCE, |line| line.strip_prefix("asked ").map(str::to_owned));
    assert_eq!(asked, Some(format!("CONNECT lambda.test:{port} HTTP/1.1")));
}

#[test]
fn lambda_is_reached_through_a_proxy_and_known_by_the_bundle_of_certificates() {
    let (scratch, state) = scratch();
    let (server, port, _) = tls_lambda(scratch.path());
    let (proxy, asked) = proxy();
    let setup = Setup::new(&state)
        .set("lambda.endpoint_url", &format!("https://lambda.test:{port}"))
        .env("https_proxy", &format!("http://me:geheim@{proxy}"));
    // Without the bundle the server's certificate is unknown: nothing is sent, and nothing is charged.
    let daemon = setup.start();
    daemon.accept("orders", &[], &payload("one"));
    eventually("an attempt that could not connect", || {
        (daemon.scrape().sum("sendoff_dispatch_attempts_total", &[("outcome", "not-sent")]) >= 1.0).then_some(())
    });
    drop(daemon);
    let bundle = scratch.path().join("ca.pem");
    let daemon = setup.env("AWS_CA_BUNDLE", bundle.to_str().unwrap()).start();
    daemon.wait_until_empty();
    let taken = server.line(PATIENCE, |line| line.strip_prefix("taken ").map(str::to_owned));
    assert_eq!(taken.as_deref(), Some("http/1.1"), "an HTTP/2 connection that dies in silence takes all calls with it");
    let asked = asked.lock().unwrap().clone();
    assert!(asked.iter().all(|head| head.starts_with(&format!("CONNECT lambda.test:{port} "))), "{asked:?}");
    assert!(asked[0].to_lowercase().contains("proxy-authorization: basic "), "{asked:?}");
    assert!(daemon.log().iter().all(|line| !line.contains("geheim")), "a password in the log");
}

#[test]
fn no_value_of_the_environment_stops_the_start_but_with_its_name_and_a_remedy() {
    let (scratch, _) = scratch();
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let legacy = file("legacy", "[default]\nretry_mode = legacy\nmax_attempts = none\ndefaults_mode = odd\n");
    let torn = file("torn", "[default\nregion\n= x\n");
    let circle = file(
        "circle",
        "[profile a]\nrole_arn = arn:aws:iam::1:role/a\nsource_profile = b\n[profile b]\nrole_arn = arn:aws:iam::1:role/b\nsource_profile = a\n",
    );
    let harmless: &[(&str, &str)] = &[
        ("TOKIO_WORKER_THREADS", "0"),
        ("AWS_RETRY_MODE", "legacy"),
        ("AWS_RETRY_MODE", "nonsense"),
        ("AWS_MAX_ATTEMPTS", "0"),
        ("AWS_MAX_ATTEMPTS", "abc"),
        ("AWS_DEFAULTS_MODE", "nonsense"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "perhaps"),
        ("AWS_USE_FIPS_ENDPOINT", "perhaps"),
        ("AWS_PROFILE", "missing"),
        ("AWS_CONFIG_FILE", &legacy),
        ("AWS_CONFIG_FILE", &torn),
        ("AWS_CONFIG_FILE", &circle),
        ("AWS_CONFIG_FILE", "/no/such/file"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "not a url"),
        ("AWS_SDK_UA_APP_ID", "\u{e9} /\\ weird"),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "nonsense"),
        ("AWS_ACCOUNT_ID_ENDPOINT_MODE", "nonsense"),
        ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "perhaps"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "not a url"),
        ("AWS_STS_REGIONAL_ENDPOINTS", "nonsense"),
        ("AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES", "-1"),
    ];
    let lambda = Lambda::start();
    for (variable, value) in harmless {
        let state = tempfile::tempdir().unwrap();
        let setup = Setup::new(state.path()).set("lambda.endpoint_url", &lambda.endpoint_url()).env(variable, value);
        let daemon = setup.start();
        daemon.accept("orders", &[], &payload("one"));
        drop(daemon);
    }
    let refused: &[(&str, &str, &str)] = &[
        ("AWS_REGION", "eu central", "$AWS_REGION"),
        ("AWS_CA_BUNDLE", "/no/such/bundle.pem", "AWS_CA_BUNDLE"),
        ("HTTPS_PROXY", "socks5://proxy:1080", "$HTTPS_PROXY"),
        ("AWS_USE_FIPS_ENDPOINT", "true", "FIPS"),
    ];
    for (variable, value, named) in refused {
        let state = tempfile::tempdir().unwrap();
        let setup = Setup::new(state.path()).set("lambda.endpoint_url", &lambda.endpoint_url()).env(variable, value);
        let (code, said) = setup.fail_to_start();
        assert_eq!(code, Some(78), "{variable}={value}: {said}");
        assert!(said.contains(named) && !said.contains("panicked"), "{variable}={value}: {said}");
    }
}
