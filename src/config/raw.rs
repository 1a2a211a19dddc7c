//! The layers of a configuration: what each key says, and who said so.
//!
//! `config/sendoff.toml` is the lowest layer. It also defines which keys exist and their types. This module does not
//! know what a key means; `check` does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use serde::Serialize;
use toml::de::{DeTable, DeValue};

use super::near::{did_you_mean, near_misses};
use super::problem::{Origin, Problem};
use super::{Environment, Flags};
use crate::visible::without_password;

/// Every key with its default.
pub const DEFAULTS: &str = include_str!("../../config/sendoff.toml");

/// The prefix of sendoff's environment variables.
const PREFIX: &str = "SENDOFF_";

/// A file's name, for messages, and its text.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

/// The value that was written for a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    /// A type that no key has, by its name.
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Integer(integer) => integer.fmt(f),
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// A key, its value, and where the value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path with dots, as in TOML: `listen.ingest`, `functions."orders-*".attempts_max`.
    pub key: String,
    pub value: Value,
    pub origin: Origin,
    /// Whether a reload applies it to the running daemon; see [`super::read::Reader::live`].
    pub is_live: bool,
}

impl Entry {
    /// The entry for showing: without a password, or the secret of a client, in a URL.
    pub fn without_secrets(mut self) -> Self {
        if let Value::Text(text) = &mut self.value
            && text.contains("://")
        {
            *text = without_password(text).into_owned();
        }
        self
    }
}

/// Families of tables whose names the user chooses: `[functions."orders-*"]`, `[clients.orders]`.
const FAMILIES: [&str; 3] = [FUNCTIONS, CLIENTS, OPERATORS];
pub const FUNCTIONS: &str = "functions";
pub const CLIENTS: &str = "clients";
pub const OPERATORS: &str = "operators";

/// A variable that commands read themselves, not a key: the file with the operator's token.
pub const TOKEN_FILE: &str = "SENDOFF_ADMIN_TOKEN_FILE";

/// The keys of a table of `[clients]`. The defaults file has none of them.
const CLIENT_KEYS: [&str; 9] =
    ["functions", "calls", "handoff", "path_token_file", "token_file", "access_key_id", "secret_file", "san", "uid"];

/// The keys of a table of `[operators]`.
const OPERATOR_KEYS: [&str; 5] = ["role", "payloads", "token_file", "san", "uid"];

/// The keys of a table of this family, if they have no default in the defaults file.
fn keys_of(family: &str) -> &'static [&'static str] {
    match family {
        CLIENTS => &CLIENT_KEYS,
        OPERATORS => &OPERATOR_KEYS,
        _ => &[],
    }
}

/// All keys in effect: first in the order of the defaults file, then those of the families in the order of the file.
#[derive(Debug, Clone, Default)]
pub struct Values {
    entries: Vec<Entry>,
    /// For each family, the names of its tables in order, each with the table's key.
    tables: BTreeMap<&'static str, Vec<(String, String)>>,
    /// Where the empty tables of clients and operators are, by the table's key.
    empty: BTreeMap<String, Origin>,
}

impl Values {
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The patterns of `[functions]` in file order, each with its table's key: `orders-*` and `functions."orders-*"`.
    pub fn functions(&self) -> &[(String, String)] {
        self.tables(FUNCTIONS)
    }

    /// The names of a family's tables in file order, each with the table's key.
    pub fn tables(&self, family: &str) -> &[(String, String)] {
        self.tables.get(family).map(Vec::as_slice).unwrap_or_default()
    }

    /// Where a table is written: at its first key.
    pub fn origin_of_table(&self, table: &str) -> Option<&Origin> {
        let below = format!("{table}.");
        let first = self.entries.iter().find(|entry| entry.key.starts_with(&below)).map(|entry| &entry.origin);
        first.or_else(|| self.empty.get(table))
    }

