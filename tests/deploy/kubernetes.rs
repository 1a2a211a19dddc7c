//! Tests the manifests: rendered by kubectl, checked against Kubernetes' own schemas and against each other.

use std::path::PathBuf;
use std::process::Command;

use sendoff::admin::bodies::MEMORY_MAX;
use sendoff::config::{Environment, Flags, load};
use sendoff::handoff::send;

use crate::tools::{root, said, sendoff, succeed, tool, validator};

/// The versions of the schemas: the oldest with native sidecars by default, and the newest that the validator has.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// What Kubernetes' own schemas have against manifests. `None` if nothing. One call for all files, because it takes seconds.
pub fn misfit(files: &[PathBuf]) -> Option<String> {
    VERSIONS.into_iter().find_map(|version| {
        let mut validate = validator("kubernetes-validate");
        let output = validate.args(["--strict", "--kubernetes-version", version]).args(files).output().unwrap();
        let text = said(&output);
        // It says so of each object. Without that, it has looked at none.
        let has_looked = files.iter().all(|file| text.contains(&format!("INFO {} passed for", file.display())));
        (!output.status.success() || !has_looked).then_some(text)
    })
}

#[test]
fn the_validator_notices_a_field_that_is_misspelt_missing_or_of_another_type() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("pod.yaml");
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{{spec}}}\n");
    for (spec, is_good) in [
        ("containers: [{name: a, image: b}]", true),
        ("containers: [{name: a, imgae: b}]", false),
        ("containers: [{image: b}]", false),
        ("containers: [{name: a, env: [{name: A, value: 5}]}]", false),
    ] {
        std::fs::write(&file, pod(spec)).unwrap();
        let misfit = misfit(std::slice::from_ref(&file));
        assert_eq!(misfit.is_none(), is_good, "{spec}: {misfit:?}");
    }
}

#[test]
fn rendered_manifests_fit_the_schemas_of_kubernetes_and_each_other() {
    let Some(kubectl) = tool("kubectl", "kubernetes-client") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for name in ["statefulset", "example", "example-handoff", "postgres"] {
        let dir = root().join("deploy/kubernetes").join(name);
        let rendered = Command::new(&kubectl).arg("kustomize").arg(&dir).output().unwrap();
        assert!(rendered.status.success(), "{}", crate::tools::said(&rendered));
        let file = scratch.path().join(format!("{name}.yaml"));
        std::fs::write(&file, &rendered.stdout).unwrap();
        files.push(file.clone());
        let check = root().join("tests/deploy/check_manifests.py");
        let certificate = root().join("deploy/kubernetes/statefulset/certificate.yaml");
        succeed(validator("python").arg(check).arg(name).arg(&file).arg(certificate));
    }
    let migrate = root().join("deploy/kubernetes/postgres/migrate.yaml");
    files.push(migrate);
    assert_eq!(misfit(&files), None);
}

#[test]
fn manifests_are_yaml_as_people_write_it() {
    let rules = "{extends: default, rules: {document-start: disable, line-length: {max: 130}, braces: disable, comments: {min-spaces-from-content: 1}}, ignore: \"**/templates/**\"}";
    succeed(validator("yamllint").args(["--strict", "-d", rules]).arg(root().join("deploy")));
}

#[test]
fn the_configurations_in_the_manifests_have_no_problems() {
    for name in ["statefulset", "sidecar", "postgres"] {
        let file = root().join("deploy/kubernetes").join(name).join("sendoff.toml");
        // This machine has not the directories of the pod.
        let text =
            succeed(sendoff().args(["check-config", "--skip-state-dir", "--config"]).arg(&file).env_remove("HOME"));
        assert!(text.contains("no problems"), "{text}");
    }
}

/// A container that needs more memory than its limit is killed, and with it every request in memory.
#[test]
fn the_memory_limits_exceed_what_clients_can_make_the_daemon_use() {
    const KIB: u64 = 1024;
    for (name, manifest) in
        [("statefulset", "statefulset.yaml"), ("sidecar", "patch.yaml"), ("postgres", "deployment.yaml")]
    {
        let dir = root().join("deploy/kubernetes").join(name);
        let flags = Flags { file: Some(dir.join("sendoff.toml")), ..Flags::default() };
        let config = load(&flags, &Environment::default()).unwrap().config;
        let passed = config.passthrough.map_or(0, |limits| limits.bytes_max);
        let requests = config.ingest.request_bytes_max + config.dispatch.in_flight_bytes_max + passed;
        let store = config.outbox.cache + 3 * config.outbox.segment_bytes;
        let connections = 128 * KIB * config.ingest.connections_max as u64;
        // The component deploy/kubernetes/handoff makes the sidecar hand over.
        let handing = if name == "sidecar" { send::MEMORY_MAX } else { 0 };
        // The formula of docs/operations.md, "Sizing".
        let most = 64 * KIB * KIB + MEMORY_MAX as u64 + store + requests + connections + handing;

        let text = std::fs::read_to_string(dir.join(manifest)).unwrap();
        let limits = text.split_once("limits:").unwrap().1;
        let limit = limits.split_once("memory: ").unwrap().1.split_once("Mi").unwrap().0;
        let limit = limit.parse::<u64>().unwrap() * KIB * KIB;
        assert!(limit >= most, "{name}: a limit of {limit} bytes, and clients can reach {most}");
    }
}
