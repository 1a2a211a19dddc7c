//! `sendoff man`: manual pages, generated from the definition of the command line.

use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, Exit, Failure, print};

/// Print the manual page, or write those of all commands into a directory
#[derive(Debug, Args)]
pub struct Options {
    /// Existing directory for sendoff.1, sendoff-serve.1 and so on
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let Some(dir) = options.dir else {
        return print(&String::from_utf8_lossy(&page(command)?));
    };
    for (name, page) in pages(&command)? {
        let path = dir.join(name);
        std::fs::write(&path, page).map_err(|error| {
            Failure::new(Exit::Failed, anyhow::Error::new(error).context(format!("cannot write {}", path.display())))
        })?;
    }
    Ok(())
}

/// Names and contents of the files: one for the command, one for each subcommand.
fn pages(command: &Command) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut pages = vec![("sendoff.1".to_owned(), page(command.clone())?)];
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        let name = format!("sendoff-{}", below.get_name());
        pages.push((format!("{name}.1"), page(below.clone().display_name(name))?));
    }
    Ok(pages)
}

fn page(command: Command) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    Man::new(command).render(&mut text).map_err(|error| Failure::new(Exit::Internal, error))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let mut command = Cli::command();
        command.build();
        let pages = pages(&command).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"sendoff.1") && names.contains(&"sendoff-check-config.1"), "{names:?}");
        for (name, page) in &pages {
            assert!(String::from_utf8_lossy(page).contains(".TH"), "{name}");
        }
    }
}