    pub fn find(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Sets the value that is in effect for a key.
    pub fn fill(&mut self, key: &str, text: &str, origin: Origin) {
        self.set(key.to_owned(), Value::Text(text.to_owned()), origin);
    }

    pub(super) fn mark_live(&mut self, keys: &BTreeSet<String>) {
        self.entries.iter_mut().filter(|entry| keys.contains(&entry.key)).for_each(|entry| entry.is_live = true);
    }

    /// Replaces the patterns of `[functions]`, in their order.
    pub(super) fn rename_functions(&mut self, patterns: impl IntoIterator<Item = String>) {
        let tables = self.tables.get_mut(FUNCTIONS).into_iter().flatten();
        for ((pattern, _), new) in tables.zip(patterns) {
            *pattern = new;
        }
    }

    fn set(&mut self, key: String, value: Value, origin: Origin) {
        match self.entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => (entry.value, entry.origin) = (value, origin),
            None => self.entries.push(Entry { key, value, origin, is_live: false }),
        }
    }

    /// Applies one written key on top of the layers below.
    fn lay(&mut self, path: &[String], written: Written, origin: Origin) -> Result<(), Problem> {
        let key = dotted(path);
        if written.is_empty_table() && self.is_table(path) {
            // An empty table of functions changes nothing. A client without rights would be a surprise.
            if let (Some(family @ (CLIENTS | OPERATORS)), [_, name]) = (family(path), path) {
                self.add_table(family, name, dotted(path));
                self.empty.insert(key, origin);
            }
            return Ok(());
        }
        let Some(kind) = self.kind(path) else { return Err(self.unknown(path, key, origin)) };
        let value = written.typed_as(&kind);
        if let (Some(family), [_, name, _]) = (family(path), path) {
            self.add_table(family, name, dotted(&path[..2]));
        }
        self.set(key, value, origin);
        Ok(())
    }

    fn add_table(&mut self, family: &'static str, name: &str, table: String) {
        let tables = self.tables.entry(family).or_default();
        if !tables.iter().any(|(_, known)| *known == table) {
            tables.push((name.to_owned(), table));
        }
    }

    /// A value of the type that a key has. `None` means that the key does not exist.
    fn kind(&self, path: &[String]) -> Option<Value> {
        let default = |key: &str| self.find(key).map(|entry| entry.value.clone());
        match (family(path), path) {
            (Some(FUNCTIONS), [_, _, name]) => default(&overridable(name)),
            (Some(family), [_, _, name]) if keys_of(family).contains(&name.as_str()) => Some(match name.as_str() {
                "calls" | "handoff" | "payloads" => Value::Boolean(false),
                _ => Value::Text(String::new()),
            }),
            (Some(_), _) => None,
            (None, _) => default(&dotted(path)),
        }
    }

    fn is_table(&self, path: &[String]) -> bool {
        if family(path).is_some() {
            return path.len() < 3;
        }
        let table = format!("{}.", dotted(path));
        self.entries.iter().any(|entry| entry.key.starts_with(&table))
    }

    fn unknown(&self, path: &[String], key: String, origin: Origin) -> Problem {
        if self.is_table(path) {
            let hint = Some(format!("write its keys below a line [{key}]"));
            return Problem { origin, subject: Some(key), why: "is a table, not a key".to_owned(), hint };
        }
        let near = match (family(path), path) {
            (Some(family), [first, table, name]) => {
                let known: Vec<&str> =
                    if family == FUNCTIONS { self.overridables().collect() } else { keys_of(family).to_vec() };
                near_misses(name, known.into_iter())
                    .into_iter()
                    .map(|near| dotted(&[first.clone(), table.clone(), near.to_owned()]))
                    .collect::<Vec<_>>()
            }
            (_, _) => {
                let keys = self.entries.iter().map(|entry| entry.key.as_str());
                near_misses(&key, keys).into_iter().map(str::to_owned).collect()
            }
        };
        Problem { origin, subject: Some(key), why: "unknown key".to_owned(), hint: did_you_mean(&near) }
    }

