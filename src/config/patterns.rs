//! Reads the patterns of `[functions]`: in the form in which ingest stores names, and each able to match.

use super::Entry;
use super::raw::{function_key, overridable};
use super::read::Reader;
use crate::event::name::Home;
use crate::event::{FunctionName, Pattern};
use crate::ingest::pattern::canonical;

const HINT: &str = "write a function's name, `name:qualifier` or its ARN, with `*` for any characters";

/// Replaces every pattern by its stored form. Refuses a pattern that no function's name can match, one that exceeds the
/// limits of patterns, and one whose functions an earlier pattern takes.
pub fn read(r: &mut Reader, region: Option<&str>) {
    let account_id = r.values().find("lambda.account_id").map(|entry| entry.value.to_string());
    let account_id = account_id.filter(|account_id| !account_id.is_empty());
    let home = Home { region: region.map(str::to_owned), account_id };
    let mut read: Vec<String> = Vec::new();
    for (written, table) in r.values().functions().to_vec() {
        let stored = canonical(&written, &home);
        let pattern = stored.as_deref().unwrap_or(&written);
        if stored.is_none() && written.chars().count() <= 512 {
            r.refuse_table(&table, "cannot match the name of a function", HINT);
        } else if let Err(why) = pattern.parse::<Pattern>() {
            r.refuse_table(&table, &why.to_string(), "split the table into several with shorter patterns");
        }
        // The earlier pattern treats a `*` of this one as an ordinary character. So it fits only if it covers
        // everything that this `*` stands for.
        if let Some(wider) = read.iter().find(|wider| FunctionName::new(pattern).fits(wider)) {
            let (why, hint) = if wider == pattern {
                (
                    format!("never applies: an earlier table has the pattern {pattern:?}, too"),
                    "move the keys of both into one table",
                )
            } else {
                let why = format!("never applies: the earlier pattern {wider:?} matches all of {pattern:?}");
                (why, "put the narrow pattern before the wide one")
            };
            r.refuse_table(&table, &why, hint);
        }
        read.push(pattern.to_owned());
    }
    r.rename_functions(read);
}

/// The entries that apply to a function: its own where a table of `[functions]` has one, and else the general ones.
/// `entries` is everything in effect, and `entry` its part that is an entry.
pub fn of_function<T>(entries: Vec<T>, entry: impl Fn(&T) -> &Entry, function: &str) -> Vec<T> {
    let value =
        |key: &str| entries.iter().map(&entry).find(|entry| entry.key == key).map(|entry| entry.value.to_string());
    let given = |key: &str| value(key).filter(|text| !text.is_empty());
    let home = Home { region: given("lambda.region"), account_id: given("lambda.account_id") };
    let function = FunctionName::new(&canonical(function, &home).unwrap_or_else(|| function.to_owned()));
    let own: Vec<_> = entries.iter().filter_map(|one| function_key(&entry(one).key)).collect();
    let fits = |pattern: &str| function.fits(canonical(pattern, &home).as_deref().unwrap_or(pattern));
    // The first table that fits counts. That of a queue is the first that names one.
    let table = own.iter().map(|[_, pattern, _]| pattern).find(|pattern| fits(pattern));
    let queue = own.iter().find(|[_, pattern, name]| name == QUEUE && fits(pattern)).map(|[_, pattern, _]| pattern);
    let own_of = |name: &str| {
        let table = if name == QUEUE { queue } else { table };
        table.filter(|table| own.iter().any(|[_, pattern, of]| pattern == *table && of == name))
    };
    let general = overridable(QUEUE);
    let is_in_effect = |key: &str| match function_key(key) {
        Some([_, pattern, name]) => own_of(&name) == Some(&pattern),
        None => match key.strip_prefix("delivery.") {
            Some(name) => own_of(name).is_none(),
            None => key == general && own_of(QUEUE).is_none(),
        },
    };
    let kept: Vec<bool> = entries.iter().map(|one| is_in_effect(&entry(one).key)).collect();
    entries.into_iter().zip(kept).filter_map(|(one, is_kept)| is_kept.then_some(one)).collect()
}

/// The key of `[functions]` that names a queue for dead letters.
const QUEUE: &str = "queue_url";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, load};

    #[test]
    fn a_function_has_the_settings_of_the_first_table_that_fits() {
        let set = [
            "functions.\"orders-*\".attempts_max=3",
            "functions.\"arn:aws:lambda:eu-central-1:123456789012:function:bills\".mode=confirm",
            "functions.\"*s\".queue_url=https://sqs.eu-central-1.amazonaws.com/123456789012/all",
            "functions.\"*s\".age_max=1h",
            "lambda.region=eu-central-1",
            "lambda.account_id=123456789012",
        ];
        let flags = Flags { set: set.map(str::to_owned).to_vec(), ..Flags::default() };
        let entries = load(&flags, &Environment::from_pairs(&[("STATE_DIRECTORY", "/state")])).unwrap().entries;
        let of = |function: &str| {
            let found = of_function(entries.clone(), |entry| entry, function);
            let keys: Vec<_> = found.into_iter().map(|entry| entry.key).collect();
            let names = ["attempts_max", "mode", "age_max", "queue_url"];
            names.map(|name| {
                let ending = format!(".{name}");
                let of_name: Vec<_> = keys.iter().filter(|key| key.ends_with(&ending)).collect();
                assert_eq!(of_name.len(), 1, "{function}: {of_name:?}");
                of_name[0].trim_end_matches(&ending).to_owned()
            })
        };
        let queue = "functions.\"*s\"";
        assert_eq!(of("thumbnail"), ["delivery", "delivery", "delivery", "dead_letter"]);
        // A table replaces the one behind it as a whole, but for the queue.
        assert_eq!(of("orders-eus"), ["functions.\"orders-*\"", "delivery", "delivery", queue]);
        let bills = "functions.\"arn:aws:lambda:eu-central-1:123456789012:function:bills\"";
        assert_eq!(of("bills"), ["delivery", bills, "delivery", queue]);
        assert_eq!(of("123456789012:function:bills"), of("bills"));
        assert_eq!(of("invoices"), ["delivery", "delivery", queue, queue]);
    }
}
