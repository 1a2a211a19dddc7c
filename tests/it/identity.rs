//! Tests known clients with the real programs that use each way of proof, and unknown clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use aws_sdk_lambda::error::ProvideErrorMetadata;
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_lambda::types::InvocationType;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::clients::{self, cli, go, javascript, js, rust};
use crate::rig::daemon::{Daemon, Setup, invoke_path, scratch};
use crate::rig::lambda::Lambda;
use crate::rig::{eventually, http, python};
use crate::tls::authority::{Authority, Client};

pub const KEY_ID: &str = "SOFFTESTTESTTESTTEST";

/// A secret as `sendoff auth mint` prints it.
fn mint() -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    let minted = String::from_utf8(python::run(command.args(["auth", "mint"])).stdout).unwrap();
    assert_eq!(minted.trim().len(), 43);
    minted.trim().to_owned()
}

/// A daemon with TLS that accepts known clients only, and the proofs of one client.
pub struct Guarded {
    pub daemon: Daemon,
    pub authority: Authority,
    ca: PathBuf,
    secrets: PathBuf,
    pub path_token: String,
    pub bearer: String,
    pub key: String,
}

const CLIENTS: [&str; 4] = ["by-path", "by-token", "by-key", "by-certificate"];

impl Guarded {
    pub fn start(files: &Path, state: &Path, lambda: &Lambda) -> Self {
        let authority = Authority::new("test authority");
        let ca = authority.write(files);
        authority.for_loopback(2100).swap_in(files);
        let [path_token, bearer, key] = [mint(), mint(), mint()];
        for (name, secret) in [("path", &path_token), ("token", &bearer), ("key", &key)] {
            std::fs::write(files.join(name), format!("{secret}\n")).unwrap();
        }
        let config = files.join("sendoff.toml");
        let text = format!(
            r#"
            [auth]
            ingest = "required"
            [tls]
            cert = "{dir}/tls.crt"
            key = "{dir}/tls.key"
            client_ca = "{dir}/ca.pem"
            [clients.by-path]
            functions = "orders mails"
            path_token_file = "{dir}/path"
            calls = true
            [clients.by-token]
            functions = "orders"
            token_file = "{dir}/token"
            [clients.by-key]
            functions = "orders"
            access_key_id = "{KEY_ID}"
            secret_file = "{dir}/key"
            calls = true
            [clients.by-certificate]
            functions = "orders"
            san = "spiffe://shop.test/orders"
            "#,
            dir = files.display()
        );
        std::fs::write(&config, text).unwrap();
        let setup = Setup::new(state).config(&config).set("lambda.endpoint_url", &lambda.endpoint_url());
        // The most detailed level, so that every secret in the log is found.
        let daemon = setup.set("log.level", "trace").start();
        Self { daemon, authority, ca, secrets: files.to_owned(), path_token, bearer, key }
    }

    fn url(&self) -> String {
        format!("https://{}", self.daemon.ingest)
    }

    fn secret_url(&self) -> String {
        format!("{}/c/{}", self.url(), self.path_token)
    }

    /// Checks that nothing the daemon has written contains a secret.
    pub fn assert_silent(&self) {
        let client = Client::new(&self.authority, None);
        let mut said = self.daemon.log().join("\n");
        for path in ["/metrics", "/v1/status", "/v1/functions", "/v1/events", "/v1/dead-letters"] {
            said += &client.request(self.daemon.admin, "GET", path, &[], b"").unwrap().text();
        }
        let mut shown = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        let config = self.secrets.join("sendoff.toml");
        shown.args(["show-config", "--state-dir", "/s", "--config", config.to_str().unwrap()]);
        said += &String::from_utf8(python::run(&mut shown).stdout).unwrap();
        assert!(said.contains("request") && said.contains("clients.by-path.path_token_file"));
        for secret in [&self.path_token, &self.bearer, &self.key] {
            // Parts of a secret must not appear either.
            for part in [&secret[..20], &secret[20..]] {
                assert!(
                    !said.contains(part),
                    "a secret is told: {}",
                    said.lines().find(|line| line.contains(part)).unwrap()
                );
            }
        }
    }
}

