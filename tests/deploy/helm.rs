//! Tests the chart: linted, rendered with many values, and compared with the kustomization and the daemon.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kubernetes::misfit;
use crate::tools::{root, said, sendoff, succeed, tool, validator};

/// Values that users set, as the text of a file, each with something that the rendered manifests must contain.
const MATRIX: [(&str, &str); 13] = [
    ("replicas: 1\npodMonitor: {enabled: false}\n", "replicas: 1"),
    (
        "config: {delivery: {attempts_max: 30, age_max: 24h}, lambda: {in_flight_max: 100}}\n\
         functions: [{pattern: \"orders-*\", attempts_max: 5}, {pattern: \"*\", concurrency_max: 7}]\n",
        "[functions.\"orders-*\"]\n    attempts_max = 5\n    \n    [functions.\"*\"]",
    ),
    ("image: {digest: \"sha256:0123456789012345678901234567890123456789012345678901234567890123\"}\n", "@sha256:"),
    ("config: {listen: {ingest: \"0.0.0.0:8080\", health: \"0.0.0.0:8081\"}}\n", "containerPort: 8080"),
    ("serviceAccount: {create: false, name: shared}\n", "serviceAccountName: shared"),
    ("persistence: {size: 100Gi, storageClassName: fast, whenScaled: Delete}\n", "storageClassName: fast"),
    (
        "env: [{name: HTTPS_PROXY, value: \"http://proxy.example.com:3128\"}]\n\
         networkPolicy: {extraEgress: [{ports: [{port: 3128, protocol: TCP}]}]}\n\
         extraVolumes: [{name: ca, configMap: {name: ca}}]\n\
         extraVolumeMounts: [{name: ca, mountPath: /etc/ssl/private-ca, readOnly: true}]\n",
        "HTTPS_PROXY",
    ),
    (
        "fullnameOverride: outbox\ncommonLabels: {team: a}\npodAnnotations: {b: c}\ntolerations: [{operator: Exists}]\n\
         nodeSelector: {disk: ssd}\npriorityClassName: high\nserviceAccount: {annotations: null}\n",
        "name: outbox-pods",
    ),
    (
        "clients: [{name: orders, functions: \"orders-*\"}, {name: b.c, functions: \"*\", calls: true, token_file: /x/y}]\n\
         operators: [{name: oncall, role: operate, payloads: true}]\n\
         clientsSecret: own\ntls: {secretName: own-tls, certManager: {enabled: true}}\n\
         config: {tls: {client_ca: /var/run/secrets/sendoff-tls/ca.crt, listeners: \"ingest admin\"}}\n",
        "[operators.\"oncall\"]\n    payloads = true\n    role = \"operate\"\n    \
         token_file = \"/var/run/secrets/sendoff-operators/oncall\"",
    ),
    (
        "clients: [{name: mesh, functions: \"*\", san: spiffe://shop/orders}]\n\
         config: {tls: {client_ca: /var/run/secrets/sendoff-tls/ca.crt, client_required: true}}\n",
        "san = \"spiffe://shop/orders\"",
    ),
    (
        "config: {handoff: {to: \"https://sqs.eu-central-1.amazonaws.com/123456789012/q\", on_stop: always, within: 30s,\n\
         \x20 receive_queue: \"https://sqs.eu-central-1.amazonaws.com/123456789012/q\"}}\n\
         resources: {limits: {memory: 704Mi}}\nterminationGracePeriodSeconds: 90\nreplicas: 0\n\
         env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]\nenvFrom: [{secretRef: {name: aws}}]\n\
         imagePullSecrets: [{name: registry}]\noperatorsSecret: own.secret\nfunctions: []\n",
        "on_stop = \"always\"",
    ),
    // Both are opened on purpose.
    (
        "config: {listen: {allow_unauthenticated_remote: true}, auth: {ingest: none}}\nclients: []\ntls: {enabled: false}\n",
        "allow_unauthenticated_remote = true",
    ),
    // A proxy in the pod ends TLS.
    (
        "config: {listen: {ingest: \"127.0.0.1:9477\"}, auth: {ingest: none}}\nclients: []\ntls: {enabled: false}\n",
        "ingest = \"none\"",
    ),
];

