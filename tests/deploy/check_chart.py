"""With its default values the chart renders what the kustomization does, but for labels and what Helm does otherwise."""

import sys
import tomllib

import yaml

HELM_LABELS = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}


def without_labels(value):
    """The document without Helm's labels, the annotation that restarts pods, and kustomize's hashed name."""
    if isinstance(value, dict):
        kept = {key: without_labels(item) for key, item in value.items() if key not in HELM_LABELS | {"checksum/config"}}
        # The chart labels every object with its name; the kustomization only those that something selects.
        kept.pop("app.kubernetes.io/name", None)
        return {key: item for key, item in kept.items() if not (key in ("labels", "annotations") and item in ({}, None))}
    if isinstance(value, list):
        return [without_labels(item) for item in value]
    if isinstance(value, str) and value.startswith("sendoff-") and value in HASHED:
        return "sendoff"
    return value


def documents(path):
    with open(path) as file:
        found = [doc for doc in yaml.safe_load_all(file) if doc]
    for doc in found:
        if doc["kind"] == "ConfigMap":
            # One is a file with comments, the other is written from values: the settings must be the same.
            doc["data"]["sendoff.toml"] = tomllib.loads(doc["data"]["sendoff.toml"])
            HASHED.add(doc["metadata"]["name"])
    # Helm makes no namespace: `helm install --create-namespace` does.
    return {(doc["kind"], doc["metadata"]["name"]): doc for doc in found if doc["kind"] != "Namespace"}


HASHED = set()
kustomized, rendered = (documents(path) for path in sys.argv[1:])
kustomized, rendered = (
    {(kind, without_labels(name)): without_labels(doc) for (kind, name), doc in docs.items()}
    for docs in (kustomized, rendered)
)
assert kustomized.keys() == rendered.keys(), kustomized.keys() ^ rendered.keys()
for key, wanted in kustomized.items():
    assert rendered[key] == wanted, f"{key}:\nchart  {rendered[key]}\nkustomize  {wanted}"
