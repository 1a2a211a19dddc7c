"""What no schema says: names that must agree between rendered manifests, and the rules of hardening."""

import sys
import tomllib

import yaml

name, path = sys.argv[1:3]
with open(path) as file:
    docs = list(yaml.safe_load_all(file))


def kind(wanted):
    return [doc for doc in docs if doc["kind"] == wanted]


def one(wanted):
    found = kind(wanted)
    assert len(found) == 1, f"{len(found)} of {wanted}"
    return found[0]


def fits(selector, labels):
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())


workload = one("StatefulSet" if name == "statefulset" else "Deployment")
template = workload["spec"]["template"]
pod = template["spec"]
labels = template["metadata"]["labels"]
assert fits(workload["spec"]["selector"], labels)
containers = pod["containers"] + pod.get("initContainers", [])
sendoff = next(container for container in containers if container["name"] == "sendoff")
ports = {port["name"] for port in sendoff["ports"]}

# hardened, as the restricted Pod Security Standard wants it
context = {**pod.get("securityContext", {}), **sendoff["securityContext"]}
assert context["runAsNonRoot"] and context["runAsUser"] == 65532
assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"]["type"] == "RuntimeDefault"
assert "@" in sendoff["image"] or sendoff["image"].rsplit(":", 1)[1] not in ("latest", "")
assert sendoff["resources"]["requests"].keys() == {"cpu", "memory"} and "memory" in sendoff["resources"]["limits"]

# what is mounted exists; the configuration is the one that was generated; the store is where the configuration says
volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
volumes.update({claim["metadata"]["name"]: claim for claim in workload["spec"].get("volumeClaimTemplates", [])})
mounts = {mount["mountPath"]: mount for mount in sendoff["volumeMounts"]}
assert all(mount["name"] in volumes for mount in mounts.values())
assert volumes[mounts["/etc/sendoff"]["name"]]["configMap"]["name"] == one("ConfigMap")["metadata"]["name"]
assert 'state_dir = "/var/lib/sendoff"' in one("ConfigMap")["data"]["sendoff.toml"]
assert "/var/lib/sendoff" in mounts and sendoff["args"][-1] == "/etc/sendoff/sendoff.toml"
# kubectl exec operates it by a socket, in a directory of its own
assert "emptyDir" in volumes[mounts["/run/sendoff"]["name"]]
assert 'admin_unix = "/run/sendoff/admin.sock"' in one("ConfigMap")["data"]["sendoff.toml"]

# probes ask what is served, on a port that is there
for probe, where in (("startupProbe", "/readyz"), ("livenessProbe", "/livez")):
    get = sendoff[probe]["httpGet"]
    assert get["path"] == where and get["port"] in ports, (probe, get)
hook = sendoff.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["--timeout", "20s"])
assert pod["terminationGracePeriodSeconds"] > int(hook[-1].removesuffix("s")) + 25

# what other pods reach is health and, of a StatefulSet, ingest: the operator's API stays on loopback
config = tomllib.loads(one("ConfigMap")["data"]["sendoff.toml"])
settings = config["listen"]
assert "admin" not in settings and "allow_unauthenticated_remote" not in settings
assert config["auth"]["admin"] == "required" and ("ingest" in config["auth"]) == (name in ("statefulset", "postgres"))
numbers = {port["containerPort"] for port in sendoff["ports"]}
listening = {int(settings[key].rsplit(":", 1)[1]) for key in ("ingest", "health") if key in settings}
assert numbers == listening and 9478 not in numbers and settings["health"].startswith("[::]:"), (numbers, settings)

