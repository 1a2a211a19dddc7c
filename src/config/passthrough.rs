//! What may pass through to Lambda.

use super::read::{MEMORY_MAX, Reader};
use crate::ingest::admission::BESIDE_BODY_BYTES;
use crate::ingest::passthrough::{CALL_BYTES_MAX, Limits};

/// The limits of calls that are passed through; none if none are.
pub fn read(r: &mut Reader) -> Option<Option<Limits>> {
    let on = r.boolean("lambda.passthrough");
    let calls_max = r.number("lambda.passthrough_max", 1..=100_000);
    let bytes_max = r.size("lambda.passthrough_bytes_max", CALL_BYTES_MAX as u64 + BESIDE_BODY_BYTES..=MEMORY_MAX);
    let limits = Limits { calls_max: calls_max? as usize, bytes_max: bytes_max? };
    Some(on?.then_some(limits))
}
