//! `sendoff show-config`: the values in effect, and where each comes from.

use std::io::IsTerminal;

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::admin_client::{Asker, Daemon};
use super::table::Rows;
use super::url::percent;
use super::{Exit, Failure, arguments, out, print};
use crate::admin::api::{ConfigEntry, ConfigView};
use crate::config::{Config, Entry, Environment, Loaded, Origin, Value, of_function};

/// Show every value in effect and where it comes from
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Show what is in effect in the running daemon, instead of what a start would read now
    #[arg(long)]
    running: bool,
    /// Show only what applies to this function
    #[arg(long, value_name = "NAME", value_parser = arguments::function)]
    function: Option<String>,
    /// Print JSON: an array of objects with key, value and origin
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    if options.running {
        return running(&Asker::new(&options.daemon, environment)?, options.function.as_deref(), options.json);
    }
    let Loaded { config, mut entries } = options.daemon.config.load(environment)?;
    entries.extend(outside(&config, environment));
    if let Some(function) = &options.function {
        entries = of_function(entries, |entry| entry, function);
    }
    let entries: Vec<_> = entries.into_iter().map(Entry::without_secrets).collect();
    let said = match (options.json, std::io::stdout().is_terminal()) {
        (true, _) => json(&entries)?,
        (false, true) => table(&entries),
        (false, false) => aligned(&entries),
    };
    print(&said)
}

/// Shows the configuration of the daemon.
fn running(asker: &Asker, function: Option<&str>, json: bool) -> Result<(), Failure> {
    let query = function.map(|function| format!("?function={}", percent(function))).unwrap_or_default();
    let ConfigView { entries } = asker.get(&format!("/v1/config{query}"))?;
    if json {
        return out::pretty(&entries);
    }
    let mut rows = Rows::headed(&["KEY", "VALUE", "ORIGIN"]);
    for ConfigEntry { key, value, origin, needs_restart, .. } in entries {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let value = if value.is_empty() { "\"\"".to_owned() } else { value };
        let origin = if needs_restart { format!("{origin} (changed since; restart to apply)") } else { origin };
        rows.add([key, value, origin]);
    }
    out::print(&rows.lines())
}

/// The variables about connections to AWS that are set. They have no keys in sendoff's configuration, because every AWS
/// SDK reads them.
pub(super) fn outside(config: &Config, environment: &Environment) -> Vec<Entry> {
    let named = |(name, value): (&str, String)| {
        let lower = name.to_lowercase();
        let origin = if environment.get(name).is_some() { name.to_owned() } else { lower };
        Entry { key: name.to_owned(), value: Value::Text(value), origin: Origin::Environment(origin), is_live: false }
    };
    config.outside.named().into_iter().map(named).collect()
}

fn json(entries: &[Entry]) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Line<'a> {
        key: &'a str,
        value: &'a Value,
        origin: String,
    }
    let lines: Vec<Line<'_>> = entries
        .iter()
        .map(|entry| Line { key: &entry.key, value: &entry.value, origin: entry.origin.to_string() })
        .collect();
    let text = serde_json::to_string_pretty(&lines).map_err(|error| Failure::new(Exit::Internal, error))?;
    Ok(text + "\n")
}

fn cells(entry: &Entry) -> [String; 3] {
    let value = entry.value.to_string();
    let value = if value.is_empty() { "\"\"".to_owned() } else { value };
    [entry.key.clone(), value, entry.origin.to_string()]
}

fn table(entries: &[Entry]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["key", "value", "origin"]);
    table.add_rows(entries.iter().map(cells));
    format!("{table}\n")
}

/// Three columns with two spaces between, for pipes and pagers.
fn aligned(entries: &[Entry]) -> String {
    let rows: Vec<[String; 3]> = entries.iter().map(cells).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (keys, values) = (width(0), width(1));
    rows.iter().map(|[key, value, origin]| format!("{key:keys$}  {value:values$}  {origin}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, load};

    fn entries() -> Vec<Entry> {
        let flags = Flags { set: vec!["listen.headers_max=7".to_owned()], ..Flags::default() };
        let environment =
            Environment::from_pairs(&[("STATE_DIRECTORY", "/state"), ("SENDOFF_LAMBDA__REGION", "eu-central-1")]);
        load(&flags, &environment).unwrap().entries
    }

    #[test]
    fn every_value_is_shown_with_its_origin() {
        let text = aligned(&entries());
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        for row in [
            ["state_dir", "/state", "$STATE_DIRECTORY"],
            ["listen.ingest", "127.0.0.1:9477", "default"],
            ["listen.unix", "\"\"", "default"],
            ["listen.headers_max", "7", "--set"],
            ["lambda.region", "eu-central-1", "$SENDOFF_LAMBDA__REGION"],
            ["sqs.region", "eu-central-1", "$SENDOFF_LAMBDA__REGION"],
        ] {
            assert!(rows.contains(&row.to_vec()), "{row:?} in\n{text}");
        }
        let columns: Vec<usize> = text.lines().filter_map(|line| line.find("default")).collect();
        assert!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }

    #[test]
    fn proxies_and_certificates_are_shown_without_passwords() {
        let variables = [
            ("HOME", "/h"),
            ("https_proxy", "http://me:secret@proxy:3128"),
            ("NO_PROXY", "localhost,10.0.0.0/8"),
            ("AWS_CA_BUNDLE", "/ca.pem"),
        ];
        let environment = Environment::from_pairs(&variables);
        let loaded = load(&Flags::default(), &environment).unwrap();
        let shown = aligned(&outside(&loaded.config, &environment));
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            rows,
            [
                ["HTTPS_PROXY", "http://***@proxy:3128", "$https_proxy"],
                ["NO_PROXY", "localhost,10.0.0.0/8", "$NO_PROXY"],
                ["AWS_CA_BUNDLE", "/ca.pem", "$AWS_CA_BUNDLE"]
            ]
        );
    }

    #[test]
    fn the_secret_of_a_client_in_an_endpoint_is_not_shown() {
        let variables = [("HOME", "/h"), ("AWS_ENDPOINT_URL_LAMBDA", "https://outbox.test:9477/c/SECRET-0123")];
        let entries = load(&Flags::default(), &Environment::from_pairs(&variables)).unwrap().entries;
        let shown = aligned(&entries.into_iter().map(Entry::without_secrets).collect::<Vec<_>>());
        assert!(shown.contains("https://outbox.test:9477/c/*** ") && !shown.contains("SECRET"), "{shown}");
    }

    #[test]
    fn json_keeps_types() {
        let lines: Vec<serde_json::Value> = serde_json::from_str(&json(&entries()).unwrap()).unwrap();
        let find = |key: &str| lines.iter().find(|line| line["key"] == key).unwrap();
        assert_eq!(find("listen.headers_max")["value"], 7);
        assert_eq!(find("listen.allow_unauthenticated_remote")["value"], false);
        assert_eq!(find("outbox.bytes_max")["value"], "10GiB");
        assert_eq!(find("outbox.bytes_max")["origin"], "default");
    }

    #[test]
    fn the_table_has_a_row_for_every_key() {
        let entries = entries();
        let table = table(&entries);
        assert!(entries.iter().all(|entry| table.contains(&entry.key)), "{table}");
    }
}
