//! The bytes of a history: JSON, so that an operator can read it with SQL.

use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::outbox::History;

pub(super) fn encode(history: &History) -> Vec<u8> {
    // Plain data: encoding it cannot fail. Empty bytes would be refused when read.
    serde_json::to_vec(&history.clone().bounded()).unwrap_or_default()
}

/// The history of an event. Without bytes it was never attempted. `due` is the time in the row, which is the one that counts.
pub(super) fn decode(bytes: Option<&[u8]>, due: Option<UnixMillis>, id: EventId) -> Result<History, String> {
    let due = due.unwrap_or_else(|| id.accepted_at());
    let Some(bytes) = bytes else { return Ok(History { due, ..History::default() }) };
    let history: History =
        serde_json::from_slice(bytes).map_err(|error| format!("its history does not parse: {error}"))?;
    Ok(History { due, ..history })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Burial, BuryReason, LastOutcome};

    #[test]
    fn a_history_is_read_back_and_long_texts_are_cut() {
        let id = EventId::from_bytes([0; 16]);
        let last = LastOutcome {
            at: UnixMillis(7),
            status: 429,
            code: "ü".repeat(200),
            message: "\0m".repeat(2_000),
            request_id: Some("r".into()),
        };
        let burial = Burial { reason: BuryReason::Refused, at: UnixMillis(8), unshippable: Some("u".repeat(900)) };
        let history = History {
            attempts: u32::MAX,
            due: UnixMillis(5),
            last: Some(last),
            burial: Some(burial),
            ..History::default()
        };
        let back = decode(Some(&encode(&history)), Some(UnixMillis(6)), id).unwrap();
        assert_eq!((back.attempts, back.due), (u32::MAX, UnixMillis(6)));
        let last = back.last.unwrap();
        assert_eq!((last.code.len(), last.message.len()), (128, 1_024));
        assert_eq!(back.burial.unwrap().unshippable.unwrap().len(), 512);
        assert_eq!(decode(None, None, id).unwrap(), History::default());
        assert!(decode(Some(b"{"), None, id).is_err());
    }
}