    /// The names of the keys that a table of `[functions]` may have.
    fn overridables(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.iter().filter_map(|entry| entry.key.strip_prefix("delivery.")).chain(["queue_url"])
    }
}

/// The family that a path is in.
fn family(path: &[String]) -> Option<&'static str> {
    let first = path.first()?;
    FAMILIES.into_iter().find(|family| family == first)
}

/// The key that a key of `[functions."pattern"]` overrides.
pub fn overridable(name: &str) -> String {
    match name {
        "queue_url" => "dead_letter.queue_url".to_owned(),
        _ => format!("delivery.{name}"),
    }
}

/// The parts of a key of `[functions]`: `functions`, the pattern as written, and the name.
pub(super) fn function_key(key: &str) -> Option<[String; 3]> {
    let path = key.strip_prefix(FUNCTIONS)?.strip_prefix('.').map(|_| format!("{key} = 0"))?;
    let (leaves, _) = leaves(Document { name: "", text: &path });
    leaves.into_iter().next()?.path.try_into().ok()
}

/// A value as a layer gives it.
#[derive(Debug, Clone)]
enum Written {
    /// From a file, so it has a type.
    Typed(Value),
    /// From the environment or a flag. It is parsed as the type of its key.
    Untyped(String),
    EmptyTable,
}

impl Written {
    fn is_empty_table(&self) -> bool {
        matches!(self, Self::EmptyTable)
    }

    /// Converts to the type of `kind`. Text that cannot be converted stays text, and `check` refuses it.
    fn typed_as(self, kind: &Value) -> Value {
        match self {
            Self::Typed(value) => value,
            Self::EmptyTable => Value::Other("a table"),
            Self::Untyped(text) => {
                let typed = match kind {
                    Value::Integer(_) => text.replace('_', "").parse().ok().map(Value::Integer),
                    Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
                    Value::Text(_) | Value::Other(_) => None,
                };
                typed.unwrap_or(Value::Text(text))
            }
        }
    }
}

/// Applies `file`, `environment` and `flags` on top of the defaults. A key that cannot be applied becomes a problem and
/// is left out.
pub fn layered(file: Option<Document<'_>>, environment: &Environment, flags: &Flags) -> (Values, Vec<Problem>) {
    let mut values = Values::default();
    let mut problems = Vec::new();
    let (defaults, errors) = leaves(Document { name: "config/sendoff.toml", text: DEFAULTS });
    problems.extend(errors);
    for leaf in defaults {
        values.set(dotted(&leaf.path), leaf.written.typed_as(&Value::Other("a key")), Origin::Default);
    }
    if let Some(file) = file {
        let (leaves, errors) = leaves(file);
        problems.extend(errors);
        for leaf in leaves {
            let origin = Origin::File { name: file.name.to_owned(), line: leaf.line };
            problems.extend(values.lay(&leaf.path, leaf.written, origin).err());
        }
    }
    lay_environment(&mut values, environment, &mut problems);
    for text in &flags.set {
        problems.extend(lay_set(&mut values, text).err());
    }
    if let Some(state_dir) = &flags.state_dir {
        values.fill("state_dir", state_dir, Origin::Flag("--state-dir"));
    }
    (values, problems)
}

fn lay_environment(values: &mut Values, environment: &Environment, problems: &mut Vec<Problem>) {
    // A variable's name cannot contain a pattern, so tables of families have no variables.
    let is_of_family = |key: &str| FAMILIES.iter().any(|family| key.split('.').next() == Some(family));
    let keys = values.entries.iter().map(|entry| &entry.key).filter(|key| !is_of_family(key));
    let variables: Vec<(String, String)> = keys.map(|key| (variable(key), key.clone())).collect();
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        let origin = Origin::Environment(name.to_owned());
        if let Some((_, key)) = variables.iter().find(|(variable, _)| variable == name) {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            problems.extend(values.lay(&path, Written::Untyped(value.to_owned()), origin).err());
        } else if name != TOKEN_FILE && !is_service_link(name) {
            let meant = name[PREFIX.len()..].to_lowercase().replace("__", ".");
            let near = near_misses(&meant, variables.iter().map(|(_, key)| key.as_str()));
            let near: Vec<String> = near.into_iter().map(variable).collect();
            problems.push(Problem {
                origin,
                subject: None,
                why: "unknown variable".to_owned(),
                hint: did_you_mean(&near),
            });
        }
    }
}

