//! The command line. Each command has a file below. This file holds what they share.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Environment, Flags, Loaded, Problems};
use crate::telemetry::say;
use crate::visible::{visible, visible_lines};
use out::print;

pub mod serve;

pub mod demo;

mod again;

pub mod check_config;

pub mod show_config;

pub mod send;

pub mod fsck;

pub mod dead_letters;

pub mod redrive;

pub mod admin_client;

mod https;

pub mod auth;

mod socket;

pub mod actions;

mod out;

mod arguments;

mod table;

mod url;

mod watch;

pub mod functions;

pub mod events;

pub mod pause;

pub mod postgres;

pub mod purge;

pub mod status;

pub mod healthcheck;

pub mod drain;

pub mod hand_off;

pub mod completions;

pub mod bulk;

pub mod whoami;

pub mod man;

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   the request was refused, or failed
  2   wrong usage
  69  cannot reach or bind an address, cannot use the state directory, or another daemon has the store locked
  70  an internal error, or the store is poisoned after a failed write
  75  the event was still under way when the time to wait was over
  78  the configuration has problems";

/// A durable outbox in front of AWS Lambda.
///
/// Stores Event invocations on disk, answers them, and delivers them later, even if Lambda throttles or cannot be
/// reached for hours. To use it, set AWS_ENDPOINT_URL_LAMBDA=http://127.0.0.1:9477 for your application.
#[derive(Debug, Parser)]
#[command(name = "sendoff", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Options),
    Demo(demo::DemoArgs),
    Send(send::Options),
    Fsck(fsck::Options),
    DeadLetters(dead_letters::Options),
    Redrive(redrive::Options),
    Functions(functions::Options),
    Events(events::Options),
    /// Stop attempting a function's events until you resume it
    ///
    /// sendoff still accepts and keeps the events, and they still expire. The pause survives restarts. Attempts in
    /// flight are finished.
    Pause(pause::Options),
    /// Attempt the events of a paused function again
    ///
    /// This does not end a hold. A hold by Lambda or AWS ends by itself.
    Resume(pause::Options),
    Purge(purge::Options),
    Bulk(bulk::Options),
    Actions(actions::Options),
    Whoami(whoami::Options),
    Postgres(postgres::Options),
    CheckConfig(check_config::Options),
    ShowConfig(show_config::Options),
    Status(status::Options),
    Auth(auth::Options),
    Healthcheck(healthcheck::Options),
    Drain(drain::Options),
    HandOff(hand_off::Options),
    Completions(completions::Options),
    Man(man::Options),
}