/// What a program is told: where to send, whom to trust, and who it is.
struct As<'a> {
    url: &'a str,
    ca: &'a Path,
    /// The key id and its secret.
    key: (&'a str, &'a str),
}

impl As<'_> {
    fn env(&self, command: &mut Command) {
        command
            .env("AWS_CA_BUNDLE", self.ca)
            .env("NODE_EXTRA_CA_CERTS", self.ca)
            .env("AWS_ACCESS_KEY_ID", self.key.0)
            .env("AWS_SECRET_ACCESS_KEY", self.key.1)
            .env("AWS_MAX_ATTEMPTS", "1");
    }

    /// The status that each program gets for one invocation, in the order of the programs' names.
    fn invoke(&self, function: &str, kind: &str, authority: &Authority) -> Vec<(&'static str, u16)> {
        let mut answers = Vec::new();
        let out = tempfile::NamedTempFile::new().unwrap();
        let payload = json!({ "id": "1" }).to_string();
        let mut programs = vec![("aws-cli-1", python::aws(self.url))];
        programs.extend(cli::version_2(self.url).map(|aws| ("aws-cli-2", aws)));
        for (name, mut aws) in programs {
            aws.args([
                "lambda",
                "invoke",
                "--function-name",
                function,
                "--invocation-type",
                kind,
                "--payload",
                &payload,
            ]);
            self.env(aws.arg(out.path()));
            let output = aws.output().unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            let status = [("\"StatusCode\": 202", 202), ("\"StatusCode\": 200", 200), ("Exception) when calling", 403)];
            let status = status.iter().find(|(words, _)| text.contains(words)).map(|(_, status)| *status);
            answers.push((name, status.unwrap_or_else(|| panic!("{name}: {text}"))));
        }
        let case = |operation| {
            let args = json!({ "FunctionName": function, "InvocationType": kind, "Payload": payload });
            vec![("case".to_owned(), operation, args)]
        };
        let status = |shown: &[Value]| u16::try_from(shown[0]["shown"]["status"].as_u64().unwrap()).unwrap();
        let mut boto3 = python::script("invoke.py");
        self.env(boto3.arg(self.url));
        answers.push(("boto3", status(&clients::shown(boto3, &case("invoke")))));
        if let Some(node) = javascript() {
            let mut program = Command::new(node);
            program.arg(js("invoke.mjs")).arg(self.url);
            python::aws_environment(&mut program);
            self.env(&mut program);
            answers.push(("javascript", status(&clients::shown(program, &case("Invoke")))));
        }
        if let Some(program) = go::program() {
            let mut program = go::invoke(&program, self.url, function, kind, &payload);
            self.env(&mut program);
            answers.push(("go", go::status(&mut program)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = rust::client_as(self.url, authority.pem.as_bytes(), self.key);
        let call = client.invoke().function_name(function).invocation_type(InvocationType::from(kind));
        let answer = runtime.block_on(call.payload(Blob::new(payload.as_bytes())).send());
        answers.push((
            "rust",
            match &answer {
                Ok(answer) => u16::try_from(answer.status_code()).unwrap(),
                Err(error) => error.raw_response().unwrap_or_else(|| panic!("{error:?}")).status().as_u16(),
            },
        ));
        if let Err(error) = answer {
            assert!(error.code().is_some_and(|code| code.ends_with("Exception")), "{error:?}");
        }
        answers
    }
}

#[track_caller]
fn assert_all(answers: &[(&str, u16)], status: u16) {
    assert!(answers.len() >= 3 && answers.iter().all(|(_, answered)| *answered == status), "{status}: {answers:?}");
}

#[test]
fn every_sdk_is_known_by_a_secret_in_its_endpoint_whatever_its_credentials() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let guarded = Guarded::start(scratch.path(), &state, &lambda);
    let url = guarded.secret_url();
    let known = As { url: &url, ca: &guarded.ca, key: ("AKIDEXAMPLE", "secret") };
    for function in ["orders", "arn:aws:lambda:eu-central-1:123456789012:function:orders"] {
        let may = if function == "orders" { 202 } else { 403 };
        assert_all(&known.invoke(function, "Event", &guarded.authority), may);
    }
    assert_all(&known.invoke("mails", "RequestResponse", &guarded.authority), 200);
    assert_all(&known.invoke("payroll", "Event", &guarded.authority), 403);
    // A slash at the end breaks the SDK for JavaScript.
    let slash = format!("{url}/");
    assert_all(&As { url: &slash, ..known }.invoke("orders", "Event", &guarded.authority), 202);
    let wrong = format!("{}x", guarded.secret_url());
    assert_all(
        &As { url: &wrong, ca: &guarded.ca, key: ("AKIDEXAMPLE", "secret") }.invoke(
            "orders",
            "Event",
            &guarded.authority,
        ),
        403,
    );
    guarded.assert_silent();
}

#[test]
fn every_sdk_is_known_by_the_signature_of_an_issued_key_pair() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let guarded = Guarded::start(scratch.path(), &state, &lambda);
    let url = guarded.url();
    let of = |key| As { url: &url, ca: &guarded.ca, key };
    let known = of((KEY_ID, guarded.key.as_str()));
    assert_all(&known.invoke("orders", "Event", &guarded.authority), 202);
    assert_all(&known.invoke("orders", "RequestResponse", &guarded.authority), 200);
    assert_all(&known.invoke("mails", "Event", &guarded.authority), 403);
    assert_all(&of((KEY_ID, "another secret")).invoke("orders", "Event", &guarded.authority), 403);
    assert_all(&of(("AKIDEXAMPLE", "secret")).invoke("orders", "Event", &guarded.authority), 403);

    // Old and new secrets overlap for a while. Then the old one no longer works.
    let new = mint();
    let file = scratch.path().join("key");
    let boto3 = |secret: &str| {
        let mut boto3 = python::script("invoke.py");
        As { url: &url, ca: &guarded.ca, key: (KEY_ID, secret) }.env(boto3.arg(&url));
        let args = json!({ "FunctionName": "orders", "InvocationType": "Event", "Payload": "{}" });
        clients::shown(boto3, &[("case".to_owned(), "invoke", args)])[0]["shown"]["status"].as_u64().unwrap()
    };
    std::fs::write(&file, format!("{}\n{new}\n", guarded.key)).unwrap();
    guarded.daemon.signal(Signal::HUP);
    eventually("the new secret is good", || (boto3(&new) == 202).then_some(()));
    assert_eq!(boto3(&guarded.key), 202);
    std::fs::write(&file, format!("{new}\n")).unwrap();
    guarded.daemon.signal(Signal::HUP);
    eventually("the old secret is good no more", || (boto3(&guarded.key) == 403).then_some(()));
    std::fs::write(&file, "short\n").unwrap();
    guarded.daemon.signal(Signal::HUP);
    guarded
        .daemon
        .wait_for_log(|record| record["message"].as_str().is_some_and(|it| it.contains("files are not reloaded")));
    assert_eq!(boto3(&new), 202, "what was there stays");
    guarded.assert_silent();
}

