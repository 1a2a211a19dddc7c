//! Reads which calls pass through to Lambda.

use super::raw::Value;
use super::read::{MEMORY_MAX, Reader};
use crate::ingest::admission::BESIDE_BODY_BYTES;
use crate::ingest::passthrough::{CALL_BYTES_MAX, Limits, Others};

/// The limits of calls that are passed through. The inner `None` means that none are.
pub fn read(r: &mut Reader) -> Option<Option<Limits>> {
    let others = others(r);
    let calls_max = r.number("lambda.passthrough_max", 1..=100_000);
    let bytes_max = r.size("lambda.passthrough_bytes_max", CALL_BYTES_MAX as u64 + BESIDE_BODY_BYTES..=MEMORY_MAX);
    let (calls_max, bytes_max) = (calls_max? as usize, bytes_max?);
    Some(others?.map(|others| Limits { calls_max, bytes_max, others }))
}

/// Which calls are passed through. Earlier versions used true and false.
fn others(r: &mut Reader) -> Option<Option<Others>> {
    const KEY: &str = "lambda.passthrough";
    match r.values().find(KEY).map(|entry| &entry.value) {
        Some(Value::Boolean(_)) => Some(r.boolean(KEY)?.then_some(Others::Reads)),
        Some(Value::Text(_) | Value::Integer(_) | Value::Other(_)) | None => {
            // Variables and flags give true and false as text.
            let reads = Some(Others::Reads);
            let words =
                [("reads", reads), ("all", Some(Others::All)), ("none", None), ("true", reads), ("false", None)];
            r.word(KEY, &words)
        }
    }
}
