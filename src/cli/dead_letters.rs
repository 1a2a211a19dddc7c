//! `sendoff dead-letters`: the dead letters in the daemon's store.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::value::RawValue;

use super::admin_client::{AdminClient, Daemon, Listing, One, page_size, with_query};
use super::purge::Removal;
use super::table::{Rows, or_dash};
use super::{Exit, Failure, out};
use crate::admin::api::{
    Answers, FunctionsQuery, GroupPage, Ids, Import, KeysQuery, LetterPage, LetterResult, LetterView, LettersQuery,
    PayloadQuery,
};
use crate::clock::{Clock, UnixMillis};
use crate::config::Environment;
use crate::deadletter::export::Exported;
use crate::deadletter::letter;
use crate::event::{EventId, Pattern};
use crate::plural::{agree, count};

/// The most bytes of lines in one request of an import. A larger line goes alone. The daemon accepts 2 MiB.
const IMPORT_BYTES_MAX: usize = 1 << 20;

/// The most bytes of a line: 1 MiB of payload as base64, and its envelope.
const LINE_BYTES_MAX: u64 = 2 << 20;

/// The most dead letters of one page.
const PAGE: usize = 1_000;

/// The most ids in one request.
const PURGE_IDS_MAX: usize = 100;

const EXAMPLES: &str = "\
Examples:
  sendoff dead-letters list --function 'orders-*' --where reason=refused --since 2h
  sendoff dead-letters export dead.ndjson
  sendoff dead-letters purge --function orders --until 7d";

/// List, show, export, import and remove dead letters in the daemon's store
///
/// A dead letter is an event that sendoff gave up. It is in the store if there is no dead-letter queue, or until the
/// queue accepts it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters, for each function the oldest first
    List {
        #[command(flatten)]
        listing: Listing,
        #[command(flatten)]
        filter: FilterOptions,
    },
    /// Count dead letters by function, reason and code of the last error
    Groups {
        #[command(flatten)]
        daemon: Daemon,
        /// Only for this function. * matches any characters
        #[arg(long)]
        function: Option<Pattern>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its history
    Show {
        #[command(flatten)]
        event: One,
        /// Print its payload instead, byte for byte
        #[arg(long)]
        payload: bool,
    },
    /// Write dead letters as NDJSON, including payloads
    Export {
        #[command(flatten)]
        daemon: Daemon,
        #[command(flatten)]
        filter: FilterOptions,
        /// The file, readable by its owner only. If omitted, stdout
        file: Option<PathBuf>,
        /// Replace an existing file
        #[arg(long, requires = "file")]
        force: bool,
    },
    /// Read dead letters that `export` wrote into the store. Skips those that it already has
    Import {
        #[command(flatten)]
        daemon: Daemon,
        /// The file. Use - for stdin
        file: PathBuf,
    },
    /// Remove dead letters for good, by id or by filter
    ///
    /// Reports their number and asks before it removes them.
    Purge {
        #[command(flatten)]
        daemon: Daemon,
        /// The events' ids
        #[arg(conflicts_with_all = ["function", "conditions", "since", "until"])]
        ids: Vec<EventId>,
        #[command(flatten)]
        filter: FilterOptions,
        #[command(flatten)]
        removal: Removal,
    },
}

/// Selects dead letters.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct FilterOptions {
    /// Only for this function. * matches any characters
    #[arg(long)]
    pub(super) function: Option<Pattern>,
    /// Only those that match: reason=retries-exhausted, event-age-exceeded or refused; error=TEXT. May be repeated
    #[arg(long = "where", value_name = "reason=|error=", value_parser = parse_condition)]
    pub(super) conditions: Vec<Condition>,
    /// Only those given up at or after this: a time (RFC 3339) or how long ago ("2h")
    #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
    pub(super) since: Option<String>,
    /// Only those given up before this
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

