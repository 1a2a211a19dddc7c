//! Starts the command again in the same process, without variables that would lead the SDK to sendoff itself.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::config::Config;
use crate::config::endpoint::PASSED_OVER;

/// Replaces this process by the same command without the variables that name its own listener. The SDK reads the
/// environment by itself, also for STS and SSO, and a running process cannot remove a variable safely. Returns if there
/// is nothing to remove. If the system refuses, the command goes on: it still reaches Lambda and SQS, but asks STS in
/// the wrong place.
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
