//! Tests the files for Amazon ECS: against AWS's own descriptions of its API, against each other, and against the daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use sendoff::config::{Config, Environment, Flags, Loaded, load};
use sendoff::handoff::queue::receive;
use sendoff::handoff::send;
use serde_json::{Value, json};

use crate::rig::python::program;
use crate::tools::{root, sendoff, succeed, validator};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// The notice of Fargate Spot. All containers of the task must have ended within it.
const SPOT_NOTICE_SECONDS: u64 = 120;

/// Closing the store, after everything that has a time-out of its own.
const CLOSING: Duration = Duration::from_secs(5);

/// For the images, which take space in the same storage.
const IMAGES_BYTES: u64 = 5 * GIB;

fn file(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(root().join("deploy/ecs").join(name)).unwrap()).unwrap()
}

fn container<'a>(task: &'a Value, name: &str) -> &'a Value {
    let containers = task["containerDefinitions"].as_array().unwrap();
    containers.iter().find(|container| container["name"] == name).unwrap_or(&Value::Null)
}

fn environment(container: &Value) -> BTreeMap<&str, &str> {
    let entries = container["environment"].as_array().into_iter().flatten();
    entries.filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?))).collect()
}

/// The configuration that the daemon reads from the definition's variables. The image sets the state directory.
fn configuration(task: &Value) -> Result<Loaded, String> {
    let mut variables: Vec<(&str, &str)> = environment(container(task, "sendoff")).into_iter().collect();
    variables.push(("STATE_DIRECTORY", "/var/lib/sendoff"));
    load(&Flags::default(), &Environment::from_pairs(&variables)).map_err(|problems| problems.to_string())
}

/// The value of a key as text, defaults too.
fn value(loaded: &Loaded, key: &str) -> String {
    let entry = loaded.entries.iter().find(|entry| entry.key == key);
    entry.unwrap_or_else(|| panic!("no key {key}")).value.to_string()
}

/// The formula of docs/operations.md, "Sizing".
fn most_memory(config: &Config) -> u64 {
    let passed = config.passthrough.as_ref().map_or(0, |limits| limits.bytes_max);
    let requests = config.ingest.request_bytes_max + config.dispatch.in_flight_bytes_max + passed;
    let store = config.outbox.cache + 3 * config.outbox.segment_bytes;
    let receiving = config.handoff.receive_queue.as_ref().map_or(0, |_| receive::MEMORY_MAX);
    let handing = if config.handoff.to.is_empty() { 0 } else { send::MEMORY_MAX };
    96 * MIB + store + requests + receiving + handing + 128 * 1024 * config.ingest.connections_max as u64
}

/// What no schema says. Each problem in words.
fn problems(task: &Value, service: &Value) -> Vec<String> {
    let loaded = match configuration(task) {
        Ok(loaded) => loaded,
        Err(why) => return vec![why],
    };
    let mut found = Vec::new();
    let mut must = |holds: bool, problem: &str| {
        if !holds {
            found.push(problem.to_owned());
        }
    };
    order_and_time(task, &loaded, &mut must);
    hardening(task, &mut must);
    resources(task, &loaded, &mut must);
    places(task, service, &loaded, &mut must);
    found
}

fn order_and_time(task: &Value, loaded: &Loaded, must: &mut dyn FnMut(bool, &str)) {
    let (sendoff, application) = (container(task, "sendoff"), container(task, "application"));
    let waits = json!([{"containerName": "sendoff", "condition": "HEALTHY"}]);
    must(application["dependsOn"] == waits, "the application does not wait until sendoff is ready");
    must(sendoff["dependsOn"].is_null(), "sendoff waits for a container, so that one is stopped before it is");
    must(sendoff["essential"] == true, "without sendoff the application sends to nobody: it must be essential");
    must(sendoff["healthCheck"]["command"] == json!(["CMD", "/sendoff", "healthcheck"]), "another health check");
    let check = |name: &str| sendoff["healthCheck"][name].as_u64().unwrap_or(0);
    must(
        check("startPeriod") < sendoff["startTimeout"].as_u64().unwrap_or(0),
        "the start times out in its start period",
    );
    must(check("interval") * check("retries") >= 60, "a daemon that is not ready for less than a minute is replaced");

    let stops = |container: &Value| container["stopTimeout"].as_u64().unwrap_or(30);
    let needs = loaded.config.grace.max(loaded.config.handoff.within) + CLOSING;
    must(Duration::from_secs(stops(sendoff)) >= needs, "sendoff is killed before its hand-off can be over");
    let all: u64 = task["containerDefinitions"].as_array().unwrap().iter().map(stops).sum();
    must(all <= SPOT_NOTICE_SECONDS, "the stops take longer than the notice of Fargate Spot");

    let policy = &sendoff["restartPolicy"];
    must(policy["enabled"] == true, "a crash costs the task, and with it the store");
    must(policy["ignoredExitCodes"] == json!([78]), "a configuration with problems is tried again and again");
}