/// The variable of a key: `SENDOFF_LISTEN__INGEST`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// Whether Kubernetes may have set this variable. It sets such variables in every pod for a service named `sendoff` or
/// `sendoff-...` (Kubernetes documentation, "Service": environment variables). They are not keys of ours.
fn is_service_link(name: &str) -> bool {
    let of_port = |rest: &str| {
        rest.is_empty() || rest.strip_prefix('_').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.match_indices("_PORT").any(|(at, port)| of_port(&name[at + port.len()..])))
}

/// Applies one `--set key=value`. The key is written as in TOML, the value as in the environment.
fn lay_set(values: &mut Values, text: &str) -> Result<(), Problem> {
    let origin = Origin::Flag("--set");
    let malformed = || Problem {
        origin: origin.clone(),
        subject: None,
        why: format!("{:?} is not key=value", without_password(text)),
        hint: Some("write it like --set outbox.bytes_max=20GiB".to_owned()),
    };
    let (key, value) = text.split_once('=').ok_or_else(malformed)?;
    let line = format!("{key} = 0");
    let (leaves, errors) = leaves(Document { name: "", text: &line });
    match (leaves.as_slice(), errors.as_slice()) {
        ([leaf], []) => values.lay(&leaf.path, Written::Untyped(value.to_owned()), origin),
        _ => Err(malformed()),
    }
}

/// One key of a document.
#[derive(Debug)]
struct Leaf {
    path: Vec<String>,
    written: Written,
    /// The offset of the key in bytes. Gives the order.
    at: usize,
    line: usize,
}

/// All keys of a document in file order, and the parts that are not TOML.
fn leaves(document: Document<'_>) -> (Vec<Leaf>, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(document.text);
    let problems = errors.iter().map(|error| {
        let line = line_of(document.text, &error.span().unwrap_or_default());
        let origin = Origin::File { name: document.name.to_owned(), line };
        Problem { origin, subject: None, why: format!("not TOML: {}", error.message().replace('\n', ", ")), hint: None }
    });
    let mut leaves = Vec::new();
    collect(table.get_ref(), &[], document.text, &mut leaves);
    leaves.sort_by_key(|leaf| leaf.at);
    (leaves, problems.collect())
}

/// Collects the keys of all tables. The parser bounds their depth.
fn collect(table: &DeTable<'_>, above: &[String], text: &str, leaves: &mut Vec<Leaf>) {
    for (key, value) in table {
        let path = [above, &[key.get_ref().clone().into_owned()]].concat();
        let written = match value.get_ref() {
            DeValue::Table(table) if !table.is_empty() => {
                collect(table, &path, text, leaves);
                continue;
            }
            DeValue::Table(_) => Written::EmptyTable,
            DeValue::String(string) => Written::Typed(Value::Text(string.clone().into_owned())),
            DeValue::Boolean(boolean) => Written::Typed(Value::Boolean(*boolean)),
            DeValue::Integer(integer) => Written::Typed(
                i64::from_str_radix(integer.as_str(), integer.radix())
                    .map_or(Value::Other("a number beyond 64 bits"), Value::Integer),
            ),
            DeValue::Float(_) => Written::Typed(Value::Other("a fraction")),
            DeValue::Datetime(_) => Written::Typed(Value::Other("a date")),
            DeValue::Array(_) => Written::Typed(Value::Other("an array")),
        };
        leaves.push(Leaf { path, written, at: key.span().start, line: line_of(text, &key.span()) });
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|&byte| byte == b'\n').count() + 1
}

