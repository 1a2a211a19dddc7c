//! guarded: what it costs to know a client. From the request to the durable 202, each way of proof beside none.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use rustls::{ClientConfig, RootCertStore};
use sendoff::clock::Clock;

use crate::accept::{COLUMNS, measured};
use crate::client::{self, Headers, Load, Way};
use crate::daemon::Daemon;
use crate::report::{Report, Sample};

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Keep-alive connections, each with one request at a time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    /// The requests of one measurement
    #[arg(long, default_value_t = 20_000)]
    events: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 64, payload_bytes: 1_024, events: 20_000 }
    }
}

/// What is measured: over TLS or not, and how the client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct System {
    name: &'static str,
    tls: bool,
    proof: Proof,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    None,
    Path,
    Bearer,
    Signature,
}

const SYSTEMS: [System; 6] = [
    System { name: "nobody is asked", tls: false, proof: Proof::None },
    System { name: "secret path", tls: false, proof: Proof::Path },
    System { name: "bearer token", tls: false, proof: Proof::Bearer },
    System { name: "signature", tls: false, proof: Proof::Signature },
    System { name: "TLS, nobody is asked", tls: true, proof: Proof::None },
    System { name: "TLS, secret path", tls: true, proof: Proof::Path },
];

const SECRET: &str = "bench-0123456789-0123456789-0123456789";
const KEY_ID: &str = "SOFFBENCHBENCHBENCHB";

pub async fn run(options: &Options, rounds: usize) -> anyhow::Result<()> {
    let mut report = Report::new("guarded", COLUMNS);
    let clock = Clock::system();
    let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let tls = certificate(files.path())?;
    std::fs::write(files.path().join("secret"), SECRET)?;
    for round in 1..=rounds {
        eprintln!("guarded: round {round} of {rounds}");
        for system in SYSTEMS {
            let tls = system.tls.then(|| Arc::clone(&tls));
            report.add(system.name, one(system, options, files.path(), tls, &clock).await?);
        }
    }
    let plain = SYSTEMS[0].name;
    for system in &SYSTEMS[1..] {
        report.ratio((system.name, "accept/s"), (plain, "accept/s"), "");
        report.ratio((system.name, "CPU s/1,000"), (plain, "CPU s/1,000"), "");
    }
    report.finish()
}

async fn one(
    system: System,
    options: &Options,
    files: &Path,
    tls: Option<Arc<ClientConfig>>,
    clock: &Clock,
) -> anyhow::Result<Sample> {
    // Bound but not listening: calls are refused at once, and lanes are held.
    let nobody = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", nobody.local_addr()?);
    drop(nobody);
    let path = |name: &str| files.join(name).display().to_string();
    let mut settings = Vec::new();
    if system.tls {
        settings.extend([
            format!("tls.cert={}", path("cert.pem")),
            format!("tls.key={}", path("key.pem")),
            "tls.listeners=ingest".to_owned(),
        ]);
    }
    let keys: &[(&str, &str)] = match system.proof {
        Proof::None => &[],
        Proof::Path => &[("path_token_file", "secret")],
        Proof::Bearer => &[("token_file", "secret")],
        Proof::Signature => &[("secret_file", "secret")],
    };
    if system.proof != Proof::None {
        settings.extend(["auth.ingest=required".to_owned(), "clients.bench.functions=*".to_owned()]);
    }
    settings.extend(keys.iter().map(|(key, name)| format!("clients.bench.{key}={}", path(name))));
    if system.proof == Proof::Signature {
        settings.push(format!("clients.bench.access_key_id={KEY_ID}"));
    }
    let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let daemon = Daemon::start(None, state.path(), &url, &settings).await?;
    let (address, Options { connections, payload_bytes, events }) = (daemon.ingest, options.clone());
    let way = way(system.proof, tls, address, payload_bytes, clock)?;
    let load = Load { address, connections, events, payload_bytes, functions: 1, headers: Headers::Sdk, way };
    let sample = measured(&daemon, &load, clock).await?;
    daemon.kill().await?;
    Ok(sample)
}

fn way(
    proof: Proof,
    tls: Option<Arc<ClientConfig>>,
    address: SocketAddr,
    payload_bytes: usize,
    clock: &Clock,
) -> anyhow::Result<Way> {
    let (prefix, proof) = match proof {
        Proof::None => (String::new(), None),
        Proof::Path => (format!("/c/{SECRET}"), None),
        Proof::Bearer => (String::new(), Some(format!("authorization: Bearer {SECRET}\r\n"))),
        Proof::Signature => (String::new(), Some(signature(address, &client::payload(payload_bytes), clock)?)),
    };
    Ok(Way { tls, prefix, proof })
}

/// The header lines of one signature. All requests have the same signed parts, as the id of an invocation is not signed.
fn signature(address: SocketAddr, payload: &[u8], clock: &Clock) -> anyhow::Result<String> {
    let identity = Credentials::new(KEY_ID, SECRET, None, None, "bench").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-central-1")
        .name("lambda")
        .time(UNIX_EPOCH + Duration::from_millis(clock.now().0))
        .settings(SigningSettings::default())
        .build()?
        .into();
    let url = format!("http://{address}/2015-03-31/functions/f0/invocations");
    let headers = [("x-amz-invocation-type", "Event")];
    let request = SignableRequest::new("POST", &url, headers.into_iter(), SignableBody::Bytes(payload))?;
    let (instructions, _) = sign(request, &params)?.into_parts();
    Ok(instructions.headers().map(|(name, value)| format!("{name}: {value}\r\n")).collect())
}

/// Makes a certificate for loopback. Returns what trusts it.
fn certificate(files: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let pem = |label: &str, der: &[u8]| {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
    };
    std::fs::write(files.join("cert.pem"), pem("CERTIFICATE", certificate.der()))?;
    std::fs::write(files.join("key.pem"), pem("PRIVATE KEY", &key.serialize_der()))?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).context("trusting the certificate")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}
