//! `sendoff check-config`: reads and checks the configuration as `serve` does, checks the state directory, and warns
//! about probable mistakes. With `--online` it also asks AWS, and the sendoffs that would take hand-offs.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Args;

use super::{ConfigOptions, Exit, Failure, Lines, print};
use crate::aws::probe::{Finding, Probe, Role, Target, Verdict};
use crate::aws::{self, Own, Shared};
use crate::clock::Clock;
use crate::config::shapes::suspicions;
use crate::config::{Config, Entry, Environment, Loaded, Origin};
use crate::daemon;
use crate::handoff::Address;
use crate::outbox::embedded::store::place::{Remark, look, room};
use crate::plural::agree;
use crate::visible::visible;

mod peers;

/// Check the configuration and report all of its problems
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub(super) config: ConfigOptions,
    /// Ask AWS, too: credentials, functions and queues; and the targets of hand-offs. Invokes nothing and sends nothing
    ///
    /// Checks functions that have a table of their own, and each --function, by DryRun. Exits with 1 if something is
    /// missing, and says which permission or setting is needed.
    #[arg(long)]
    online: bool,
    /// Also check this function: a name, name:alias or ARN. May be repeated
    #[arg(long, value_name = "NAME", requires = "online", value_parser = super::arguments::function)]
    function: Vec<String>,
    /// Check nothing on this machine: no state directory, addresses, Unix socket, certificate files or files with
    /// secrets. Use it on another machine than the daemon's
    #[arg(long)]
    skip_state_dir: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let file = options.config.config.clone();
    let Loaded { config, entries } = options.config.load(environment)?;
    if options.online {
        super::again::without_own_endpoints(&config);
    }
    let mut said = read_from(file.as_deref(), &entries);
    let mut problems = Vec::new();
    if !options.skip_state_dir {
        let outbox = &config.outbox;
        let is_local = config.postgres.is_none();
        let remarks = is_local.then(|| look(&config.state_dir, outbox.disk_reserve)).into_iter().flatten();
        let room = room(&config.state_dir, outbox.limits.bytes_max, outbox.disk_reserve).filter(|_| is_local);
        for Remark { is_fatal, what, remedy } in remarks.chain(room) {
            if is_fatal {
                problems.push(format!("state_dir: {}\n      {}", visible(&what), visible(&remedy)));
            } else {
                said += &format!("note: {what}; {remedy}\n");
            }
        }
    }
    let mut exit = Exit::Unavailable;
    if !options.skip_state_dir
        && let Err(bad) = certificate(&config, &mut said).and_then(|()| secrets(&config))
    {
        exit = Exit::Configuration;
        problems.push(visible(&bad).into_owned());
    }
    // Ends with the exit code of a failed start and, except for the state directory, with its message.
    let refused = super::runtime()?.block_on(daemon::check(&config, !options.skip_state_dir)).err();
    let refused = refused.map(|error| Failure::new(super::serve::exit_of(&error), error));
    if !problems.is_empty() || refused.is_some() {
        print(&said)?;
    }
    if !problems.is_empty() {
        problems.extend(refused.map(|failure| failure.to_string()));
        let all = problems.join("\n  ");
        return Err(Failure::new(exit, Lines(format!("the configuration does not work here:\n\n  {all}"))));
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    said += "the configuration has no problems\n";
    for suspicion in suspicions(&config) {
        said += &format!("note: {suspicion}\n");
    }
    for variable in &config.ignored_endpoints {
        said += &format!("note: ${variable} points to sendoff's own listener; sendoff ignores it\n");
    }
    print(&said)?;
    if !options.online {
        return Ok(());
    }
    let missing = super::runtime()?.block_on(ask(&config, &options.function))?;
    match missing {
        0 => Ok(()),
        missing => {
            let said = agree(missing as u64, "thing is", "things are");
            Err(Failure::saying(Exit::Failed, format!("{said} missing: see above")))
        }
    }
}

/// Whether the secrets of clients and operators can be read. The error says why not.
fn secrets(config: &Config) -> Result<(), String> {
    let clients = config.clients.load().map(drop);
    clients.and_then(|()| config.operators.load().map(drop)).map_err(|bad| bad.to_string())
}

/// Whether the listeners' certificate can be served. The error says why not.
fn certificate(config: &Config, said: &mut String) -> Result<(), String> {
    let Some(tls) = &config.tls else { return Ok(()) };
    let (_, pair) = tls.files.load_valid(Clock::system().wall_millis()).map_err(|bad| bad.to_string())?;
    let expires = pair.expires.rfc3339();
    *said += &format!("note: the TLS certificate is good until {expires}\n");
    Ok(())
}

/// Where installations keep their file. It is read only if it is named.
const INSTALLED: &str = "/etc/sendoff/sendoff.toml";

/// The sources of the configuration, as a sentence.
fn read_from(file: Option<&Path>, entries: &[Entry]) -> String {
    let variables: BTreeSet<String> = entries
        .iter()
        .filter(|entry| matches!(entry.origin, Origin::Environment(_)))
        .map(|entry| entry.origin.to_string())
        .collect();
    let mut said = match file {
        Some(file) => format!("read {}\n", file.display()),
        None if Path::new(INSTALLED).exists() => {
            format!("read no file: {INSTALLED} exists, but sendoff reads it only with --config FILE\n")
        }
        None => "read no file: defaults, variables and flags apply; name a file with --config FILE\n".to_owned(),
    };
    if !variables.is_empty() {
        said += &format!("read {}\n", variables.into_iter().collect::<Vec<_>>().join(", "));
    }
    said
}