if name == "example-handoff":
    # the grace of the pod is one budget for all containers, and a preStop hook is part of it (docs/handoff.md)
    def seconds(text):
        assert text.endswith("s"), text
        return int(text[:-1])

    variables = {entry["name"].removeprefix("SENDOFF_HANDOFF__"): entry["value"] for entry in sendoff["env"]}
    assert variables["ON_STOP"] == "always" and variables["TO"].startswith("https://")
    hook = sendoff["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:4] == ["/sendoff", "drain", "--hand-off", "--timeout"]
    application, closing = 20, 5
    assert seconds(hook[4]) <= application
    within = seconds(variables["WITHIN"])
    assert pod["terminationGracePeriodSeconds"] >= application + within + closing
    assert within > 5, "the time that is kept for events of attempts in flight"
    secret = volumes[mounts["/etc/sendoff-handoff"]["name"]]["secret"]["secretName"]
    assert secret == "sendoff-handoff"
    assert all(variables[key].startswith("/etc/sendoff-handoff/") for key in ("TOKEN_FILE", "CA"))

if name.startswith("example"):
    # a native sidecar, started before the application and pointed at by it
    assert sendoff in pod["initContainers"] and sendoff["restartPolicy"] == "Always"
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert environment["AWS_ENDPOINT_URL_LAMBDA"] == "http://127.0.0.1:9477"
else:
    # known clients only, over TLS; each file of the configuration is a key of a Secret that is mounted there
    assert config["auth"]["ingest"] == "required" and config["clients"] and config["tls"]["listeners"] == "ingest"
    named = [config["tls"]["cert"], config["tls"]["key"]]
    named += [client["path_token_file"] for client in config["clients"].values()]
    if name == "postgres":
        named += [config["outbox"]["postgres"][key] for key in ("password_file", "tls_ca")]
        # no store to keep, so none to wait for: the autoscaler alone says how many pods there are
        assert config["outbox"]["store"] == "postgres" and "emptyDir" in volumes[mounts["/var/lib/sendoff"]["name"]]
        scaler = one("HorizontalPodAutoscaler")["spec"]
        assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": workload["metadata"]["name"]}
        assert "replicas" not in workload["spec"] and scaler["minReplicas"] >= 2
        open_ports = {port["port"] for rule in one("NetworkPolicy")["spec"]["egress"] for port in rule["ports"]}
        assert int(config["outbox"]["postgres"]["url"].rsplit(":", 1)[1].split("/")[0]) in open_ports
    for file in named:
        secret = volumes[mounts[file.rsplit("/", 1)[0]]["name"]]["secret"]
        assert secret["defaultMode"] == 0o440 and pod["securityContext"]["fsGroup"] == 65532, secret
    assert config["tls"]["cert"].endswith("/tls.crt") and config["tls"]["key"].endswith("/tls.key")
    certificate_file = sys.argv[3] if len(sys.argv) > 3 else None
    certificates = kind("Certificate") or (list(yaml.safe_load_all(open(certificate_file))) if certificate_file else [])
    for certificate in certificates:
        assert certificate["spec"]["secretName"] == volumes["tls"]["secret"]["secretName"]
        assert settings["ingest_hosts"].split() == certificate["spec"]["dnsNames"]
    assert sendoff["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert sendoff["lifecycle"]["preStop"]["exec"]["command"][:2] == ["/sendoff", "drain"]
    services = {service["metadata"]["name"]: service for service in kind("Service")}
    assert name == "postgres" or workload["spec"]["serviceName"] in services
    # clusters of IPv4, of IPv6 and of both: listeners, services and Pod Identity's two addresses
    toml = one("ConfigMap")["data"]["sendoff.toml"]
    assert 'ingest = "[::]:9477"' in toml and 'health = "[::]:9479"' in toml and "0.0.0.0" not in toml
    assert all(service["spec"]["ipFamilyPolicy"] == "PreferDualStack" for service in services.values())
    blocks = [to["ipBlock"]["cidr"] for rule in one("NetworkPolicy")["spec"]["egress"] for to in rule.get("to", [])]
    assert blocks == ["169.254.170.23/32", "fd00:ec2::23/128"]
    for service in services.values():
        assert all(labels.get(key) == value for key, value in service["spec"]["selector"].items())
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"])
    assert pod["serviceAccountName"] == one("ServiceAccount")["metadata"]["name"]
    assert fits(one("PodDisruptionBudget")["spec"]["selector"], labels)
    policy = one("NetworkPolicy")["spec"]
    assert fits(policy["podSelector"], labels)
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= ports
    # no schema of the operator's is at hand: its fields are checked by name
    monitor = one("PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1" and fits(monitor["spec"]["selector"], labels)
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint.keys() == {"port", "path", "interval"} and endpoint["port"] in ports and endpoint["path"] == "/metrics"
    assert {doc["metadata"].get("namespace") for doc in docs if doc["kind"] != "Namespace"} == {"sendoff"}
