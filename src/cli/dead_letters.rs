//! `sendoff dead-letters`: those in the daemon's store.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::admin_client::{AdminClient, Daemon, Listing, One, query};
use super::{Exit, Failure, print, table};
use crate::clock::Clock;
use crate::config::Environment;
use crate::deadletter::letter;
use crate::event::Pattern;

/// Bytes of lines that one request of an import carries; a larger line goes alone. The daemon takes 2 MiB.
const IMPORT_BYTES_MAX: usize = 1 << 20;

/// A line holds 1 MiB of payload as base64, and its envelope.
const LINE_BYTES_MAX: u64 = 2 << 20;

/// Look at, save and remove the dead letters in the daemon's store
///
/// A dead letter is an event that was given up. Without a dead-letter queue, or until that takes it, it is in the store.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List them, oldest first for each function
    List {
        #[command(flatten)]
        listing: Listing,
        #[command(flatten)]
        filter: FilterOptions,
    },
    /// Show one, with its history
    Show {
        #[command(flatten)]
        event: One,
        /// Print the payload instead, byte for byte
        #[arg(long)]
        payload: bool,
    },
    /// Write them out as NDJSON, payloads included
    Export {
        #[command(flatten)]
        daemon: Daemon,
        #[command(flatten)]
        filter: FilterOptions,
        /// A new file; stdout if none
        file: Option<PathBuf>,
    },
    /// Take in what `export` wrote; what is there already is passed over
    Import {
        #[command(flatten)]
        daemon: Daemon,
        /// The file; - is stdin
        file: PathBuf,
    },
    /// Remove dead letters for good, by id
    Purge {
        #[command(flatten)]
        daemon: Daemon,
        /// Keep their idempotency keys: the same key sent again is then a duplicate and is not stored
        #[arg(long)]
        keep_keys: bool,
        /// The events' ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Which dead letters.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct FilterOptions {
    /// Those for this function; * stands for any characters
    #[arg(long)]
    pub(super) function: Option<Pattern>,
    /// Those that fit: reason=retries-exhausted, event-age-exceeded or refused; error=TEXT; may be repeated
    #[arg(long = "where", value_name = "reason=|error=", value_parser = parse_condition)]
    pub(super) conditions: Vec<Condition>,
    /// Those that died at or after this: a time (RFC 3339) or how long ago ("2h")
    #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
    pub(super) since: Option<String>,
    /// Those that died before this
    #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
    pub(super) until: Option<String>,
}

/// One `--where`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Reason(crate::outbox::BuryReason),
    Error(String),
}

fn parse_condition(text: &str) -> Result<Condition, String> {
    match text.split_once('=') {
        Some(("reason", word)) => {
            let words = "retries-exhausted, event-age-exceeded or refused";
            letter::reason_of(word).map(Condition::Reason).ok_or_else(|| format!("the reason is {words}"))
        }
        Some(("error", text)) if !text.is_empty() => Ok(Condition::Error(text.to_owned())),
        Some(_) | None => Err("write it like reason=refused or error=TEXT".to_owned()),
    }
}

fn parse_moment(text: &str) -> Result<String, String> {
    let moment = letter::moment(text, Clock::system().now());
    moment.map(|moment| moment.rfc3339()).ok_or_else(|| "write it like 2h or 2026-11-23T14:00:00Z".to_owned())
}

impl FilterOptions {
    pub(super) fn reason(&self) -> Option<crate::outbox::BuryReason> {
        self.conditions.iter().find_map(|condition| match condition {
            Condition::Reason(reason) => Some(*reason),
            Condition::Error(_) => None,
        })
    }

    pub(super) fn error(&self) -> Option<&str> {
        self.conditions.iter().find_map(|condition| match condition {
            Condition::Error(text) => Some(text.as_str()),
            Condition::Reason(_) => None,
        })
    }