#[test]
fn tokens_and_certificates_name_clients_and_wrong_ones_get_lambdas_words_and_store_nothing() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let guarded = Guarded::start(scratch.path(), &state, &lambda);
    let at = guarded.daemon.ingest;
    let plain = Client::new(&guarded.authority, None);
    let certified =
        Client::new(&guarded.authority, Some(&guarded.authority.issue(&["spiffe://shop.test/orders"], 2100)));
    let unknown = Client::new(&guarded.authority, Some(&guarded.authority.issue(&["spiffe://shop.test/mails"], 2100)));
    let bearer = format!("Bearer {}", guarded.bearer);
    let event = ("X-Amz-Invocation-Type", "Event");
    let native = br#"{"function":"orders"}"#;
    let invoke = |client: &Client, function: &str, headers: &[(&str, &str)]| {
        client.request(at, "POST", &invoke_path(function), &[&[event], headers].concat(), b"{}").unwrap()
    };
    assert_eq!(invoke(&certified, "orders", &[]).status, 202);
    assert_eq!(invoke(&certified, "mails", &[]).status, 403);
    assert_eq!(plain.request(at, "POST", "/v1/events", &[("Authorization", &bearer)], native).unwrap().status, 202);
    let stored = guarded.daemon.log().len();
    assert!(stored > 0);

    let foreign = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261130/eu-central-1/lambda/aws4_request, SignedHeaders=host, Signature=00";
    let ours = foreign.replace("AKIDEXAMPLE", KEY_ID);
    for (client, header, code) in [
        (&plain, None, "MissingAuthenticationTokenException"),
        (&unknown, None, "MissingAuthenticationTokenException"),
        (&plain, Some("Bearer wrong"), "UnrecognizedClientException"),
        (&plain, Some(foreign), "UnrecognizedClientException"),
        (&plain, Some("AWS4-HMAC-SHA256 nonsense"), "IncompleteSignatureException"),
        (&plain, Some(ours.as_str()), "IncompleteSignatureException"),
    ] {
        let headers: Vec<(&str, &str)> = header.iter().map(|text| ("Authorization", *text)).collect();
        let answer = invoke(client, "orders", &headers);
        assert_eq!((answer.status, answer.header("x-amzn-errortype")), (403, Some(code)), "{header:?}");
        assert!(answer.json()["message"].is_string() && answer.json().as_object().unwrap().len() == 1);
        let answer = client.request(at, "POST", "/v1/events", &headers, native).unwrap();
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{header:?}");
    }
    let metrics = plain.request(guarded.daemon.admin, "GET", "/metrics", &[], b"").unwrap().text();
    for line in [
        "sendoff_ingest_client_requests_total{client=\"by-certificate\"} 2",
        "sendoff_ingest_client_requests_total{client=\"by-token\"} 1",
        "sendoff_ingest_client_refused_total{client=\"by-certificate\",reason=\"not-allowed\"} 1",
        "sendoff_ingest_client_refused_total{client=\"unknown\",reason=\"no-credentials\"} 4",
        "sendoff_ingest_client_refused_total{client=\"unknown\",reason=\"unknown-credentials\"} 4",
        "sendoff_ingest_client_refused_total{client=\"unknown\",reason=\"malformed-signature\"} 4",
        "sendoff_ingest_accepted_total{function=\"orders\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    assert!(!CLIENTS.iter().any(|client| metrics.contains(&format!("{client}\",reason=\"unknown"))));

    // HTTP/2 logs heads in its own way.
    if let Some(curl) = crate::rig::tools::tool("curl", "curl") {
        for (url, status) in [(guarded.secret_url(), "2 202"), (format!("{}x", guarded.secret_url()), "2 403")] {
            let mut curl = Command::new(&curl);
            curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_version} %{http_code}", "-d", "{}"])
                .args(["-H", "X-Amz-Invocation-Type: Event", "-H", &format!("Authorization: {bearer}"), "--cacert"])
                .arg(&guarded.ca)
                .arg(format!("{url}{}", invoke_path("orders")));
            assert_eq!(String::from_utf8(python::run(&mut curl).stdout).unwrap(), status);
        }
    }

    let mut send = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    send.args(["send", "orders", "{}", "--endpoint", &guarded.url(), "--ca"]).arg(&guarded.ca);
    let refused = send.output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("MissingAuthenticationTokenException"));
    python::run(send.arg("--token-file").arg(scratch.path().join("token")));
    guarded.assert_silent();
}

#[test]
fn check_config_names_secrets_that_cannot_be_used_without_showing_them() {
    let (scratch, state) = scratch();
    let secret = scratch.path().join("secret");
    std::fs::write(&secret, "too-short-to-be-a-secret\n").unwrap();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.args(["check-config", "--state-dir", state.to_str().unwrap(), "--set", "clients.a.functions=*"]);
        command.args(["--set", &format!("clients.a.token_file={}", secret.display())]);
        python::aws_environment(&mut command);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, said) = check();
    assert!(code == 78 && said.contains("clients.a.token_file") && said.contains("line 1 has 24 characters"), "{said}");
    assert!(!said.contains("too-short"), "{said}");
    std::fs::write(&secret, mint()).unwrap();
    assert_eq!(check().0, 0, "{}", check().1);
    let plain =
        Setup::new(&state).set("clients.a.functions", "*").set("clients.a.token_file", secret.to_str().unwrap());
    let daemon = plain.start();
    assert_eq!(daemon.invoke("orders", &[], b"{}").status, 202, "nobody must say who he is");
    let wrong = daemon.invoke("orders", &[("Authorization", "Bearer wrong")], b"{}");
    assert_eq!(wrong.status, 403);
    assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
}
