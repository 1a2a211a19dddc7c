//! `sendoff completions`: generated from the definition of the command line.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, print};

/// Print the completions for a shell
#[derive(Debug, Args)]
pub struct Options {
    /// bash, elvish, fish, powershell or zsh
    shell: Shell,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "sendoff", &mut script);
    print(&String::from_utf8_lossy(&script))
}