    /// As the query of `/v1/dead-letters`, with these pairs of it.
    pub(super) fn query(&self, more: &[(&str, Option<&str>)]) -> String {
        let filters = [
            ("function", self.function.as_ref().map(Pattern::as_str)),
            ("reason", self.reason().map(|reason| reason.as_str())),
            ("error", self.error()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
        ];
        query(&[&filters, more].concat())
    }
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    match options.command {
        Command::List { listing: Listing { daemon, limit, json }, filter } => {
            runtime.block_on(list(&daemon.client(environment)?, &filter, limit, json))
        }
        Command::Show { event: One { daemon, id }, payload } => {
            runtime.block_on(show(&daemon.client(environment)?, &id, payload))
        }
        Command::Export { daemon, filter, file } => {
            runtime.block_on(export(&daemon.client(environment)?, &filter, file.as_deref()))
        }
        Command::Import { daemon, file } => runtime.block_on(import(&daemon.client(environment)?, &file)),
        Command::Purge { daemon, keep_keys, ids } => {
            runtime.block_on(purge(&daemon.client(environment)?, &ids, keep_keys))
        }
    }
}

/// Calls `each` with every page of the dead letters that fit, until it says that it has enough.
pub(super) async fn pages(
    client: &AdminClient,
    filter: &FilterOptions,
    more: &[(&str, Option<&str>)],
    mut each: impl AsyncFnMut(&Value) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut after: Option<String> = None;
    loop {
        let query = filter.query(&[&[("after", after.as_deref())], more].concat());
        let page = client.get(&format!("/v1/dead-letters{query}")).await?;
        let wants_more = each(&page).await?;
        match page["next"].as_str() {
            Some(next) if wants_more => after = Some(next.to_owned()),
            Some(_) | None => return Ok(()),
        }
    }
}

/// The letters of a page.
pub(super) fn letters(page: &Value) -> &[Value] {
    page["dead_letters"].as_array().map(Vec::as_slice).unwrap_or_default()
}

async fn list(client: &AdminClient, filter: &FilterOptions, limit: usize, json: bool) -> Result<(), Failure> {
    let mut found: Vec<Value> = Vec::new();
    let mut buried = 0;
    let page_size = limit.clamp(1, 1_000).to_string();
    pages(client, filter, &[("limit", Some(page_size.as_str()))], async |page| {
        buried = page["buried"].as_u64().unwrap_or_default();
        found.extend(letters(page).iter().cloned());
        found.truncate(limit);
        Ok(found.len() < limit)
    })
    .await?;
    if json {
        let lines: String = found.iter().map(|letter| format!("{letter}\n")).collect();
        return print(&lines);
    }
    let mut table = table::headed(&["ID", "FUNCTION", "DIED", "REASON", "ATTEMPTS", "REDRIVES", "LAST ERROR"]);
    for letter in &found {
        table.add_row(row(letter));
    }
    let shown = found.len();
    print(&format!("{}{shown} shown; the store holds {buried} dead letters\n", table::lines(table)))
}

fn row(letter: &Value) -> Vec<String> {
    let text = |name: &str| letter[name].as_str().unwrap_or("-").to_owned();
    let number = |name: &str| letter[name].to_string();
    let mut error = letter["error"]["code"].as_str().unwrap_or("-").to_owned();
    if let Some(why) = letter["unshippable"].as_str() {
        error += &format!(" (unshippable: {why})");
    }
    vec![text("id"), text("function"), text("buried_at"), text("reason"), number("attempts"), number("redrives"), error]
}

async fn show(client: &AdminClient, id: &str, payload: bool) -> Result<(), Failure> {
    let path = format!("/v1/dead-letters/{}?payload={payload}", super::send::percent(id));
    let letter = client.get(&path).await?;
    if !payload {
        let shown = serde_json::to_string_pretty(&letter).map_err(|error| Failure::new(Exit::Internal, error))?;
        return print(&format!("{shown}\n"));
    }
    let bytes = letter["export"]["payload_base64"].as_str().and_then(|text| STANDARD.decode(text).ok());
    let bytes = bytes.ok_or_else(|| Failure::saying(Exit::Failed, "the answer has no payload"))?;
    super::print_bytes(&bytes)
}

async fn export(client: &AdminClient, filter: &FilterOptions, file: Option<&Path>) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Exit::Failed, anyhow::Error::new(error).context("cannot write the export"))
    };
    let mut out: Box<dyn Write> = match file {
        Some(path) => Box::new(File::create_new(path).map_err(cannot)?),
        None => Box::new(std::io::stdout()),
    };
    let mut count = 0;
    pages(client, filter, &[("payloads", Some("true"))], async |page| {
        for letter in letters(page) {
            match writeln!(out, "{}", letter["export"]) {
                // The reader has had enough, as `head` has.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(false),
                written => written.map_err(cannot)?,
            }
            count += 1;
        }
        Ok(true)
    })
    .await?;
    out.flush().map_err(cannot)?;
    super::say(&format!("{count} dead letters written"));
    Ok(())
}