pub(super) fn parse_moment(text: &str) -> Result<String, String> {
    let moment = UnixMillis::read(text, Clock::system().now());
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

    /// Whether the filter excludes some dead letters of a matching function.
    fn is_narrow(&self) -> bool {
        !self.conditions.is_empty() || self.since.is_some() || self.until.is_some()
    }

    /// The query of `/v1/dead-letters` for the first page.
    pub(super) fn query(&self) -> LettersQuery {
        LettersQuery {
            function: self.function.as_ref().map(|pattern| pattern.as_str().to_owned()),
            reason: self.reason().map(|reason| reason.as_str().to_owned()),
            error: self.error().map(str::to_owned),
            since: self.since.clone(),
            until: self.until.clone(),
            ..LettersQuery::default()
        }
    }
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    match options.command {
        Command::List { listing, filter } => {
            runtime.block_on(list(&listing.daemon.client(environment)?, &filter, &listing))
        }
        Command::Groups { daemon, function, json } => {
            let function = function.map(|pattern| pattern.as_str().to_owned());
            let path = with_query("/v1/dead-letters/groups", &FunctionsQuery { function });
            groups(&runtime.block_on(daemon.client(environment)?.get(&path))?, json)
        }
        Command::Show { event: One { daemon, id }, payload } => {
            runtime.block_on(show(&daemon.client(environment)?, id, payload))
        }
        Command::Export { daemon, filter, file, force } => {
            runtime.block_on(export(&daemon.client(environment)?, &filter, file.as_deref(), force))
        }
        Command::Import { daemon, file } => runtime.block_on(import(&daemon.client(environment)?, &file)),
        Command::Purge { daemon, ids, filter, removal } => {
            let purge = Purge { client: daemon.client(environment)?, removal };
            runtime.block_on(purge.run(ids, &filter))
        }
    }
}

fn groups(page: &GroupPage, json: bool) -> Result<(), Failure> {
    if json {
        return page.groups.iter().try_for_each(out::json);
    }
    let mut rows = Rows::headed(&["EVENTS", "FUNCTION", "REASON", "CODE", "UNSHIPPABLE", "NEWEST", "EXAMPLE"]);
    for group in &page.groups {
        rows.add([
            group.events.to_string(),
            group.function.clone(),
            or_dash(group.reason.map(crate::outbox::BuryReason::as_str)),
            or_dash(Some(&group.code).filter(|code| !code.is_empty())),
            group.unshippable.to_string(),
            or_dash(group.newest_buried_at.as_deref()),
            or_dash(group.example),
        ]);
    }
    out::print(&rows.lines())?;
    let all = count(page.buried, "dead letter");
    match page.complete {
        true => out::line(format!("{all} in the store")),
        false => out::line(format!("{} of {all} counted: the oldest of each function", page.counted)),
    }
}

/// Calls `each` with every page, beginning with that of `query`, until it has enough. Returns the token to continue
/// with.
pub(super) async fn pages(
    client: &AdminClient,
    mut query: LettersQuery,
    mut each: impl AsyncFnMut(LetterPage) -> Result<bool, Failure>,
) -> Result<Option<String>, Failure> {
    loop {
        let page: LetterPage = client.get(&with_query("/v1/dead-letters", &query)).await?;
        query.after.clone_from(&page.next);
        let wants_more = each(page).await?;
        if !wants_more || query.after.is_none() {
            return Ok(query.after);
        }
    }
}

async fn list(client: &AdminClient, filter: &FilterOptions, listing: &Listing) -> Result<(), Failure> {
    let limit = listing.limit();
    let mut found: Vec<LetterView> = Vec::new();
    let mut store = Stored::default();
    let mut after = listing.after.clone();
    // Read one page at a time, never more than is still to be shown, so that the token is where the list ends.
    while found.len() < limit {
        let size = page_size((limit - found.len()).min(PAGE));
        after = pages(client, LettersQuery { after, limit: size, ..filter.query() }, async |page| {
            store = Stored { buried: page.buried, shipped: page.shipped, queues: page.queues };
            found.extend(page.dead_letters);
            Ok(false)
        })
        .await?;
        if after.is_none() {
            break;
        }
    }
    let after = match after {
        Some(after) => is_more(client, filter, &after).await?.then_some(after),
        None => None,
    };
    let shown = store.shown(found.len() as u64, filter.is_narrow(), after.as_deref());
    if listing.json {
        found.iter().try_for_each(out::json)?;
        if after.is_some() {
            out::note(shown);
        }
        return Ok(());
    }
    out::print(&listed(&found).lines())?;
    out::line(shown)?;
    out::line(store.in_words())
}