/// Values that the schema refuses.
const WRONG: [(&str, &str); 28] = [
    ("replica: 3\n", "replica"),
    ("replicas: \"3\"\n", "replicas"),
    ("image: {tag: latest}\n", "tag"),
    ("image: {digest: \"sha256:12\"}\n", "digest"),
    ("persistence: {sise: 10Gi}\n", "sise"),
    ("persistence: {accessMode: ReadWriteMany}\n", "accessMode"),
    ("region: europe\n", "region"),
    ("config: {listen: {ingest: \"9477\"}}\n", "ingest"),
    ("config: {functions: {\"a-*\": {attempts_max: 3}}}\n", "use the list `functions`"),
    ("config: {clients: {a: {functions: \"*\"}}}\n", "use the list `clients`"),
    ("clients: []\n", "name at least one client"),
    ("clients: [{name: a}]\n", "functions"),
    ("clients: [{name: \"a b\", functions: \"*\"}]\n", "name"),
    ("tls: {enabled: false}\n", "config.listen.allow_unauthenticated_remote"),
    ("config: {auth: {ingest: none}}\n", "config.listen.allow_unauthenticated_remote"),
    ("config: {auth: null}\n", "config.listen.allow_unauthenticated_remote"),
    ("config: {\"a b\": {c: 1}}\n", "a b"),
    ("config: {delivery: {\"a.b\": 1}}\n", "a.b"),
    ("config: {listen: {ingest: \"[::]:0\"}}\n", "config.listen.ingest: the ports"),
    ("config: {listen: {health: \"[::]:99999\"}}\n", "config.listen.health: the ports"),
    ("config: {listen: {ingest: \"[::]:9479\"}}\n", "must differ"),
    ("clients: [{name: a, functions: \"*\"}, {name: a, functions: b}]\n", "clients: \"a\" is there twice"),
    ("functions: [{pattern: a, age_max: 1h}, {pattern: a, age_max: 2h}]\n", "functions: \"a\" is there twice"),
    ("fullnameOverride: 1abc\n", "fullnameOverride"),
    ("env: [{name: A, value: 5}]\n", "value"),
    ("clientsSecret: My Secret\n", "clientsSecret"),
    ("tls: {secretName: a_b}\n", "secretName"),
    ("commonLabels: {team: 7}\n", "team"),
];

fn chart() -> PathBuf {
    root().join("deploy/helm/sendoff")
}

/// Renders the chart with these values into `file`.
pub fn render(values: &str, file: &Path) -> Result<String, String> {
    let values_file = file.with_extension("values");
    std::fs::write(&values_file, values).unwrap();
    let mut helm = validator("helm");
    helm.args(["template", "sendoff"]).arg(chart()).args(["--namespace", "sendoff", "--values"]).arg(values_file);
    let output = helm.output().unwrap();
    if !output.status.success() {
        return Err(said(&output));
    }
    std::fs::write(file, &output.stdout).unwrap();
    Ok(String::from_utf8(output.stdout).unwrap())
}

/// The configuration in rendered manifests.
pub fn configuration(rendered: &str) -> String {
    let begin = rendered.find("sendoff.toml: |\n").expect("a configuration") + "sendoff.toml: |\n".len();
    let lines = rendered[begin..].lines().take_while(|line| line.starts_with("    ") || line.is_empty());
    lines.map(|line| line.strip_prefix("    ").unwrap_or("").to_owned() + "\n").collect()
}

/// The daemon has nothing against the configuration. This machine has not the directories of the pod.
fn check_config(rendered: &str, file: &Path) {
    let config = file.with_extension("toml");
    std::fs::write(&config, configuration(rendered)).unwrap();
    let text =
        succeed(sendoff().args(["check-config", "--skip-state-dir", "--config"]).arg(&config).env_remove("HOME"));
    assert!(text.contains("no problems"), "{text}");
}

#[test]
fn the_chart_has_nothing_to_complain_about() {
    succeed(validator("helm").args(["lint", "--strict"]).arg(chart()));
    let scratch = tempfile::tempdir().unwrap();
    succeed(validator("helm").arg("package").arg(chart()).arg("--destination").arg(scratch.path()));
}

