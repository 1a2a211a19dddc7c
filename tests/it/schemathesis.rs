//! Runs schemathesis, which tests the requests of an OpenAPI document on the daemon that serves it.

use std::path::Path;
use std::process::Command;

use crate::rig::python;

/// Requests for each operation and phase. Use `SCHEMATHESIS_EXAMPLES=2000` for a longer run.
const EXAMPLES: &str = "40";

/// Runs all checks on a document. `name` is that of the configuration and the hooks in tests/py. Fails if schemathesis
/// finds a problem. `tried` of `all` operations are those that the configuration does not leave out.
pub fn finds_nothing(scratch: &Path, name: &str, document: &str, (tried, all): (usize, usize)) {
    let py = |file: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/py").join(file);
    let examples = std::env::var("SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| EXAMPLES.to_owned());
    let mut command = Command::new(python::program("schemathesis"));
    command.env("SCHEMATHESIS_HOOKS", format!("{name}_hooks")).env("PYTHONPATH", py("")).env("NO_PROXY", "127.0.0.1");
    command.env("PYTHONDONTWRITEBYTECODE", "1").current_dir(scratch);
    command.arg("--config-file").arg(py(&format!("{name}.toml")));
    command.args(["run", "--checks", "all", "--continue-on-failure", "--no-color"]);
    // A job that was stopped is still shown, and an event that was cancelled tells its end.
    command.args(["--exclude-checks", "use_after_free"]);
    command.args(["--max-examples", &examples]);
    // Use the same requests each time, so that a rare finding does not stop an unrelated change. A longer run draws others.
    let longer = std::env::var_os("SCHEMATHESIS_EXAMPLES").is_some();
    command.args(if longer { ["--generation-database", "none"].as_slice() } else { &["--generation-deterministic"] });
    let output = command.arg(document).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let counts = [format!("{tried} selected / {all} total"), format!("Selected: {tried}/{all}")];
    assert!(counts.iter().any(|count| said.contains(count)), "it tries the operations: {said}");
}