/// Whether dead letters follow the token. A full page may have been the last.
async fn is_more(client: &AdminClient, filter: &FilterOptions, after: &str) -> Result<bool, Failure> {
    let mut any = false;
    let query = LettersQuery { after: Some(after.to_owned()), limit: page_size(1), ..filter.query() };
    pages(client, query, async |page| {
        any = !page.dead_letters.is_empty();
        Ok(!any)
    })
    .await?;
    Ok(any)
}

/// What the daemon's answer says besides the page.
#[derive(Debug, Clone, Default)]
struct Stored {
    buried: u64,
    shipped: u64,
    queues: Vec<String>,
}

impl Stored {
    fn shown(&self, shown: u64, is_narrow: bool, after: Option<&str>) -> String {
        match after {
            None => format!("{} shown", count(shown, "dead letter")),
            Some(after) => {
                let of = if is_narrow { String::new() } else { format!(" of {}", self.buried) };
                format!("{shown}{of} shown; continue with --after {after}, or list them with --all")
            }
        }
    }

    /// Where dead letters are, as a sentence.
    fn in_words(&self) -> String {
        let Self { buried, shipped, queues } = self;
        let here = format!("{} in the store", count(*buried, "dead letter"));
        let names: Vec<&str> = queues.iter().map(|queue| name_of(queue)).collect();
        match (&names[..], shipped) {
            ([], 0) => format!("{here}; no dead-letter queue is configured, so they stay here"),
            ([], shipped) => format!("{here}; {shipped} shipped since the daemon's start"),
            (names, shipped) => format!("{here}; {shipped} shipped to {} since the daemon's start", names.join(", ")),
        }
    }
}

/// The name of a queue, from its URL or ARN.
fn name_of(queue: &str) -> &str {
    queue.rsplit(['/', ':']).next().unwrap_or(queue)
}

fn listed(letters: &[LetterView]) -> Rows {
    let heads = ["ID", "FUNCTION", "DIED", "REASON", "ATTEMPTS", "CHARGED", "REDRIVES", "LAST ERROR"];
    let mut rows = Rows::headed(&heads);
    for letter in letters {
        let mut error = or_dash(letter.last_error.as_ref().map(|error| error.code.as_str()));
        if let Some(why) = &letter.unshippable {
            error += &format!(" (unshippable: {why})");
        }
        rows.add([
            letter.id.to_string(),
            letter.function.clone(),
            or_dash(letter.buried_at.as_ref()),
            or_dash(letter.reason.map(|reason| reason.as_str())),
            letter.attempts.to_string(),
            letter.charged.to_string(),
            letter.redrives.to_string(),
            error,
        ]);
    }
    rows
}

async fn show(client: &AdminClient, id: EventId, payload: bool) -> Result<(), Failure> {
    let letter: LetterView =
        client.get(&with_query(&format!("/v1/dead-letters/{id}"), &PayloadQuery { payload })).await?;
    if !payload {
        return out::pretty(&letter);
    }
    let exported = letter.export.and_then(|export| serde_json::from_str::<Exported>(export.get()).ok());
    let exported = exported.ok_or_else(|| Failure::saying(Exit::Failed, "the answer has no payload"))?;
    out::payload(exported.payload())
}

async fn export(client: &AdminClient, filter: &FilterOptions, file: Option<&Path>, force: bool) -> Result<(), Failure> {
    let mut to_file = file.map(|path| create(path, force)).transpose()?;
    let mut written = 0;
    let every = pages(client, LettersQuery { payloads: true, ..filter.query() }, async |page| {
        for letter in &page.dead_letters {
            let line = letter.export.as_ref();
            let line = line.ok_or_else(|| Failure::saying(Exit::Failed, "the answer has no payloads"))?;
            match &mut to_file {
                None => out::json(line)?,
                Some(out) => {
                    writeln!(out, "{}", line.get())
                        .map_err(|error| unwritable(file.unwrap_or(Path::new("-")), error))?;
                }
            }
            written += 1;
        }
        Ok(true)
    });
    every.await?;
    if let (Some(out), Some(path)) = (&mut to_file, file) {
        out.flush().and_then(|()| out.sync_all()).map_err(|error| unwritable(path, error))?;
    }
    let to = file.map_or_else(String::new, |path| format!(" to {}", path.display()));
    out::note(format!("{} written{to}", count(written, "dead letter")));
    Ok(())
}