#[test]
fn with_its_default_values_the_chart_renders_what_the_kustomization_does() {
    let Some(kubectl) = tool("kubectl", "kubernetes-client") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let (kustomized, rendered) = (scratch.path().join("kustomized.yaml"), scratch.path().join("rendered.yaml"));
    let output =
        Command::new(kubectl).arg("kustomize").arg(root().join("deploy/kubernetes/statefulset")).output().unwrap();
    std::fs::write(&kustomized, &output.stdout).unwrap();
    let text = render("", &rendered).unwrap();
    assert_eq!(misfit(std::slice::from_ref(&rendered)), None);
    succeed(validator("python").arg(root().join("tests/deploy/check_manifests.py")).arg("statefulset").arg(&rendered));
    check_config(&text, &rendered);
    let same = root().join("tests/deploy/check_chart.py");
    succeed(validator("python").arg(&same).arg(&kustomized).arg(&rendered));

    // The comparison notices a difference: of a field, of a setting, and of a missing object.
    for values in [
        "terminationGracePeriodSeconds: 61\n",
        "config: {outbox: {bytes_max: 6GiB}}\n",
        "podMonitor: {enabled: false}\n",
    ] {
        render(values, &rendered).unwrap();
        let output = validator("python").arg(&same).arg(&kustomized).arg(&rendered).output().unwrap();
        assert!(!output.status.success(), "not noticed: {values}");
    }
}

#[test]
fn values_that_users_set_are_rendered_to_sound_manifests_and_a_sound_configuration() {
    let mut files = Vec::new();
    let scratch = tempfile::tempdir().unwrap();
    for (n, (values, wanted)) in MATRIX.iter().enumerate() {
        let file = scratch.path().join(format!("{n}.yaml"));
        let text = render(values, &file).unwrap_or_else(|why| panic!("{values}: {why}"));
        assert!(text.contains(wanted), "{values} is not rendered as {wanted}:\n{text}");
        files.push(file.clone());
        check_config(&text, &file);
    }
    assert_eq!(misfit(&files), None);
}

#[test]
fn values_that_are_wrong_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    for (values, named) in WRONG {
        let why = render(values, &scratch.path().join("wrong.yaml")).expect_err(values);
        assert!(why.contains(named), "{values}: {why}");
    }
}

/// Helm allows names of releases that are no names of Services.
#[test]
fn a_release_whose_name_no_service_can_have_is_refused_and_says_what_to_set() {
    for (release, set, good) in [
        ("1st", "", false),
        ("a.b", "", false),
        ("1st", "fullnameOverride=first", true),
        ("orders", "nameOverride=1st", true),
        (&"a".repeat(53), "", true),
        ("a", "image.tag=1.10", true),
    ] {
        let mut helm = validator("helm");
        helm.args(["template", release]).arg(chart()).args(["--namespace", "sendoff", "--set-string", set]);
        let output = helm.output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.success(), good, "{release} {set}: {text}");
        assert!(good || text.contains("fullnameOverride"), "{release} {set}: {text}");
    }
}

/// Kubernetes refuses to change these fields of a StatefulSet, so an upgrade that changed them would fail.
#[test]
fn an_upgrade_changes_no_field_that_kubernetes_does_not_let_change() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("upgrade.yaml");
    let fixed = |text: &str| {
        let set = text
            .split("\n---")
            .find(|document| document.contains("kind: StatefulSet"))
            .expect("a StatefulSet")
            .to_owned();
        let part = |from: &str, to: &str| {
            let begin = set.find(from).unwrap_or_else(|| panic!("no {from}"));
            set[begin..].split(to).next().unwrap().to_owned()
        };
        [
            part("  serviceName:", "\n"),
            part("  podManagementPolicy:", "\n"),
            part("  selector:", "  template:"),
            part("  volumeClaimTemplates:", "  persistentVolumeClaimRetentionPolicy:"),
        ]
    };
    let before = fixed(&render("", &file).unwrap());
    let changes = "image: {tag: 9.9.9}\nreplicas: 5\nconfig: {log: {level: debug}}\ncommonLabels: {team: a}\npodLabels: {tier: backend}\n\
                   resources: {limits: {memory: 1Gi}}\nregion: us-east-1\n";
    assert_eq!(before, fixed(&render(changes, &file).unwrap()));
    // This one does change a claim, so the comparison can fail.
    assert_ne!(before, fixed(&render("persistence: {size: 20Gi}\n", &file).unwrap()));
}
