//! The bytes of an end on disk.
//!
//! ```text
//! record   length of the body u16 | crc u32 of the body | body
//! body     version u8 | id, 16 bytes | the rest of the end, in postcard
//! ```
//!
//! Numbers are little-endian. A later version may append fields, which earlier builds skip. A build that does not know a
//! version, or a way for an event to end, skips the record.

use serde::{Deserialize, Serialize};

use super::{End, How};
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName};
use crate::outbox::{BuryReason, LastOutcome};

/// The version that this build writes.
const VERSION: u8 = 1;

/// The bytes before the body.
const HEAD_BYTES: usize = 6;

/// The bytes of a body before what postcard writes.
const FIXED_BYTES: usize = 17;

/// The longest body. Texts in an end are cut, so none is longer.
const BODY_BYTES_MAX: usize = 4_096;

#[derive(Serialize, Deserialize)]
struct Stored {
    function: FunctionName,
    at: UnixMillis,
    attempts: u32,
    charged: u32,
    how: StoredHow,
    last_error: Option<StoredError>,
    reason: Option<BuryReason>,
}

/// Variants are numbered by their order, so append only.
#[derive(Serialize, Deserialize)]
enum StoredHow {
    Delivered { confirmed: bool, status: u16, request_id: Option<String> },
    Shipped { message_id: String },
    Purged { by: String },
    Cancelled { by: String },
    Redriven { by: String, new_id: EventId },
    HandedOver { to: String },
}

#[derive(Serialize, Deserialize)]
struct StoredError {
    at: UnixMillis,
    status: u16,
    code: String,
    request_id: Option<String>,
}

/// A record among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub id: EventId,
    body: &'a [u8],
}

/// Appends the record of an end.
pub(super) fn encode(end: &End, into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(&[0; HEAD_BYTES]);
    into.push(VERSION);
    into.extend_from_slice(end.id.as_bytes());
    let body = postcard::to_extend(&stored(end), std::mem::take(into));
    // Plain data, and all its texts are cut: neither can fail.
    *into = body.unwrap_or_default();
    let bytes = into.len().saturating_sub(start + HEAD_BYTES);
    match u16::try_from(bytes).ok().filter(|_| bytes <= BODY_BYTES_MAX) {
        Some(length) => {
            let crc = crc32fast::hash(&into[start + HEAD_BYTES..]);
            into[start..start + 2].copy_from_slice(&length.to_le_bytes());
            into[start + 2..start + HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
        None => into.truncate(start),
    }
}

/// The records at the start of `bytes`, each with its offset, up to the first that is not whole.
pub(super) fn records(bytes: &[u8]) -> impl Iterator<Item = (usize, Record<'_>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let record = first(bytes.get(at..)?)?;
        let offset = at;
        at += HEAD_BYTES + record.body.len();
        Some((offset, record))
    })
}

/// The record at the start of `bytes`.
pub(super) fn first(bytes: &[u8]) -> Option<Record<'_>> {
    let head: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
    let length = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let crc = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
    let body = bytes.get(HEAD_BYTES..HEAD_BYTES + length)?;
    let is_sound = (FIXED_BYTES..=BODY_BYTES_MAX).contains(&length) && crc32fast::hash(body) == crc;
    let id = body.get(1..FIXED_BYTES)?.try_into().ok()?;
    is_sound.then_some(Record { id: EventId::from_bytes(id), body })
}

/// The most bytes of a record.
pub(super) const BYTES_MAX: usize = HEAD_BYTES + BODY_BYTES_MAX;

impl Record<'_> {
    /// The bytes of the record.
    pub fn len(&self) -> usize {
        HEAD_BYTES + self.body.len()
    }

    /// `None` if a later build wrote it.
    pub fn end(&self) -> Option<End> {
        if self.body.first() != Some(&VERSION) {
            return None;
        }
        let (stored, _) = postcard::take_from_bytes::<Stored>(self.body.get(FIXED_BYTES..)?).ok()?;
        Some(restored(self.id, stored))
    }
}

