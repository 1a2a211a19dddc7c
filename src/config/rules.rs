//! Reads how keys of events are found and sent: `key`, `durable` and `inject` of `[delivery]` and of each table of
//! `[functions]`.

use super::read::Reader;
use crate::ingest::rules::{KeyExpression, Rule, Rules};

/// The longest name of an injected field, in characters.
const FIELD_CHARS_MAX: usize = 64;

pub fn read(r: &mut Reader) -> Option<Rules> {
    let default = rule(r, None);
    let tables = r.values().functions().to_vec();
    let functions: Vec<Option<(String, Rule)>> =
        tables.into_iter().map(|(pattern, table)| Some((pattern, rule(r, Some(&table))?))).collect();
    Some(Rules { default: default?, functions: functions.into_iter().collect::<Option<_>>()? })
}

/// The rule of `[delivery]`. Keys of `table`, one of `[functions]`, override it.
fn rule(r: &mut Reader, table: Option<&str>) -> Option<Rule> {
    let [key, durable, inject] = ["key", "durable", "inject"].map(|name| {
        table
            .map(|table| format!("{table}.{name}"))
            .filter(|key| r.values().find(key).is_some())
            .unwrap_or_else(|| format!("delivery.{name}"))
    });
    let expression = match r.optional(&key) {
        Some(Some(text)) => match KeyExpression::parse(&text) {
            Ok(expression) => Some(Some(expression)),
            Err(why) => {
                let hint = "write it like \"order_id\" or \"[user.uid, order_id]\"";
                r.refuse(&key, &format!("not a JMESPath expression: {why}"), Some(hint))
            }
        },
        Some(None) => Some(None),
        None => None,
    };
    let durable = r.boolean(&durable);
    let field = r.optional(&inject);
    let is_name = |field: &String| field.chars().count() <= FIELD_CHARS_MAX && !field.chars().any(char::is_control);
    let field = match field {
        Some(Some(field)) if !is_name(&field) => r.refuse(
            &inject,
            "not the name of a field",
            Some("write it like \"idempotency_key\", at most 64 characters"),
        ),
        other => other,
    };
    Some(Rule { key: expression?, durable: durable?, inject: field? })
}