fn hardening(task: &Value, must: &mut dyn FnMut(bool, &str)) {
    let sendoff = container(task, "sendoff");
    let dockerfile = std::fs::read_to_string(root().join("deploy/container/Dockerfile")).unwrap();
    let user = format!("\nUSER {}\n", sendoff["user"].as_str().unwrap_or("root"));
    must(dockerfile.contains(&user), "another user than the image's");
    must(sendoff["readonlyRootFilesystem"] == true, "the root file system can be written");
    must(sendoff["linuxParameters"]["capabilities"] == json!({"drop": ["ALL"]}), "capabilities are left");
    must(sendoff["privileged"].is_null(), "privileged");

    // Fargate gives a volume the owner of the directory that the image declares as a volume; all others are root's.
    let mounts = sendoff["mountPoints"].as_array().unwrap();
    let path = mounts[0]["containerPath"].as_str().unwrap_or_default();
    let declared = dockerfile.contains(&format!("\nVOLUME [\"{path}\"]\n"));
    must(mounts.len() == 1 && declared, "the store is mounted where the image declares no volume, so root owns it");
    must(mounts[0]["readOnly"] != true, "the store cannot be written");
    must(task["volumes"] == json!([{"name": mounts[0]["sourceVolume"]}]), "the volume is not the task's own storage");
    for container in task["containerDefinitions"].as_array().unwrap() {
        let image = container["image"].as_str().unwrap_or_default();
        let tag = image.rsplit('/').next().unwrap_or_default().split_once([':', '@']).map(|(_, tag)| tag);
        must(tag.is_some_and(|tag| !tag.is_empty() && tag != "latest"), "an image without a fixed version");
    }
}

fn resources(task: &Value, loaded: &Loaded, must: &mut dyn FnMut(bool, &str)) {
    let sum = |name: &str| -> u64 {
        let containers = task["containerDefinitions"].as_array().unwrap().iter();
        containers.map(|container| container[name].as_u64().unwrap_or(0)).sum()
    };
    let whole = |name: &str| task[name].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    must(sum("memory") < whole("memory"), "the containers have more memory than the task");
    must(sum("cpu") < whole("cpu"), "the containers have more CPU than the task");
    let limit = container(task, "sendoff")["memory"].as_u64().unwrap_or(0) * MIB;
    must(limit >= most_memory(&loaded.config), "clients can make sendoff use more memory than its limit");
    let storage = task["ephemeralStorage"]["sizeInGiB"].as_u64().unwrap_or(20) * GIB;
    // A salvage of a damaged store needs its size again.
    let needs = 2 * loaded.config.outbox.limits.bytes_max + IMAGES_BYTES;
    must(needs <= storage, "the ephemeral storage does not hold the store, its salvage and the images");
}

fn places(task: &Value, service: &Value, loaded: &Loaded, must: &mut dyn FnMut(bool, &str)) {
    let (sendoff, config) = (container(task, "sendoff"), &loaded.config);
    let endpoint =
        environment(container(task, "application")).get("AWS_ENDPOINT_URL_LAMBDA").map(|&url| url.to_owned());
    must(endpoint == Some(format!("http://{}", config.listen.ingest[0])), "the application calls somebody else");
    let loopback = config.listen.ingest.iter().chain([&config.listen.admin]).all(|address| address.ip().is_loopback());
    must(loopback, "a listener other than that for probes can be reached from outside of the task");
    let ports: Vec<u64> =
        sendoff["portMappings"].as_array().unwrap().iter().filter_map(|port| port["containerPort"].as_u64()).collect();
    let health: Vec<u64> = config.listen.health.iter().map(|address| address.port().into()).collect();
    must(ports == health, "the ports are not those that others may reach");

    let entry = |key| value(loaded, key);
    must(entry("handoff.on_stop") == "always", "a stop hands nothing over, and the store ends with the task");
    must(entry("handoff.to") == entry("handoff.receive_queue"), "nobody takes what a stopping task hands over");
    must(entry("handoff.to") != entry("dead_letter.queue_url"), "hand-off and dead letters share a queue");
    let (region, account) = (entry("lambda.region"), entry("lambda.account_id"));
    for text in ["handoff.to", "dead_letter.queue_url"].map(entry) {
        must(text.contains(&region) && text.contains(&account), "a queue of another region or account");
    }
    let logs = &sendoff["logConfiguration"]["options"];
    must(logs["awslogs-region"] == *region, "logs go to another region");
    must(logs["mode"] == "non-blocking", "a log that does not move stops the daemon");

    must(service["taskDefinition"] == task["family"], "the service runs another task definition");
    let deployment = &service["deploymentConfiguration"];
    let overlap = deployment["minimumHealthyPercent"] == 100 && deployment["maximumPercent"].as_u64() >= Some(200);
    must(overlap, "a task stops before its successor runs");
}

#[test]
fn the_files_for_ecs_fit_awss_own_model_and_schemas() {
    let check = root().join("tests/deploy/check_ecs.py");
    let text = succeed(std::process::Command::new(program("python")).arg(&check).arg("model"));
    assert!(text.contains("2 files are in order"), "{text}");
    let text = succeed(validator("python").arg(&check).arg("cfn"));
    assert!(text.contains("2 files are in order"), "{text}");
}