fn stored(end: &End) -> Stored {
    let how = match end.how.clone() {
        How::Delivered { confirmed, status, request_id } => StoredHow::Delivered { confirmed, status, request_id },
        How::Shipped { message_id } => StoredHow::Shipped { message_id },
        How::Purged { by } => StoredHow::Purged { by },
        How::Cancelled { by } => StoredHow::Cancelled { by },
        How::Redriven { by, new_id } => StoredHow::Redriven { by, new_id },
        How::HandedOver { to } => StoredHow::HandedOver { to },
    };
    let last_error = end.last_error.as_ref().map(|last| StoredError {
        at: last.at,
        status: last.status,
        code: last.code.clone(),
        request_id: last.request_id.clone(),
    });
    let End { id: _, function, at, how: _, attempts, charged, last_error: _, reason } = end;
    Stored {
        function: function.clone(),
        at: *at,
        attempts: *attempts,
        charged: *charged,
        how,
        last_error,
        reason: *reason,
    }
}

fn restored(id: EventId, stored: Stored) -> End {
    let Stored { function, at, attempts, charged, how, last_error, reason } = stored;
    let how = match how {
        StoredHow::Delivered { confirmed, status, request_id } => How::Delivered { confirmed, status, request_id },
        StoredHow::Shipped { message_id } => How::Shipped { message_id },
        StoredHow::Purged { by } => How::Purged { by },
        StoredHow::Cancelled { by } => How::Cancelled { by },
        StoredHow::Redriven { by, new_id } => How::Redriven { by, new_id },
        StoredHow::HandedOver { to } => How::HandedOver { to },
    };
    let last_error = last_error.map(|StoredError { at, status, code, request_id }| LastOutcome {
        at,
        status,
        code,
        message: String::new(),
        request_id,
    });
    End { id, function, at, how, attempts, charged, last_error, reason }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(how: How) -> End {
        let last_error = LastOutcome {
            at: UnixMillis(1_790_000_000_500),
            status: 429,
            code: "TooManyRequestsException".to_owned(),
            message: String::new(),
            request_id: Some("e1e2".to_owned()),
        };
        End {
            id: EventId::from_bytes([7; 16]),
            function: FunctionName::new("orders:prod"),
            at: UnixMillis(1_790_000_001_000),
            how,
            attempts: 3,
            charged: 2,
            last_error: Some(last_error),
            reason: Some(BuryReason::Refused),
        }
    }

    fn bytes(end: &End) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(end, &mut bytes);
        bytes
    }

    #[test]
    fn every_end_is_read_back() {
        let text = || "x".to_owned();
        let ways = [
            How::Delivered { confirmed: true, status: 202, request_id: Some(text()) },
            How::Shipped { message_id: text() },
            How::Purged { by: text() },
            How::Cancelled { by: text() },
            How::Redriven { by: text(), new_id: EventId::from_bytes([9; 16]) },
            How::HandedOver { to: text() },
        ];
        assert_eq!(ways.len(), How::WORDS.len());
        let ends = ways.map(end);
        let mut all = Vec::new();
        ends.iter().for_each(|end| encode(end, &mut all));
        let read: Vec<_> = records(&all).map(|(offset, record)| (offset, record.end().unwrap())).collect();
        assert_eq!(read.iter().map(|(_, end)| end.clone()).collect::<Vec<_>>(), ends);
        assert!(read.iter().all(|(offset, end)| first(&all[*offset..]).unwrap().end().as_ref() == Some(end)));

        // What a crash has cut off ends the records.
        assert_eq!(records(&all[..all.len() - 1]).count(), ends.len() - 1);
        // A record of a later build is skipped, and those after it are read.
        let mut later = bytes(&ends[0]);
        later[HEAD_BYTES] = VERSION + 1;
        let crc = crc32fast::hash(&later[HEAD_BYTES..]);
        later[2..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        later.extend(bytes(&ends[1]));
        let read: Vec<_> = records(&later).map(|(_, record)| record.end()).collect();
        assert_eq!(read, [None, Some(ends[1].clone())]);
    }

    #[test]
    fn a_delivery_takes_about_a_hundred_bytes_and_its_format_is_that_of_the_first_release() {
        let how = How::Delivered { confirmed: false, status: 202, request_id: Some("r".repeat(36)) };
        let delivered = End { last_error: None, reason: None, attempts: 1, charged: 0, ..end(how) };
        let bytes = bytes(&delivered);
        assert!(bytes.len() < 110, "{} bytes", bytes.len());
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let released = "01070707070707070707070707070707070b6f72646572733a70726f64e8dfc1a28c3401000000ca01012472727272727272\
            72727272727272727272727272727272727272727272727272727272720000";
        assert_eq!(hex[2 * HEAD_BYTES..], *released, "a released format must stay readable: add a version");
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(records(&bytes).all(|(_, record)| record.end().is_none() || record.len() > FIXED_BYTES));
        }
    }
}
