//! Starting again, as the same process, without variables that the SDK would follow to sendoff itself.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::config::Config;
use crate::config::endpoint::PASSED_OVER;

/// Replaces this process by the same command without the variables that name its own listener. The SDK reads the
/// environment by itself, for STS and SSO too, and a variable cannot be removed safely from a process that has begun.
/// Returns where there is nothing to remove. Where the system refuses, the command goes on: Lambda and SQS are reached
/// all the same, and STS is asked in the wrong place.
pub(super) fn without_own_endpoints(config: &Config) {
    if config.own_variables.is_empty() {
        return;
    }
    let Ok(binary) = std::env::current_exe() else { return };
    let mut words = std::env::args_os();
    let mut command = Command::new(binary);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    command.args(words).env(PASSED_OVER, config.own_variables.join(","));
    for variable in &config.own_variables {
        command.env_remove(variable);
    }
    let error = command.exec();
    crate::telemetry::say(&format!("sendoff: cannot start again without {}: {error}", config.own_variables.join(", ")));
}
