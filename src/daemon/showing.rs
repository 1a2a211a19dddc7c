//! Shows the configuration in effect through the operator's API.

use std::sync::Arc;

use crate::admin::ShowConfig;
use crate::admin::api::ConfigEntry;
use crate::config::{Entry, Value, of_function};

/// The entries as the operator's API shows them: all, or those that apply to a function.
pub(super) fn config(in_effect: impl Fn() -> Vec<(Entry, bool)> + Send + Sync + 'static) -> Arc<ShowConfig> {
    Arc::new(move |function| {
        let all = in_effect();
        let entries = match function {
            Some(function) => of_function(all, |(entry, _)| entry, function),
            None => all,
        };
        entries.into_iter().map(|(entry, needs_restart)| shown(entry, needs_restart)).collect()
    })
}

fn shown(entry: Entry, needs_restart: bool) -> ConfigEntry {
    let Entry { key, value, origin, is_live } = entry.without_secrets();
    let value = match value {
        Value::Text(text) => text.into(),
        Value::Integer(number) => number.into(),
        Value::Boolean(boolean) => boolean.into(),
        Value::Other(kind) => kind.into(),
    };
    ConfigEntry { key, value, origin: origin.to_string(), live: is_live, needs_restart }
}
