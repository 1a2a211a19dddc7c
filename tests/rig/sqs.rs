//! moto as SQS.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};

use super::process::Process;
use super::{PATIENCE, http, python};

/// A moto server. Dropping it ends it.
pub struct Sqs {
    _process: Process,
    address: SocketAddr,
}

impl Sqs {
    pub fn start() -> Self {
        let mut command = Command::new(python::program("moto_server"));
        command.args(["-H", "127.0.0.1", "-p", "0"]);
        python::aws_environment(&mut command);
        let process = Process::spawn("moto", &mut command);
        let address = running_on(&process);
        Self { _process: process, address }
    }

    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates a standard queue and returns its URL.
    pub fn create_queue(&self, name: &str) -> String {
        self.call("CreateQueue", &json!({ "QueueName": name }))["QueueUrl"].as_str().unwrap().to_owned()
    }

    /// Removes all messages from the queue. Returns them with all their attributes, in SQS's own form.
    pub fn take_all(&self, queue_url: &str) -> Vec<Value> {
        let mut taken = Vec::new();
        loop {
            let received = self.call(
                "ReceiveMessage",
                &json!({
                    "QueueUrl": queue_url,
                    "MaxNumberOfMessages": 10,
                    "MessageAttributeNames": ["All"],
                    "MessageSystemAttributeNames": ["All"],
                }),
            );
            let messages = received["Messages"].as_array().cloned().unwrap_or_default();
            if messages.is_empty() {
                return taken;
            }
            for message in &messages {
                let delete = json!({ "QueueUrl": queue_url, "ReceiptHandle": message["ReceiptHandle"] });
                self.call("DeleteMessage", &delete);
            }
            taken.extend(messages);
        }
    }

    /// Makes one call of the JSON protocol. moto reads service and region from the credential scope and checks no
    /// signature.
    fn call(&self, operation: &str, input: &Value) -> Value {
        let scope = format!("AKIDEXAMPLE/20261123/{}/sqs/aws4_request", python::REGION);
        let authorization = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
        let headers = [
            ("X-Amz-Target", format!("AmazonSQS.{operation}")),
            ("Content-Type", "application/x-amz-json-1.0".to_owned()),
            ("Authorization", authorization),
        ];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let response = http::request(self.address, "POST", "/", &headers, input.to_string().as_bytes());
        assert_eq!(response.status, 200, "{operation}: {}", response.text());
        if response.body.is_empty() { Value::Null } else { response.json() }
    }
}

/// Waits for the address that a Python web server prints. Port 0 leaves the choice to the kernel, so two runs never
/// collide.
pub fn running_on(process: &Process) -> SocketAddr {
    let said = process.line(PATIENCE, |line| {
        let (_, url) = line.split_once("Running on http://")?;
        url.split_whitespace().next()?.parse().ok()
    });
    said.unwrap_or_else(|| panic!("the server ended before it listened: {:?}", process.lines()))
}
