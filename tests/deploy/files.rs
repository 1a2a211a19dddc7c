//! Every file in deploy/ is tested.

use std::collections::BTreeSet;
use std::path::Path;

use crate::tools::root;

/// Each file, and the test module that tries it.
const TRIED: &[(&str, &str)] = &[
    ("container/Dockerfile", "container::"),
    ("container/build.sh", "container::"),
    ("debian/build.sh", "package::"),
    ("debian/postinst", "package::"),
    ("debian/postrm", "package::"),
    ("debian/prerm", "package::"),
    ("ecs/service.json", "ecs::"),
    ("ecs/task-definition.json", "ecs::"),
    ("grafana/sendoff.json", "metrics::, prometheus::"),
    ("helm/sendoff/.helmignore", "helm::"),
    ("helm/sendoff/Chart.yaml", "helm::"),
    ("helm/sendoff/templates/NOTES.txt", "known::"),
    ("helm/sendoff/templates/_helpers.tpl", "helm::"),
    ("helm/sendoff/templates/certificate.yaml", "helm::"),
    ("helm/sendoff/templates/configmap.yaml", "helm::"),
    ("helm/sendoff/templates/networkpolicy.yaml", "helm::"),
    ("helm/sendoff/templates/poddisruptionbudget.yaml", "helm::"),
    ("helm/sendoff/templates/podmonitor.yaml", "helm::"),
    ("helm/sendoff/templates/service.yaml", "helm::"),
    ("helm/sendoff/templates/serviceaccount.yaml", "helm::"),
    ("helm/sendoff/templates/statefulset.yaml", "helm::"),
    ("helm/sendoff/values.schema.json", "helm::"),
    ("helm/sendoff/values.yaml", "helm::"),
    ("iam/dead-letter-kms.json", "iam::"),
    ("iam/dead-letter.json", "iam::"),
    ("iam/deliver.json", "iam::"),
    ("iam/handoff-receive.json", "iam::"),
    ("iam/handoff-send.json", "iam::"),
    ("iam/trust-ecs.json", "iam::"),
    ("iam/trust-irsa.json", "iam::"),
    ("iam/trust-pod-identity.json", "iam::"),
    ("kubernetes/example/application.yaml", "kubernetes::"),
    ("kubernetes/example/kustomization.yaml", "kubernetes::"),
    ("kubernetes/example-handoff/kustomization.yaml", "kubernetes::"),
    ("kubernetes/handoff/kustomization.yaml", "kubernetes::"),
    ("kubernetes/handoff/patch.yaml", "kubernetes::"),
    ("kubernetes/sidecar/kustomization.yaml", "kubernetes::"),
    ("kubernetes/sidecar/patch.yaml", "kubernetes::"),
    ("kubernetes/sidecar/sendoff.toml", "kubernetes::, known::"),
    ("kubernetes/postgres/deployment.yaml", "kubernetes::"),
    ("kubernetes/postgres/horizontalpodautoscaler.yaml", "kubernetes::"),
    ("kubernetes/postgres/kustomization.yaml", "kubernetes::"),
    ("kubernetes/postgres/migrate.yaml", "kubernetes::"),
    ("kubernetes/postgres/networkpolicy.yaml", "kubernetes::"),
    ("kubernetes/postgres/sendoff.toml", "kubernetes::, known::"),
    ("kubernetes/statefulset/certificate.yaml", "kubernetes::"),
    ("kubernetes/statefulset/kustomization.yaml", "kubernetes::"),
    ("kubernetes/statefulset/namespace.yaml", "kubernetes::"),
    ("kubernetes/statefulset/networkpolicy.yaml", "kubernetes::"),
    ("kubernetes/statefulset/poddisruptionbudget.yaml", "kubernetes::"),
    ("kubernetes/statefulset/podmonitor.yaml", "kubernetes::"),
    ("kubernetes/statefulset/sendoff.toml", "kubernetes::, known::"),
    ("kubernetes/statefulset/service.yaml", "kubernetes::"),
    ("kubernetes/statefulset/serviceaccount.yaml", "kubernetes::"),
    ("kubernetes/statefulset/statefulset.yaml", "kubernetes::"),
    ("prometheus/alerts.yml", "metrics::, prometheus::"),
    ("prometheus/alerts_test.yml", "metrics::"),
    ("prometheus/scrape.yml", "metrics::, prometheus::"),
    ("systemd/sendoff.service", "systemd::"),
    ("systemd/sendoff.socket", "systemd::"),
    ("systemd/sendoff.toml", "systemd::, known::"),
];

#[test]
fn every_file_in_deploy_is_tried_by_a_test() {
    let mut found = BTreeSet::new();
    list(&root().join("deploy"), "", &mut found);
    let tried: BTreeSet<String> = TRIED.iter().map(|&(file, _)| file.to_owned()).collect();
    assert_eq!(found, tried);
}

fn list(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), &format!("{name}/"), found);
        } else {
            found.insert(name);
        }
    }
}
