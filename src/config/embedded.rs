//! Reads the `[outbox]` table: limits, and the settings of the embedded engine.

use super::read::{DISK_MAX, MEMORY_MAX, Reader, Zero};
use crate::outbox;
use crate::outbox::embedded;

pub fn read(r: &mut Reader) -> Option<embedded::Settings> {
    /// Room for the pages that one commit touches.
    const CACHE_MIN: u64 = 1 << 20;
    /// Room for an empty index, a few segments, and some events.
    const BYTES_MIN: u64 = 64 << 20;
    const SEGMENT_MIN: u64 = 64 << 10;
    /// Offsets in a segment have 32 bits, and its last commit may be as large as the writer allows.
    const SEGMENT_MAX: u64 = 1 << 30;
    let bytes_max = r.size("outbox.bytes_max", BYTES_MIN..=DISK_MAX);
    let events_max = r.number("outbox.events_max", 1..=u32::MAX);
    let functions_max = r.number("outbox.functions_max", 1..=1_000_000);
    let dedupe_window = r.duration("outbox.dedupe_window", Zero::Refused);
    let sdk_window = r.duration("outbox.sdk_retry_window", Zero::Refused);
    let disk_reserve = r.size("outbox.disk_reserve", 0..=DISK_MAX);
    let segment_bytes = r.size("outbox.segment_bytes", SEGMENT_MIN..=SEGMENT_MAX);
    let cache = r.size("outbox.cache", CACHE_MIN..=MEMORY_MAX);
    Some(embedded::Settings {
        limits: outbox::Limits {
            bytes_max: bytes_max?,
            events_max: events_max?.into(),
            functions_max: functions_max?.into(),
            dedupe_window: dedupe_window?,
            sdk_window: sdk_window?,
        },
        disk_reserve: disk_reserve?,
        segment_bytes: segment_bytes?,
        cache: cache?,
    })
}
