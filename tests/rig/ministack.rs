//! MiniStack as Lambda. Its functions really run, as processes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::process::Process;
use super::{python, sqs};

/// The access key and the secret key with all permissions.
pub const ROOT: (&str, &str) = ("test", "test");

/// The role of all functions.
const ROLE: &str = "arn:aws:iam::123456789012:role/orders";

/// A MiniStack server. Dropping it ends it.
pub struct MiniStack {
    _process: Process,
    address: SocketAddr,
}

impl MiniStack {
    /// Starts a server that keeps its files in `scratch`.
    pub fn start(scratch: &Path) -> Self {
        Self::start_with(scratch, &[])
    }

    /// Starts a server that verifies signatures and enforces the callers' IAM policies. The access key `test` may do
    /// everything.
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

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs the AWS CLI with all permissions. Returns its answer, or null if there is none.
    pub fn aws(&self, words: &[&str]) -> Value {
        let mut command = python::aws(&self.endpoint_url());
        command.env("AWS_ACCESS_KEY_ID", ROOT.0).env("AWS_SECRET_ACCESS_KEY", ROOT.1).args(words);
        serde_json::from_slice(&python::run(&mut command).stdout).unwrap_or_default()
    }

    /// Creates the role of all functions. If the server enforces policies, the role has no permissions without them.
    pub fn create_role(&self) {
        let trust = json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": { "Service": "lambda.amazonaws.com" } }] });
        let name = ROLE.rsplit('/').next().unwrap();
        self.aws(&["iam", "create-role", "--role-name", name, "--assume-role-policy-document", &trust.to_string()]);
    }

    /// Creates a Python function that writes the file `id` in `wrote` for every event with an `id`.
    pub fn create_writer(&self, name: &str, scratch: &Path, wrote: &Path) {
        self.create_function(name, scratch, &[("index.py", WRITER)], &[("WROTE", wrote.to_str().unwrap())]);
    }

    /// Creates a Python function from these files, with the handler `index.handle`, a timeout of a minute and the role
    /// `orders`. It can import the packages of the tests' virtual environment, and its boto3 uses the services of this
    /// server.
    pub fn create_function(&self, name: &str, scratch: &Path, files: &[(&str, &str)], variables: &[(&str, &str)]) {
        let code = tempfile::tempdir_in(scratch).unwrap();
        for (file, text) in files {
            std::fs::write(code.path().join(file), text).unwrap();
        }
        let packed = python::run(Command::new(python::program("python")).current_dir(code.path()).args(["-c", PACK]));
        let runtime = String::from_utf8(packed.stdout).unwrap();
        let zip = format!("fileb://{}", code.path().join("code.zip").display());
        let endpoint_url = self.endpoint_url();
        let variables: BTreeMap<_, _> =
            variables.iter().copied().chain([("AWS_ENDPOINT_URL", &*endpoint_url)]).collect();
        let environment = json!({ "Variables": variables }).to_string();
        let mut words = vec!["lambda", "create-function", "--function-name", name, "--handler", "index.handle"];
        words.extend(["--timeout", "60", "--role", ROLE, "--runtime", &runtime]);
        words.extend(["--zip-file", &zip, "--environment", &environment]);
        self.aws(&words);
        self.aws(&["lambda", "wait", "function-active-v2", "--function-name", name]);
    }
}

/// Packs the directory's files into code.zip, and prints Lambda's name for this Python.
const PACK: &str = "\
import os, sys, zipfile
with zipfile.ZipFile('code.zip', 'w') as zip:
    for file in sorted(set(os.listdir('.')) - {'code.zip'}):
        zip.write(file)
print('python%d.%d' % sys.version_info[:2], end='')
";

const WRITER: &str = "\
import os

def handle(event, context):
    with open(os.path.join(os.environ['WROTE'], event['id']), 'a') as file:
        file.write(context.aws_request_id + '\\n')
";