async fn import(client: &AdminClient, file: &Path) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Exit::Failed, anyhow::Error::new(error).context(format!("cannot read {}", file.display())))
    };
    let source: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        Some(_) | None => Box::new(File::open(file).map_err(cannot)?),
    };
    let mut reader = BufReader::new(source);
    let (mut stored, mut repeats, mut number) = (0, 0, 0);
    let mut at_end = false;
    while !at_end {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < IMPORT_BYTES_MAX && batch.len() < 100 && !at_end {
            let mut line = String::new();
            let read = reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line).map_err(cannot)?;
            at_end = read == 0;
            number += 1;
            if !line.trim().is_empty() {
                bytes += line.len();
                let letter: Value = serde_json::from_str(&line).map_err(|error| {
                    Failure::saying(Exit::Failed, format!("line {number} is not an exported dead letter: {error}"))
                })?;
                batch.push(letter);
            }
        }
        for answer in take_in(client, batch).await? {
            match answer["result"].as_str() {
                Some("stored") => stored += 1,
                Some("repeat") => repeats += 1,
                Some(_) | None => {
                    let why = format!("the daemon does not take line {number} or one before it: {}", answer["message"]);
                    return Err(Failure::saying(Exit::Failed, why));
                }
            }
        }
    }
    print(&format!("{stored} dead letters taken in, {repeats} were there already\n"))
}

/// One request; half of the letters at a time if the daemon finds it too large.
async fn take_in(client: &AdminClient, batch: Vec<Value>) -> Result<Vec<Value>, Failure> {
    let mut answers = Vec::new();
    let mut parts = vec![batch];
    while let Some(mut batch) = parts.pop() {
        if batch.is_empty() {
            continue;
        }
        match client.post("/v1/dead-letters", &json!({ "letters": batch })).await {
            Ok(answer) => answers.extend(answer["answers"].as_array().cloned().unwrap_or_default()),
            Err(trouble) if trouble.code == "413" && batch.len() > 1 => {
                let rest = batch.split_off(batch.len() / 2);
                parts.extend([rest, batch]);
            }
            Err(trouble) => return Err(trouble.into()),
        }
    }
    Ok(answers)
}

async fn purge(client: &AdminClient, ids: &[String], keep_keys: bool) -> Result<(), Failure> {
    for id in ids {
        let keys = query(&[("keep_keys", keep_keys.then_some("true"))]);
        client.delete(&format!("/v1/dead-letters/{}{keys}", super::send::percent(id))).await?;
        print(&format!("{id} purged\n"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::BuryReason;

    #[test]
    fn conditions_name_a_reason_or_a_part_of_the_error() {
        assert_eq!(parse_condition("reason=refused"), Ok(Condition::Reason(BuryReason::Refused)));
        assert_eq!(parse_condition("error=a=b"), Ok(Condition::Error("a=b".into())));
        for text in ["", "reason", "reason=bored", "error=", "colour=red"] {
            assert!(parse_condition(text).is_err(), "{text}");
        }
    }

    #[test]
    fn filters_become_an_escaped_query() {
        let filter = FilterOptions {
            function: Some("orders:prod".parse().unwrap()),
            conditions: vec![Condition::Error("a & b".into()), Condition::Reason(BuryReason::Refused)],
            since: Some("2026-11-23T14:00:00Z".into()),
            until: None,
        };
        let expected = "?function=orders%3Aprod&reason=refused&error=a%20%26%20b&since=2026-11-23T14%3A00%3A00Z";
        assert_eq!(filter.query(&[("limit", Some("5"))]), format!("{expected}&limit=5"));
        assert_eq!(FilterOptions::default().query(&[]), "");
    }
}
