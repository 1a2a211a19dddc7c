//! `sendoff purge`: removes waiting events, after it has reported their number.

use bytesize::ByteSize;
use clap::Args;

use super::admin_client::{Asker, Daemon, lane_path, with_query};
use super::dead_letters::parse_moment;
use super::{Exit, Failure, arguments, out};
use crate::admin::api::{PurgeQuery, Purged};
use crate::config::Environment;
use crate::plural::count;

const EXAMPLES: &str = "\
Examples:
  sendoff purge orders --dry-run
  sendoff purge orders --accepted-before 2h --yes
  sendoff purge 'test-*' --state scheduled";

/// How to remove several events for good.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Removal {
    /// Keep the events' idempotency keys. An event with the same key is then a duplicate and is not stored
    #[arg(long)]
    pub(super) keep_keys: bool,
    /// Only report their number
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Removal {
    /// Asks, unless `--yes` was given. An error means no.
    pub(super) fn agreed(self, question: &str) -> Result<(), Failure> {
        if self.yes || out::agreed(question)? {
            Ok(())
        } else {
            Err(Failure::saying(Exit::Failed, "nothing was purged"))
        }
    }
}

/// Remove a function's waiting events without delivering them
///
/// Reports their number and asks before it removes them. Events in flight stay, and so do dead letters (`sendoff
/// dead-letters purge` removes those).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// The function, as `sendoff functions` lists it. With *, all that match
    #[arg(value_parser = arguments::function)]
    function: String,
    /// Only events in this state: ready, waiting or scheduled
    #[arg(long, value_parser = ["ready", "waiting", "scheduled"])]
    state: Option<String>,
    /// Only events accepted before this: a time (RFC 3339) or how long ago ("2h")
    #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
    accepted_before: Option<String>,
    #[command(flatten)]
    removal: Removal,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let asker = Asker::new(&options.daemon, environment)?;
    let functions = asker.functions(&options.function)?;
    let counted = purge(&asker, &options, &functions, true)?;
    let size = ByteSize::b(counted.bytes).display().iec().to_string();
    let of = match &functions[..] {
        [one] => one.clone(),
        many => format!("{} ({})", count(many.len() as u64, "function"), many.join(", ")),
    };
    let said = format!("{} of {of}, {size}", count(counted.events, "event"));
    if options.removal.dry_run || counted.events == 0 {
        return out::line(said);
    }
    options.removal.agreed(&format!("purge {said}?"))?;
    let purged = purge(&asker, &options, &functions, false)?;
    out::line(format!("{} purged", count(purged.events, "event")))
}

/// Purges all of the functions and adds up the results.
fn purge(asker: &Asker, options: &Options, functions: &[String], dry_run: bool) -> Result<Purged, Failure> {
    let mut sum = Purged { function: options.function.clone(), dry_run, events: 0, bytes: 0 };
    for function in functions {
        let query = PurgeQuery {
            state: options.state.clone(),
            accepted_before: options.accepted_before.clone(),
            dry_run,
            keep_keys: options.removal.keep_keys,
        };
        let purged: Purged = asker.post(&with_query(&lane_path(function, "purge"), &query))?;
        sum.events += purged.events;
        sum.bytes += purged.bytes;
    }
    Ok(sum)
}