/// A path as in TOML: parts that are not bare words are quoted.
fn dotted(path: &[String]) -> String {
    let is_bare =
        |part: &String| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    let parts: Vec<String> =
        path.iter().map(|part| if is_bare(part) { part.clone() } else { format!("{part:?}") }).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay(text: &str, environment: &[(&str, &str)], set: &[&str]) -> (Values, Vec<String>) {
        let flags = Flags { set: set.iter().map(|&text| text.to_owned()).collect(), ..Flags::default() };
        let file = Document { name: "s.toml", text };
        let (values, problems) = layered(Some(file), &Environment::from_pairs(environment), &flags);
        (values, problems.iter().map(ToString::to_string).collect())
    }

    fn problems(text: &str) -> Vec<String> {
        lay(text, &[], &[]).1
    }

    #[track_caller]
    fn assert_says(values: &Values, key: &str, value: Value, origin: &str) {
        let entry = values.find(key).unwrap();
        assert_eq!((&entry.value, entry.origin.to_string()), (&value, origin.to_owned()), "{key}");
    }

    #[test]
    fn the_defaults_file_is_toml_without_tables_in_arrays_or_unusual_types() {
        let (values, problems) = layered(None, &Environment::default(), &Flags::default());
        assert_eq!(problems, []);
        assert!(values.entries().iter().all(|entry| !matches!(entry.value, Value::Other(_))), "{values:?}");
        assert!(values.entries().len() > 40);
        assert_eq!(values.functions(), []);
    }

    #[test]
    fn each_layer_wins_over_those_below_it() {
        let file = "[outbox]\nevents_max = 1\nfunctions_max = 2\nstore = 'file'\n\n[log]\nlevel = 'a'\n";
        let variables = [("SENDOFF_OUTBOX__EVENTS_MAX", "3_000"), ("SENDOFF_LOG__LEVEL", "b"), ("PATH", "/bin")];
        let (values, problems) = lay(file, &variables, &["log.level=c=d"]);
        assert_eq!(problems, Vec::<String>::new());
        assert_says(&values, "outbox.cache", Value::Text("16MiB".to_owned()), "default");
        assert_says(&values, "outbox.functions_max", Value::Integer(2), "s.toml:3");
        assert_says(&values, "outbox.store", Value::Text("file".to_owned()), "s.toml:4");
        assert_says(&values, "outbox.events_max", Value::Integer(3_000), "$SENDOFF_OUTBOX__EVENTS_MAX");
        assert_says(&values, "log.level", Value::Text("c=d".to_owned()), "--set");
    }

    #[test]
    fn the_flag_of_the_state_directory_wins_over_all() {
        let flags =
            Flags { state_dir: Some("/flag".to_owned()), set: vec!["state_dir=/set".to_owned()], ..Flags::default() };
        let (values, problems) = layered(None, &Environment::from_pairs(&[("SENDOFF_STATE_DIR", "/env")]), &flags);
        assert_eq!(problems, []);
        assert_says(&values, "state_dir", Value::Text("/flag".to_owned()), "--state-dir");
    }

    #[test]
    fn numbers_may_be_written_in_all_of_tomls_ways() {
        let (values, _) = lay("[outbox]\nevents_max = 20_000\nfunctions_max = 0x10\n", &[], &[]);
        assert_says(&values, "outbox.events_max", Value::Integer(20_000), "s.toml:2");
        assert_says(&values, "outbox.functions_max", Value::Integer(16), "s.toml:3");
    }

    #[test]
    fn unknown_keys_name_the_near_miss() {
        assert_eq!(
            problems("stat_dir = ''\n[lamda]\nregion = ''\n[outbox]\nbyte_max = 1\ngrace = '1s'\nzzz = 1\n"),
            [
                "s.toml:1: stat_dir: unknown key\n      did you mean `state_dir`?",
                "s.toml:3: lamda.region: unknown key\n      did you mean `lambda.region`?",
                "s.toml:5: outbox.byte_max: unknown key\n      did you mean `outbox.bytes_max`?",
                "s.toml:6: outbox.grace: unknown key\n      did you mean `shutdown.grace`?",
                "s.toml:7: outbox.zzz: unknown key",
            ]
        );
    }

    #[test]
    fn tables_and_keys_are_not_taken_for_each_other() {
        assert_eq!(
            problems("listen = 'x'\nfunctions = 1\n[lambda]\n[nothing]\n"),
            [
                "s.toml:1: listen: is a table, not a key\n      write its keys below a line [listen]",
                "s.toml:2: functions: is a table, not a key\n      write its keys below a line [functions]",
                "s.toml:4: nothing: unknown key",
            ]
        );
        assert_eq!(
            problems("[state_dir]\nx = 1\n"),
            ["s.toml:2: state_dir.x: unknown key\n      did you mean `state_dir`?"]
        );
        assert_eq!(problems("[[outbox]]\nstore = 'sled'\n").len(), 1);
    }

    #[test]
    fn functions_keep_the_order_of_the_file_and_take_the_keys_of_delivery() {
        let file =
            "[functions.\"z-*\"]\nage_max = '1h'\n[functions.a]\nqueue_url = 'q'\nattempt_max = 3\n[functions.e]\n";
        let (values, problems) = lay(file, &[], &["functions.\"m.*\".attempts_max=7"]);
        assert_eq!(
            problems,
            ["s.toml:5: functions.a.attempt_max: unknown key\n      did you mean `functions.a.attempts_max`?"]
        );
        let tables: Vec<&str> = values.functions().iter().map(|(_, table)| table.as_str()).collect();
        assert_eq!(tables, ["functions.\"z-*\"", "functions.a", "functions.\"m.*\""]);
        assert_says(&values, "functions.\"m.*\".attempts_max", Value::Integer(7), "--set");
    }

    #[test]
    fn unknown_variables_are_refused_unless_kubernetes_sets_them() {
        let (_, problems) = lay(
            "",
            &[
                ("SENDOFF_LISTEN_INGEST", "127.0.0.1:1"),
                ("SENDOFF_LOG", "debug"),
                ("SENDOFF_PORT", "tcp://10.0.0.1:9477"),
                ("SENDOFF_PORT_9477_TCP_ADDR", "10.0.0.1"),
                ("SENDOFF_SERVICE_HOST", "10.0.0.1"),
                ("SENDOFF_SERVICE_PORT_HTTP", "9477"),
                ("SENDOFF_ADMIN_PORT_9478_TCP", "tcp://10.0.0.1:9478"),
            ],
            &[],
        );
        assert_eq!(
            problems,
            [
                "$SENDOFF_LISTEN_INGEST: unknown variable\n      did you mean `SENDOFF_LISTEN__INGEST`?",
                "$SENDOFF_LOG: unknown variable\n      did you mean `SENDOFF_LOG__FORMAT` or `SENDOFF_LOG__LEVEL`?",
            ]
        );
    }

    #[test]
    fn what_is_not_toml_is_named_with_its_lines_and_what_is_not_key_and_value_whole() {
        let found = problems("state_dir = '/a'\n[outbox\nstore = \n");
        assert!(!found.is_empty());
        assert!(found[0].starts_with("s.toml:2: not TOML: "), "{found:?}");
        let (_, found) = lay("", &[], &["grace", "a.=1", "shutdown.grac=1s", "x=1\ny"]);
        assert_eq!(
            found,
            [
                "--set: \"grace\" is not key=value\n      write it like --set outbox.bytes_max=20GiB",
                "--set: \"a.=1\" is not key=value\n      write it like --set outbox.bytes_max=20GiB",
                "--set: shutdown.grac: unknown key\n      did you mean `shutdown.grace`?",
                "--set: x: unknown key",
            ]
        );
    }
}
