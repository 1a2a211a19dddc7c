//! The Python parts: where they are, and an environment that keeps every AWS client off the network.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const REGION: &str = "eu-central-1";

/// A program of the tests' virtual environment.
///
/// # Panics
/// If it is missing: a test that needs it must not pass without it.
pub fn program(name: &str) -> PathBuf {
    let venv = std::env::var_os("TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv"), PathBuf::from);
    let program = venv.join("bin").join(name);
    assert!(program.is_file(), "{} is not there: run `make test`, which installs it", program.display());
    program
}

/// A script in tests/py.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(program("python"));
    command.arg("-u").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/py").join(name));
    aws_environment(&mut command);
    command
}

/// The AWS CLI, with `endpoint_url` as its endpoint.
pub fn aws(endpoint_url: &str) -> Command {
    let mut command = Command::new(program("aws"));
    command.args(["--endpoint-url", endpoint_url, "--output", "json"]);
    aws_environment(&mut command);
    command
}

/// Runs a command to its end. Fails the test unless it succeeds.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|why| panic!("cannot start {command:?}: {why}"));
    // As lines: a report of CI shows the first ones and the last ones of a failure, and folds long ones.
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{command:?} failed ({}):\n{}\n{}", output.status, said[0], said[1]);
    output
}

/// Sets static credentials and one region, and prevents the use of the user's files and of instance metadata.
pub fn aws_environment(command: &mut Command) {
    for name in
        ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_LAMBDA", "AWS_ENDPOINT_URL_SQS"]
    {
        command.env_remove(name);
    }
    command
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_REGION", REGION)
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("NO_PROXY", "127.0.0.1");
}
