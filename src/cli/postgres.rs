//! `sendoff postgres`: prepares and examines the database of a shared outbox, and moves a local outbox into it.

use clap::{Args, Subcommand};

use super::{ConfigOptions, Exit, Failure, print};
use crate::clock::Clock;
use crate::config::{Config, Environment};
use crate::daemon;
use crate::outbox::postgres::{Finding, Script, Settings, check, migrate, scripts};
use crate::visible::visible;

mod import;

const EXAMPLES: &str = "\
Examples:
  sendoff postgres migrate --url postgres://admin@db.example.com/orders
  sendoff postgres migrate --print > schema.sql
  sendoff postgres check --config /etc/sendoff/sendoff.toml
  sendoff postgres import --state-dir /var/lib/sendoff --url postgres://sendoff@db.example.com/orders";

/// Prepare or examine the database of a shared outbox, or import a local outbox into it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Create the schema `sendoff`, or bring it up to date
    ///
    /// Needs a login that may create a schema and roles. Running it again changes nothing. Daemons may run meanwhile.
    Migrate {
        #[command(flatten)]
        database: Database,
        /// Print the SQL instead of running it
        #[arg(long)]
        print: bool,
    },
    /// Say whether a daemon can use the database, and how safe what it stores is
    Check {
        #[command(flatten)]
        database: Database,
    },
    /// Import the events of a local outbox that no daemon uses, with their histories and keys
    ///
    /// Region, account and endpoint of Lambda must be those of the daemon that used it. Daemons may run on the database
    /// meanwhile. The local outbox is only read. Afterwards daemons refuse it, because they would deliver its events a second
    /// time. After an interruption, run the command again: it brings nothing twice.
    Import {
        #[command(flatten)]
        database: Database,
    },
}

#[derive(Debug, Args)]
struct Database {
    #[command(flatten)]
    config: ConfigOptions,
    /// The database. Overrides outbox.postgres.url
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

impl Database {
    fn config(mut self, environment: &Environment) -> Result<Config, Failure> {
        self.config.set.push("outbox.store=postgres".to_owned());
        self.config.set.extend(self.url.map(|url| format!("outbox.postgres.url={url}")));
        Ok(self.config.load(environment)?.config)
    }

    fn settings(mut self, environment: &Environment) -> Result<Settings, Failure> {
        // These commands keep nothing there, and a Job in a cluster may have no directory at all.
        self.config.set.push("state_dir=/".to_owned());
        let config = self.config(environment)?;
        let no_database = || Failure::saying(Exit::Usage, "no database is configured: use --url");
        let settings = config.postgres.clone().ok_or_else(no_database)?;
        if !settings.server.iam {
            return Ok(settings);
        }
        // With the passwords that AWS makes.
        let settings = super::runtime()?.block_on(daemon::shared_settings(&config, &Clock::system()));
        settings.map_err(|error| Failure::new(super::serve::exit_of(&error), error))
    }
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    match options.what {
        What::Migrate { print: true, .. } => {
            let text = |Script { version, name, text }| format!("-- {version} {name}\nBEGIN;\n{text}\nCOMMIT;\n\n");
            print(&scripts().map(text).collect::<String>())
        }
        What::Migrate { database, print: false } => {
            let settings = database.settings(environment)?;
            let ran = super::runtime()?.block_on(migrate(&settings.server));
            let ran = ran.map_err(|why| Failure::saying(Exit::Failed, visible(&why)))?;
            print(&if ran.is_empty() {
                format!("{}: the schema is up to date\n", settings.server.shown())
            } else {
                format!("{}: ran {}\n", settings.server.shown(), ran.join(", "))
            })
        }
        What::Import { database } => {
            let config = database.config(environment)?;
            super::runtime()?.block_on(import::run(config))
        }
        What::Check { database } => {
            let settings = database.settings(environment)?;
            let found = super::runtime()?.block_on(check(&settings.server));
            let found = found.map_err(|why| Failure::saying(Exit::Unavailable, visible(&why)))?;
            let (mut refused, mut said) = (Vec::new(), String::new());
            for finding in found {
                match finding {
                    Finding::Fact(fact) => said += &format!("{fact}\n"),
                    Finding::Remark(remark) => said += &format!("warning: {remark}\n"),
                    Finding::Refused(why) => refused.push(why),
                    Finding::Newer { found, supported } => {
                        refused.push(format!("the schema is at version {found}, this build knows up to {supported}"));
                    }
                }
            }
            print(&said)?;
            if refused.is_empty() {
                return print(&format!("{}: a daemon can use it\n", settings.server.shown()));
            }
            Err(Failure::saying(Exit::Failed, visible(&refused.join("; "))))
        }
    }
}
