//! Starts daemons with the configurations of deploy/, and calls them as known and unknown clients and operators.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use sendoff::standin::Script;

use crate::rig::daemon::{Daemon, Setup};
use crate::rig::lambda::Lambda;
use crate::rig::postgres::Postgres;
use crate::rig::{http, python};
use crate::tools::{clean, root, said, sendoff, succeed, tool};

/// The directories of the pod, and the configuration that names them instead of the pod's.
struct Pod {
    scratch: tempfile::TempDir,
    config: PathBuf,
}

impl Pod {
    fn new(toml: &str) -> Self {
        let scratch = tempfile::Builder::new().prefix("sendoff-").tempdir().unwrap();
        for name in ["secrets", "run"] {
            std::fs::create_dir(scratch.path().join(name)).unwrap();
        }
        let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        let toml = toml.replace("/var/run/secrets", &at("secrets"));
        let toml = toml.replace("/run/sendoff", &at("run")).replace("/var/lib/sendoff", &at("state"));
        let config = scratch.path().join("sendoff.toml");
        std::fs::write(&config, toml).unwrap();
        Self { scratch, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes the certificate by the command of docs/kubernetes.md, and a secret by `sendoff auth mint`.
    fn make_secrets(&self) -> String {
        let page = std::fs::read_to_string(root().join("docs/kubernetes.md")).unwrap();
        let openssl = page.lines().map(str::trim).find(|line| line.starts_with("openssl req")).unwrap();
        let names = ["secrets/sendoff-tls", "secrets/sendoff-clients", "secrets/sendoff-database"];
        let [tls, clients, database] = names.map(|name| self.path(name));
        for directory in [&tls, &clients, &database] {
            std::fs::create_dir(directory).unwrap();
        }
        succeed(Command::new("bash").args(["-c", openssl]).current_dir(&tls));
        std::fs::copy(tls.join("tls.crt"), database.join("ca.crt")).unwrap();
        std::fs::write(database.join("password"), "not asked for").unwrap();
        let minted = String::from_utf8(sendoff().args(["auth", "mint"]).output().unwrap().stdout).unwrap();
        std::fs::write(clients.join("orders"), &minted).unwrap();
        minted.trim().to_owned()
    }

    fn start(&self, lambda: &Lambda, ingest: &str) -> Daemon {
        let setup = Setup::new(&self.path("state")).config(&self.config).set("listen.health", "[::]:0");
        setup.set("listen.ingest", ingest).set("lambda.endpoint_url", &lambda.endpoint_url()).start()
    }

    /// Operates as `kubectl exec` and root do, by the socket. Returns the exit code and what is said.
    fn operate(&self, words: &[&str]) -> (i32, String) {
        let mut command = sendoff();
        command
            .env("SENDOFF_LISTEN__ADMIN_UNIX", self.path("run/admin.sock"))
            .env("SENDOFF_LISTEN__ADMIN", "127.0.0.1:1");
        let output = command.args(words).output().unwrap();
        (output.status.code().unwrap(), said(&output))
    }

    /// The operator's API takes nobody in by TCP, and the daemon's own user by the socket. Probes and metrics need no token.
    fn assert_operators_are_asked(&self, daemon: &Daemon) {
        let denied = http::get(daemon.admin, "/v1/status");
        assert_eq!((denied.status, denied.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(http::request(daemon.admin, "POST", "/v1/functions/orders-eu/purge", &[], b"").status, 401);
        let (code, said) = self.operate(&["status"]);
        assert_eq!(code, 0, "{said}");
        let (_, said) = self.operate(&["drain", "--timeout", "0s"]);
        assert!(said.contains("1 event still waits for delivery"), "the preStop hook: {said}");
        let ready = daemon.wait_for_log(|record| record["message"] == "ready");
        let health: SocketAddr = ready["health"].as_str().unwrap().parse().unwrap();
        for path in ["/livez", "/metrics"] {
            assert_eq!(http::get(health, path).status, 200, "{path}");
        }
        assert_eq!(http::get(health, "/v1/status").status, 401, "nothing but probes and metrics");
    }
}

/// What the AWS CLI says of one Event.
fn invoke(url: &str, ca: &Path, function: &str) -> String {
    let mut aws = python::aws(url);
    aws.args([
        "lambda",
        "invoke",
        "--function-name",
        function,
        "--invocation-type",
        "Event",
        "--payload",
        "{\"id\":\"1\"}",
    ]);
    said(&aws.arg("/dev/null").env("AWS_CA_BUNDLE", ca).env("AWS_MAX_ATTEMPTS", "1").output().unwrap())
}

/// A known client is let in, everybody else is not, and nothing of theirs is stored.
fn assert_knows_its_clients(toml: &str) {
    let pod = Pod::new(toml);
    let secret = pod.make_secrets();
    let mut check = sendoff();
    let checked = succeed(check.args(["check-config", "--config"]).arg(&pod.config).env("AWS_REGION", "eu-central-1"));
    assert!(checked.contains("no problems") && checked.contains("certificate is good until"), "{checked}");

    let lambda = Lambda::start();
    lambda.default_script(Script::default());
    lambda.throttle_all();
    let daemon = pod.start(&lambda, "[::]:0");
    let ca = pod.path("secrets/sendoff-tls/tls.crt");
    let url = format!("https://localhost:{}", daemon.ingest.port());
    let known = format!("{url}/c/{secret}");
    let let_in = invoke(&known, &ca, "orders-eu");
    assert!(let_in.contains("\"StatusCode\": 202"), "{let_in}");
    for (url, function, error) in [
        (&known, "payroll", "AccessDeniedException"),
        (&url, "orders-eu", "UnrecognizedClientException"),
        (&format!("{known}x"), "orders-eu", "UnrecognizedClientException"),
    ] {
        let refused = invoke(url, &ca, function);
        assert!(refused.contains(error), "{error}: {refused}");
        assert!(!refused.contains(&secret), "{refused}");
    }
    let distrustful = invoke(&known, Path::new("/etc/ssl/certs/ca-certificates.crt"), "orders-eu");
    assert!(distrustful.contains("SSL validation failed"), "{distrustful}");
    assert_eq!(http::get(daemon.ingest, "/v1/events/x").status, 400, "plain HTTP");
    assert_eq!(daemon.stored(), 1.0);
    pod.assert_operators_are_asked(&daemon);
}

#[test]
fn a_daemon_with_the_configuration_of_the_statefulset_lets_in_known_clients_only() {
    if tool("openssl", "openssl").is_none() {
        return;
    }
    assert_knows_its_clients(
        &std::fs::read_to_string(root().join("deploy/kubernetes/statefulset/sendoff.toml")).unwrap(),
    );
}

#[test]
fn a_daemon_with_the_configuration_of_the_deployment_on_postgresql_lets_in_known_clients_only() {
    if tool("openssl", "openssl").is_none() {
        return;
    }
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let toml = std::fs::read_to_string(root().join("deploy/kubernetes/postgres/sendoff.toml")).unwrap();
    let database = "postgres://sendoff@db.example.com:5432/sendoff";
    assert!(toml.contains(database));
    assert_knows_its_clients(&toml.replace(database, &server.url()));
}

#[test]
fn a_daemon_with_the_configuration_of_the_chart_lets_in_known_clients_only() {
    if tool("openssl", "openssl").is_none() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let rendered = crate::helm::render("", &scratch.path().join("rendered.yaml")).unwrap();
    assert_knows_its_clients(&crate::helm::configuration(&rendered));
}

#[test]
fn a_sidecar_and_a_service_take_events_on_loopback_and_operators_by_their_socket_only() {
    let lambda = Lambda::start();
    lambda.throttle_all();
    for file in ["kubernetes/sidecar/sendoff.toml", "systemd/sendoff.toml"] {
        let text = std::fs::read_to_string(root().join("deploy").join(file)).unwrap();
        assert!(!text.contains("\ningest =") && !text.contains("allow_unauthenticated_remote"), "{file}");
        // systemd names the directory of the socket itself, by RUNTIME_DIRECTORY.
        let text = if text.contains("admin_unix") {
            text
        } else {
            text.replace("[auth]", "[listen]\nadmin_unix = \"/run/sendoff/admin.sock\"\n[auth]")
        };
        let pod = Pod::new(&text);
        let daemon = pod.start(&lambda, "127.0.0.1:0");
        daemon.accept("orders-eu", &[], b"{\"id\":\"1\"}");
        pod.assert_operators_are_asked(&daemon);
    }
}

#[test]
fn what_the_chart_opens_on_purpose_is_said_in_its_notes() {
    let notes = |values: &str| {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("values");
        std::fs::write(&file, values).unwrap();
        let mut helm = crate::tools::validator("helm");
        clean(&mut helm);
        helm.args(["install", "sendoff"]).arg(root().join("deploy/helm/sendoff")).args(["--namespace", "shop"]);
        let text = succeed(helm.args(["--dry-run=client", "--values"]).arg(&file));
        text.split_once("NOTES:").unwrap().1.to_owned()
    };
    let safe = notes("");
    assert!(safe.contains("=https://sendoff.shop.svc:9477/c/SECRET\n"), "{safe}");
    assert!(safe.contains("--from-literal=orders=\"$(sendoff auth mint)\""), "{safe}");
    for word in ["clear", "config.auth.ingest is none", "config.auth.admin is none"] {
        assert!(!safe.contains(word), "{word}: {safe}");
    }
    let open = "config: {listen: {allow_unauthenticated_remote: true}, auth: {ingest: none, admin: none}}\nclients: []\n\
                tls: {enabled: false}\n";
    let said = notes(open);
    assert!(said.contains("=http://sendoff.shop.svc:9477\n"), "{said}");
    for warning in [
        "tls.enabled is false. Events cross the network in the clear.",
        "config.auth.ingest is none. Every pod that the network policy admits can invoke",
        "config.auth.admin is none. Everybody who reaches 127.0.0.1:9478 can read payloads",
    ] {
        assert!(said.contains(&format!("WARNING: {warning}")), "{warning}: {said}");
    }
    let said = notes(&format!("{open}networkPolicy: {{enabled: false}}\n"));
    assert!(said.contains("Every pod of the cluster can invoke"), "{said}");
}
