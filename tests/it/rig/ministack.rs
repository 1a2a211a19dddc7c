//! Lambda, as MiniStack serves it: the functions really run, as processes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::process::Process;
use super::{eventually, http, python, sqs};

/// A MiniStack server. It ends when dropped.
pub struct MiniStack {
    _process: Process,
    address: SocketAddr,
}

impl MiniStack {
    /// Starts one that keeps its files in `scratch`.
    pub fn start(scratch: &Path) -> Self {
        Self::start_with(scratch, &[])
    }

    #[allow(dead_code, reason = "tests/deploy needs it")]
    /// Starts one that verifies signatures and holds callers to their IAM policies; the access key `test` may do all.
    pub fn start_guarded(scratch: &Path) -> Self {
        Self::start_with(scratch, &[("AUTH", "true")])
    }

    fn start_with(scratch: &Path, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(python::program("ministack"));
        command
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", "0")
            .env("TMPDIR", scratch)
            .env("MINISTACK_ACCOUNT_ID", "123456789012")
            .env("MINISTACK_REGION", python::REGION)
            .env("LAMBDA_ASYNC_RETRY_BASE_SECONDS", "1")
            // These two would listen on fixed ports.
            .env("SFTP_ENABLED", "0")
            .env("IOT_MTLS_ENABLED", "0");
        python::aws_environment(&mut command);
        command.envs(variables.iter().copied());
        let process = Process::spawn("ministack", &mut command);
        let address = sqs::running_on(&process);
        Self { _process: process, address }
    }

    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes, with the AWS CLI, a Python function that for every event with an `id` writes the file `id` in `wrote`.
    pub fn create_writer(&self, name: &str, scratch: &Path, wrote: &Path) {
        let source = scratch.join("writer.py");
        let zip = scratch.join("writer.zip");
        std::fs::write(&source, WRITER).unwrap();
        python::run(Command::new(python::program("python")).args(["-m", "zipfile", "-c"]).arg(&zip).arg(&source));
        let version = python::run(
            Command::new(python::program("python"))
                .args(["-c", "import sys; print('python%d.%d' % sys.version_info[:2], end='')"]),
        );
        python::run(
            python::aws(&self.endpoint_url())
                .args(["lambda", "create-function", "--function-name", name, "--handler", "writer.handle"])
                .args(["--role", "arn:aws:iam::123456789012:role/writer", "--runtime"])
                .arg(String::from_utf8(version.stdout).unwrap())
                .arg("--zip-file")
                .arg(format!("fileb://{}", zip.display()))
                .arg("--environment")
                .arg(format!("Variables={{WROTE={}}}", wrote.display())),
        );
        eventually("the function is active", || {
            let path = format!("/2015-03-31/functions/{name}");
            let scope = format!("AKIDEXAMPLE/20261123/{}/lambda/aws4_request", python::REGION);
            let authorization = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
            let function = http::request(self.address, "GET", &path, &[("Authorization", &authorization)], b"").json();
            (function["Configuration"]["State"] == "Active").then_some(())
        });
    }
}

const WRITER: &str = "\
import os

def handle(event, context):
    with open(os.path.join(os.environ['WROTE'], event['id']), 'a') as file:
        file.write(context.aws_request_id + '\\n')
";