/// Asks AWS one question after another and prints each answer. Returns how many things are missing.
async fn ask(config: &Config, more: &[String]) -> Result<usize, Failure> {
    let addresses = config.listen.ingest.iter().chain([&config.listen.admin]).copied().collect();
    let own = Own { addresses, ..Own::nobody() };
    let shared = Shared::load(config.lambda.region.as_deref(), &config.outside, own, Clock::system()).await;
    let shared = shared.map_err(no_place)?;
    for way in config.outside.in_words() {
        print(&format!("ok      connections to AWS: {way}\n"))?;
    }
    let mut probe = Probe::new(&shared, &config.lambda, &config.sqs).map_err(no_place)?;
    let mut missing = 0;
    let mut tell = |finding: &Finding| {
        missing += usize::from(finding.is_missing());
        print(&line(finding))
    };
    let home = config.ingest.home.clone().or_region(shared.region());
    peers::findings(config, home).await.iter().try_for_each(&mut tell)?;
    let found = probe.credentials().await;
    found.iter().try_for_each(&mut tell)?;
    // Without credentials all other answers would report the same.
    if !found[0].is_missing() {
        let functions = functions(config, more);
        for function in &functions {
            tell(&probe.function(&Target::of(function)).await)?;
        }
        if functions.is_empty() {
            print("?       functions: the configuration names none; name some with --function\n")?;
        }
        let queues = queues(config);
        for (queue, role) in &queues {
            probe.queue(queue, *role).await.iter().try_for_each(&mut tell)?;
        }
        let handed = queues.iter().filter(|(_, role)| *role != Role::DeadLetters).map(|(queue, _)| queue);
        for queue in handed.collect::<BTreeSet<_>>() {
            probe.keeps(queue).await.iter().try_for_each(&mut tell)?;
        }
        if queues.iter().all(|(_, role)| *role != Role::DeadLetters) {
            print("?       queues: no dead-letter queue is configured; dead letters stay in the outbox\n")?;
        }
    }
    Ok(missing)
}

fn no_place(error: aws::Error) -> Failure {
    Failure::new(Exit::Configuration, error)
}

/// The functions with complete names: from tables of their own and from the command line.
fn functions(config: &Config, more: &[String]) -> BTreeSet<String> {
    let tables = config.dispatch.functions.iter().map(|(pattern, _)| pattern).filter(|pattern| !pattern.contains('*'));
    tables.chain(more).cloned().collect()
}

fn queues(config: &Config) -> Vec<(String, Role)> {
    let own = config.dead_letter.functions.iter().map(|(_, queue)| queue);
    let letters: BTreeSet<&String> = config.dead_letter.queue_url.iter().chain(own).collect();
    let to = config.handoff.to.iter().filter_map(|address| match address {
        Address::Queue(queue) => Some(queue),
        Address::Peer(_) => None,
    });
    let from = config.handoff.receive_queue.iter();
    let letters = letters.into_iter().map(|queue| (queue, Role::DeadLetters));
    let handed = to.map(|queue| (queue, Role::HandOff)).chain(from.map(|queue| (queue, Role::Receive)));
    letters.chain(handed).map(|(queue, role)| (queue.clone(), role)).collect()
}

fn line(Finding { subject, verdict }: &Finding) -> String {
    match verdict {
        Verdict::Proven(how) => format!("ok      {subject}: {how}\n"),
        Verdict::Unknown(why) => format!("?       {subject}: {why}\n"),
        Verdict::Missing { said, remedy } => format!("MISSING {subject}: {said}\n        do: {remedy}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, load};

    fn config(set: &[&str]) -> Config {
        let flags = Flags { set: set.iter().map(|&pair| pair.to_owned()).collect(), ..Flags::default() };
        load(&flags, &Environment::from_pairs(&[("HOME", "/h")])).unwrap().config
    }

    #[test]
    fn functions_and_queues_that_are_named_whole_are_asked_after_once_each() {
        let config = config(&[
            "functions.orders.age_max=1h",
            "functions.\"invoices-*\".age_max=1h",
            "functions.orders.queue_url=http://127.0.0.1:1/123456789012/own",
            "dead_letter.queue_url=http://127.0.0.1:1/123456789012/own",
        ]);
        let more = ["mails".to_owned(), "orders".to_owned()];
        assert_eq!(functions(&config, &more).into_iter().collect::<Vec<_>>(), ["mails", "orders"]);
        assert_eq!(queues(&config), [("http://127.0.0.1:1/123456789012/own".to_owned(), Role::DeadLetters)]);
    }

    #[test]
    fn a_line_says_what_to_do() {
        let verdict = Verdict::Missing { said: "403".into(), remedy: "allow it".into() };
        let missing = Finding { subject: "function orders".into(), verdict };
        assert_eq!(line(&missing), "MISSING function orders: 403\n        do: allow it\n");
    }
}
