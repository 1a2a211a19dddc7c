//! Reads the patterns of `[functions]`: in the form in which ingest stores names, and each able to match.

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
