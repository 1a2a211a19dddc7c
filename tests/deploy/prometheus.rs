//! A real Prometheus scrapes a real run, and answers all queries of the dashboard and the alerts.

use std::net::SocketAddr;
use std::process::Command;

use sendoff::standin::{Script, Trouble};
use serde_json::Value;

use crate::metrics::dashboard;
use crate::rig::daemon::{Setup, scratch};
use crate::rig::lambda::{Lambda, payload, throttle};
use crate::rig::process::Process;
use crate::rig::sqs::Sqs;
use crate::rig::{eventually, http, lasting_port};
use crate::tools::{root, tool};

#[test]
fn every_query_of_the_dashboard_has_an_answer_from_a_real_run() {
    let Some(prometheus) = tool("prometheus", "prometheus") else { return };
    let (scratch, state) = scratch();
    let (lambda, sqs) = (Lambda::start(), Sqs::start());
    lambda.script("slow", Script::always(throttle()));
    lambda.script("refused", Script::always(Trouble::error(413, "RequestTooLargeException", "too large")));
    lambda.script("denied", Script::always(Trouble::error(403, "AccessDeniedException", "not authorized")));
    sqs.create_queue("handoff");
    let daemon = Setup::new(&state)
        .set("handoff.receive_queue", &format!("{}/123456789012/handoff", sqs.endpoint_url()))
        .set("dead_letter.queue_url", &format!("{}/123456789012/dead", sqs.endpoint_url()))
        .set("dead_letter.backoff_base", "100ms")
        .set("dead_letter.backoff_cap", "500ms")
        .set("sqs.endpoint_url", &sqs.endpoint_url())
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .start();

    let port = lasting_port();
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let deployed = std::fs::read_to_string(root().join("deploy/prometheus/scrape.yml")).unwrap();
    let rules = root().join("deploy/prometheus/alerts.yml");
    let own = deployed
        .replace("15s", "1s")
        .replace("127.0.0.1:9478", &daemon.admin.to_string())
        .replace("- alerts.yml", &format!("- {}", rules.display()));
    assert!(own.contains(&daemon.admin.to_string()) && own.contains(&rules.display().to_string()));
    let config = scratch.path().join("prometheus.yml");
    std::fs::write(&config, own).unwrap();
    let _server = Process::spawn(
        "prometheus",
        Command::new(prometheus)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", scratch.path().join("tsdb").display()))
            .arg(format!("--web.listen-address={address}")),
    );

    // Each round makes everything happen once more, so that every rate has two samples.
    let mut asked = 0;
    let mut missing = Vec::new();
    eventually("Prometheus answers every query with data", || {
        asked += 1;
        // Until now SQS has accepted no dead letter. The metric for that is queried, too.
        if asked == 10 {
            sqs.create_queue("dead");
        }
        for function in ["orders", "slow", "refused", "denied"] {
            let key = format!("\"{function}-{}\"", asked / 3);
            let response = daemon.invoke(function, &[("Idempotency-Key", &key)], &payload(&key));
            assert_eq!(response.status, 202, "{response:?}");
        }
        assert_eq!(daemon.invoke("orders", &[], b"not json").status, 400);
        std::thread::sleep(std::time::Duration::from_millis(300));
        if !http::listens(address) {
            return None;
        }
        missing = dashboard().into_iter().filter(|(_, expression)| !has_data(address, expression)).collect();
        if asked > 100 {
            panic!("no data for {missing:#?}");
        }
        missing.is_empty().then_some(())
    });

    let rules: Value = http::get(address, "/api/v1/rules").json();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    let written = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).unwrap();
    assert_eq!(rules.len(), written.matches("- alert: ").count());
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
}

/// Whether an instant query succeeds and returns a series.
fn has_data(server: SocketAddr, expression: &str) -> bool {
    let expression =
        expression.replace("$__rate_interval", "10s").replace("$instance", ".*").replace("$function", ".*");
    let query: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = http::get(server, &format!("/api/v1/query?query={query}"));
    if answer.status == 503 {
        return false; // still starting
    }
    let answer = answer.json();
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    answer["data"]["result"].as_array().is_some_and(|series| !series.is_empty())
}