/// Creates a file that only its owner can read, because it contains payloads and keys.
fn create(path: &Path, force: bool) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    let opened = if force { options.create(true).truncate(true) } else { options.create_new(true) }.open(path);
    let file = opened.map_err(|error| {
        if error.kind() != std::io::ErrorKind::AlreadyExists {
            return unwritable(path, error);
        }
        let why = format!("{} exists already: name another file, or replace it with --force", path.display());
        Failure::saying(Exit::Failed, why)
    })?;
    let is_file = file.metadata().map_err(|error| unwritable(path, error))?.is_file();
    if is_file {
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(|error| unwritable(path, error))?;
    }
    Ok(file)
}

fn unwritable(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, anyhow::Error::new(error).context(format!("cannot write the export {}", path.display())))
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
    let (mut stored, mut duplicates, mut number) = (0, 0, 0);
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
                let letter: Box<RawValue> = serde_json::from_str(line.trim()).map_err(|error| {
                    Failure::saying(Exit::Failed, format!("line {number} is not an exported dead letter: {error}"))
                })?;
                batch.push((number, letter));
            }
        }
        for (number, answer) in take_in(client, batch).await? {
            match answer {
                LetterResult::Stored { .. } => stored += 1,
                LetterResult::Duplicate { .. } => duplicates += 1,
                LetterResult::Busy { message }
                | LetterResult::Refused { message }
                | LetterResult::Ceiling { message }
                | LetterResult::Shipping { message }
                | LetterResult::NotFound { message } => {
                    let why = format!("the daemon refused line {number}: {message}");
                    return Err(Failure::saying(Exit::Failed, why));
                }
                LetterResult::Purged { id } => {
                    let why = format!("unexpected answer of the daemon: {id} was purged");
                    return Err(Failure::saying(Exit::Internal, why));
                }
            }
        }
    }
    out::line(format!(
        "{} imported, {} already in the store",
        count(stored, "dead letter"),
        agree(duplicates, "was", "were")
    ))
}

/// Sends one request. If the daemon finds it too large, sends half of the lines at a time. Returns each answer with its
/// line number.
async fn take_in(client: &AdminClient, batch: Vec<(u64, Box<RawValue>)>) -> Result<Vec<(u64, LetterResult)>, Failure> {
    let mut answers = Vec::new();
    let mut parts = vec![batch];
    while let Some(mut batch) = parts.pop() {
        if batch.is_empty() {
            continue;
        }
        let letters = Import { letters: batch.iter().map(|(_, letter)| &**letter).collect() };
        match client.post::<Answers>("/v1/dead-letters", &letters).await {
            Ok(answer) => answers.extend(batch.iter().map(|(number, _)| *number).zip(answer.answers)),
            Err(trouble) if trouble.code == "413" && batch.len() > 1 => {
                let rest = batch.split_off(batch.len() / 2);
                parts.extend([rest, batch]);
            }
            Err(trouble) => {
                let number = |letter: Option<&(u64, Box<RawValue>)>| letter.map_or(0, |(number, _)| *number);
                let (first, last) = (number(batch.first()), number(batch.last()));
                let which = if first == last { format!("line {first}") } else { format!("lines {first} to {last}") };
                return Err(Failure::from(crate::deadletter::Trouble {
                    message: format!("{which}: {}", trouble.message),
                    ..trouble
                }));
            }
        }
    }
    Ok(answers)
}

/// A purge of dead letters.
struct Purge {
    client: AdminClient,
    removal: Removal,
}