#[test]
fn the_daemon_takes_the_variables_of_the_task_definition() {
    let task = file("task-definition.json");
    let variables = environment(container(&task, "sendoff"));
    let check = |change: Option<(&str, &str)>| {
        let mut command = sendoff();
        command.args(["check-config", "--skip-state-dir"]).env("STATE_DIRECTORY", "/var/lib/sendoff");
        command.envs(variables.clone()).envs(change).env_remove("HOME").output().unwrap()
    };
    let output = check(None);
    let text = crate::tools::said(&output);
    assert!(output.status.success() && text.contains("no problems"), "{text}");
    let output = check(Some(("SENDOFF_HANDOFF__ON_STOPP", "always")));
    assert!(!output.status.success(), "a misspelt variable is not noticed");
}

#[test]
fn the_task_definition_keeps_the_order_the_times_and_the_limits_that_a_stop_needs() {
    let (task, service) = (file("task-definition.json"), file("service.json"));
    assert_eq!(problems(&task, &service), Vec::<String>::new());
}

/// Each fault, by the path of the field, and the words that must name it.
#[test]
fn every_fault_in_a_task_definition_is_named() {
    let (task, service) = (file("task-definition.json"), file("service.json"));
    let variable = |name: &str| {
        let all = container(&task, "sendoff")["environment"].as_array().unwrap();
        let at = all.iter().position(|entry| entry["name"] == name).unwrap();
        format!("/containerDefinitions/0/environment/{at}/value")
    };
    let sendoff = |field: &str| format!("/containerDefinitions/0/{field}");
    let application = |field: &str| format!("/containerDefinitions/1/{field}");
    let url = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq";
    let faults = [
        (application("dependsOn/0/condition"), json!("START"), "does not wait until sendoff is ready"),
        (sendoff("dependsOn"), json!([{"containerName": "application", "condition": "START"}]), "stopped before"),
        (sendoff("essential"), json!(false), "must be essential"),
        (sendoff("healthCheck/command/2"), json!("version"), "another health check"),
        (sendoff("healthCheck/retries"), json!(3), "less than a minute"),
        (sendoff("startTimeout"), json!(60), "times out in its start period"),
        (sendoff("stopTimeout"), json!(60), "killed before its hand-off"),
        (variable("SENDOFF_HANDOFF__ON_STOP"), json!("never"), "hands nothing over"),
        (application("stopTimeout"), json!(60), "notice of Fargate Spot"),
        (sendoff("restartPolicy/enabled"), json!(false), "costs the task"),
        (sendoff("restartPolicy/ignoredExitCodes"), json!([]), "again and again"),
        (sendoff("user"), json!("0:0"), "another user"),
        (sendoff("readonlyRootFilesystem"), json!(false), "can be written"),
        (sendoff("linuxParameters/capabilities/drop"), json!([]), "capabilities"),
        (sendoff("mountPoints/0/containerPath"), json!("/data"), "root owns it"),
        (sendoff("mountPoints/0/readOnly"), json!(true), "store cannot be written"),
        ("/volumes/0/host".to_owned(), json!({"sourcePath": "/srv"}), "not the task's own storage"),
        (sendoff("image"), json!("localhost:5000/sendoff:latest"), "without a fixed version"),
        (application("memory"), json!(2048), "more memory than the task"),
        (application("cpu"), json!(512), "more CPU than the task"),
        (sendoff("memory"), json!(512), "more memory than its limit"),
        (variable("SENDOFF_OUTBOX__BYTES_MAX"), json!("10GiB"), "does not hold the store"),
        (application("environment/0/value"), json!("http://127.0.0.1:9478"), "calls somebody else"),
        (sendoff("portMappings/0/containerPort"), json!(9478), "not those that others may reach"),
        (variable("SENDOFF_HANDOFF__RECEIVE_QUEUE"), json!(url.replace("dlq", "other")), "nobody takes"),
        (variable("SENDOFF_HANDOFF__TO"), json!(url), "share a queue"),
        (variable("SENDOFF_DEAD_LETTER__QUEUE_URL"), json!(url.replace("central", "west")), "another region"),
        (variable("SENDOFF_LAMBDA__ACCOUNT_ID"), json!("210987654321"), "another region or account"),
        (variable("SENDOFF_LAMBDA__ACCOUNT_ID"), json!("12"), "account_id"),
        (sendoff("logConfiguration/options/awslogs-region"), json!("us-east-1"), "logs go to another region"),
        (sendoff("logConfiguration/options/mode"), json!("blocking"), "stops the daemon"),
        ("/family".to_owned(), json!("payments"), "another task definition"),
    ];
    for (path, value, named) in faults {
        let mut broken = task.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        match broken.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")) {
            Value::Object(fields) => drop(fields.insert(field.to_owned(), value)),
            Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => panic!("{parent} has no fields"),
        }
        let found = problems(&broken, &service);
        assert!(found.iter().any(|problem| problem.contains(named)), "{path}: {found:?}");
    }
    let mut broken = service.clone();
    broken["deploymentConfiguration"]["minimumHealthyPercent"] = json!(50);
    assert!(problems(&task, &broken)[0].contains("before its successor"));
}