/// Selects the configuration.
#[derive(Debug, Clone, Args)]
struct ConfigOptions {
    /// Configuration file (TOML). If omitted, the defaults and SENDOFF_ variables apply
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the outbox. Overrides all other settings of it
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Set one key, for example `--set outbox.bytes_max=20GiB`. Overrides file and environment. May be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigOptions {
    fn load(self, environment: &Environment) -> Result<Loaded, Problems> {
        config::load(&Flags { file: self.config, state_dir: self.state_dir, set: self.set }, environment)
    }
}

/// Runs the command in this process's arguments.
pub fn main() -> ExitCode {
    hear_all_signals();
    let cli = Cli::parse();
    let environment = Environment::inherited();
    // Manual pages are no secret. Everything else may contain payloads.
    if !matches!(cli.command, Command::Man(_)) {
        private_files();
    }
    let done = match cli.command {
        Command::Serve(options) => serve::run(options, &environment),
        Command::Demo(options) => run_demo(options),
        Command::Send(options) => send::run(options, &environment),
        Command::Fsck(options) => fsck::run(options, &environment),
        Command::DeadLetters(options) => dead_letters::run(options, &environment),
        Command::Redrive(options) => redrive::run(options, &environment),
        Command::Functions(options) => functions::run(options, &environment),
        Command::Events(options) => events::run(options, &environment),
        Command::Pause(options) => pause::pause(options, &environment),
        Command::Resume(options) => pause::resume(options, &environment),
        Command::Purge(options) => purge::run(options, &environment),
        Command::Bulk(options) => bulk::run(options, &environment),
        Command::Actions(options) => actions::run(options, &environment),
        Command::Whoami(options) => whoami::run(options, &environment),
        Command::Postgres(options) => postgres::run(options, &environment),
        Command::CheckConfig(options) => check_config::run(options, &environment),
        Command::ShowConfig(options) => show_config::run(options, &environment),
        Command::Status(options) => status::run(options, &environment),
        Command::Auth(options) => auth::run(&options),
        Command::Healthcheck(options) => healthcheck::run(options, &environment),
        Command::Drain(options) => drain::run(options, &environment),
        Command::HandOff(options) => hand_off::run(options, &environment),
        Command::Completions(options) => completions::run(options),
        Command::Man(options) => man::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("sendoff: {failure}"));
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// A parent may leave signals blocked, and a process inherits that: then SIGTERM would never arrive. Threads inherit the mask
/// from the one that starts them, so this comes first.
fn hear_all_signals() {
    if let Err(error) = nix::sys::signal::SigSet::all().thread_unblock() {
        say(&format!("sendoff: cannot unblock signals, SIGTERM may not arrive: {error}"));
    }
}

/// From here on only the owner can read the files that this process creates, whatever its umask was. Libraries create
/// files, too.
fn private_files() {
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
}

fn run_demo(options: demo::DemoArgs) -> Result<(), Failure> {
    let done = runtime()?.block_on(demo::run(options)).map_err(|error| Failure::new(Exit::Failed, error))?;
    if done { Ok(()) } else { Err(Failure::saying(Exit::Failed, "the ledgers do not agree")) }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    // Set explicitly, so that tokio does not read TOKIO_WORKER_THREADS. It panics if that is not a number.
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Unavailable, anyhow::Error::new(error).context("cannot start threads")))
}

/// Exit codes of commands that failed. Numbers are from sysexits.h, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    Unavailable = 69,
    Internal = 70,
    UnderWay = 75,
    Configuration = 78,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }

    fn saying(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{message}") }
    }
}

/// A text of several lines. What it quotes must have gone through [`visible`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lines(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:#}", self.error);
        // The problems of a configuration have a line each. Every other text becomes one line, whatever it quotes.
        let is_list = self.error.is::<Problems>() || self.error.is::<Lines>();
        f.write_str(&if is_list { visible_lines(&text) } else { visible(&text) })
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::new(Exit::Configuration, problems)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for exit in [Exit::Failed, Exit::Usage, Exit::Unavailable, Exit::Internal, Exit::UnderWay, Exit::Configuration]
        {
            assert!(help.contains(&format!("\n  {:<3} ", exit as u8)), "{exit:?} in {help}");
        }
    }

    #[test]
    fn flags_reach_the_configuration() {
        let line = ["sendoff", "serve", "--state-dir", "/s", "--set", "log.level=debug", "--set", "log.format=json"];
        let Command::Serve(options) = Cli::try_parse_from(line).unwrap().command else { panic!("another command") };
        let config = options.config.load(&Environment::default()).unwrap().config;
        assert_eq!(config.state_dir, PathBuf::from("/s"));
        assert_eq!((config.log.level.as_str(), config.log.format), ("debug", config::LogFormat::Json));
    }

    #[test]
    fn problems_of_the_configuration_end_with_78() {
        let line = ["sendoff", "check-config", "--set", "nonsense=1"];
        let Command::CheckConfig(options) = Cli::try_parse_from(line).unwrap().command else {
            panic!("another command")
        };
        let failure = check_config::run(options, &Environment::from_pairs(&[("HOME", "/h")])).unwrap_err();
        assert_eq!(failure.exit, Exit::Configuration);
        assert_eq!(failure.to_string(), "the configuration has a problem:\n\n  --set: nonsense: unknown key");
    }
}