impl Purge {
    async fn run(&self, ids: Vec<EventId>, filter: &FilterOptions) -> Result<(), Failure> {
        let by_id = !ids.is_empty();
        if !by_id && filter.function.is_none() && !filter.is_narrow() {
            let why = "name the dead letters by id, or by a filter; --function '*' means all of them";
            return Err(Failure::saying(Exit::Usage, why));
        }
        let (ids, bytes) = if by_id { self.look_up(ids).await? } else { self.find(filter).await? };
        let letters = count(ids.len() as u64, "dead letter");
        let size = ByteSize::b(bytes).display().iec();
        if self.removal.dry_run || ids.is_empty() {
            return out::line(format!("{letters}, {size}, would be purged"));
        }
        self.removal.agreed(&format!("purge {letters}, {size}, for good?"))?;
        let path = with_query("/v1/dead-letters/purge", &KeysQuery { keep_keys: self.removal.keep_keys });
        let mut purged = 0;
        let mut stay = Vec::new();
        for ids in ids.chunks(PURGE_IDS_MAX) {
            let Answers { answers } = self.client.post(&path, &Ids { ids: ids.to_vec() }).await?;
            for answer in answers {
                match answer {
                    LetterResult::Purged { .. } => purged += 1,
                    LetterResult::Busy { message }
                    | LetterResult::Refused { message }
                    | LetterResult::Ceiling { message }
                    | LetterResult::Shipping { message }
                    | LetterResult::NotFound { message } => stay.push(message),
                    LetterResult::Stored { id } | LetterResult::Duplicate { id } => {
                        stay.push(format!("{id} was not purged"))
                    }
                }
            }
        }
        out::line(format!("{} purged", count(purged, "dead letter")))?;
        stay.iter().take(20).for_each(out::note);
        match stay.len() {
            0 => Ok(()),
            more => {
                let why = format!("{} not purged", count(more as u64, "dead letter"));
                Err(Failure::saying(Exit::Failed, why))
            }
        }
    }

    /// Looks up the dead letters that were named. All of them must exist.
    async fn look_up(&self, ids: Vec<EventId>) -> Result<(Vec<EventId>, u64), Failure> {
        let mut bytes = 0;
        for id in &ids {
            let letter: LetterView = self.client.get(&format!("/v1/dead-letters/{id}")).await?;
            bytes += letter.payload_bytes as u64;
        }
        Ok((ids, bytes))
    }

    async fn find(&self, filter: &FilterOptions) -> Result<(Vec<EventId>, u64), Failure> {
        let (mut ids, mut bytes) = (Vec::new(), 0);
        let query = LettersQuery { limit: page_size(PAGE), ..filter.query() };
        pages(&self.client, query, async |page| {
            bytes += page.dead_letters.iter().map(|letter| letter.payload_bytes as u64).sum::<u64>();
            ids.extend(page.dead_letters.iter().map(|letter| letter.id));
            Ok(true)
        })
        .await?;
        Ok((ids, bytes))
    }
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
    fn a_list_says_where_the_others_are() {
        let queues = vec!["https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq".to_owned()];
        let stored = Stored { buried: 0, shipped: 25, queues };
        assert_eq!(stored.in_words(), "0 dead letters in the store; 25 shipped to orders-dlq since the daemon's start");
        let stored = Stored { buried: 1, ..Stored::default() };
        assert_eq!(
            stored.in_words(),
            "1 dead letter in the store; no dead-letter queue is configured, so they stay here"
        );
        assert_eq!(name_of("arn:aws:sqs:us-west-2:123456789012:payments-dlq.fifo"), "payments-dlq.fifo");
        let stored = Stored { buried: 6, ..Stored::default() };
        assert_eq!(stored.shown(6, false, None), "6 dead letters shown");
        assert!(stored.shown(2, false, Some("1.x")).starts_with("2 of 6 shown; continue with --after 1.x"));
        assert!(stored.shown(2, true, Some("1.x")).starts_with("2 shown; continue"));
    }

    #[test]
    fn filters_become_an_escaped_query() {
        let filter = FilterOptions {
            function: Some("orders:prod".parse().unwrap()),
            conditions: vec![Condition::Error("a & b".into()), Condition::Reason(BuryReason::Refused)],
            since: Some("2026-11-23T14:00:00Z".into()),
            until: None,
        };
        let query = LettersQuery { limit: page_size(5), ..filter.query() };
        let expected = "/?function=orders%3Aprod&reason=refused&error=a+%26+b&since=2026-11-23T14%3A00%3A00Z";
        assert_eq!(with_query("/", &query), format!("{expected}&limit=5&payloads=false"));
    }
}
