//! Asking a daemon's admin listener: what the operator's commands share.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::Value;

use super::dead_letters::client::AdminClient;
use super::dead_letters::{Daemon, failure};
use super::send::percent;
use super::{Exit, Failure};
use crate::config::Environment;

/// One request of the operator's API.
pub(super) enum Ask {
    Get(String),
    Post(String),
    Delete(String),
}

/// A daemon to ask, one request after another.
pub(super) struct Asker {
    client: AdminClient,
    runtime: tokio::runtime::Runtime,
}

impl Asker {
    pub(super) fn new(daemon: Daemon, environment: &Environment) -> Result<Self, Failure> {
        let client = daemon.client(environment)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { client, runtime: runtime.map_err(|error| Failure::new(Exit::Internal, error))? })
    }

    pub(super) fn ask(&self, ask: &Ask) -> Result<Value, Failure> {
        let answered = self.runtime.block_on(async {
            match ask {
                Ask::Get(path) => self.client.get(path).await,
                Ask::Post(path) => self.client.post(path, &Value::Null).await,
                Ask::Delete(path) => self.client.delete(path).await,
            }
        });
        answered.map_err(failure)
    }
}

/// The path of something that a function's lane can do.
pub(super) fn lane_path(function: &str, verb: &str) -> String {
    format!("/v1/functions/{}/{verb}", percent(function))
}

/// A query of those pairs that have a value.
pub(super) fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let given = pairs.iter().filter_map(|(name, value)| value.map(|value| format!("{name}={}", percent(value))));
    let given: Vec<_> = given.collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

/// A table without lines, its columns two blanks apart, and no blanks where a line ends.
pub(super) fn plain(mut table: Table) -> String {
    table.load_style(NOTHING);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}

/// Text of a JSON value, without quotes; a dash where there is none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_table_has_no_blanks_at_the_ends_of_its_lines() {
        let mut table = Table::new();
        table.set_header(["FUNCTION", "STATE"]).add_row(["orders", "open"]).add_row(["a", "paused by an operator"]);
        assert_eq!(plain(table), "FUNCTION  STATE\norders    open\na         paused by an operator\n");
    }

    #[test]
    fn names_and_values_are_safe_in_a_url() {
        assert_eq!(lane_path("us-east-1/orders:prod", "pause"), "/v1/functions/us-east-1%2Forders%3Aprod/pause");
        assert_eq!(query(&[("a", Some("x y")), ("b", None)]), "?a=x%20y");
        assert_eq!(query(&[("b", None)]), "");
    }
}
