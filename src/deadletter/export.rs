//! A dead letter as a line of an export: with all that belongs to it, so that another store can take it in. Pure.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::admit::checked;
use super::letter::{Letter, from_base64, to_base64};
use super::message::Envelope;
use crate::clock::UnixMillis;
use crate::event::check::echo_of;
use crate::event::name::{Home, Parts};
use crate::event::sendable::unsendable;
use crate::event::{Carried, Event, Function, FunctionName, IdempotencyKey};
use crate::outbox::History;

/// A line of an export.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct Exported {
    #[schema(value_type = Object)]
    envelope: Envelope,
    #[schema(value_type = Object)]
    history: History,
    #[serde(rename = "payload_base64", serialize_with = "to_base64", deserialize_with = "from_base64")]
    #[schema(value_type = String, content_encoding = "base64")]
    payload: Bytes,
}

impl std::fmt::Debug for Exported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "export of {}, {} bytes", self.envelope.id, self.payload.len())
    }
}

impl Exported {
    pub fn of(event: &Event, history: &History) -> Self {
        Self { envelope: Envelope::of(event), history: history.clone(), payload: event.payload.clone() }
    }

    /// What a client sent, byte for byte.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Reads a line of an export. Refuses a field that this version does not know, because its meaning would be lost.
    pub fn read(line: &str) -> Result<Self, String> {
        let mut unknown = None;
        let mut reader = serde_json::Deserializer::from_str(line);
        let read: Result<Self, _> = serde_ignored::deserialize(&mut reader, |path| {
            unknown.get_or_insert_with(|| path.to_string());
        });
        let exported = read.map_err(|error| format!("not an exported dead letter: {error}"))?;
        match unknown {
            None => Ok(exported),
            Some(field) => Err(format!(
                "{}: this version of sendoff does not know the field {}: import the file with the version that wrote it, or remove \
                 the field",
                exported.envelope.id,
                echo_of(&field)
            )),
        }
    }

    fn letter(&self) -> Letter {
        let Self { envelope, payload, .. } = self;
        Letter {
            origin: envelope.id.to_string(),
            function: envelope.address.clone(),
            qualifier: envelope.qualifier.clone(),
            key: Some(envelope.key.clone()),
            key_source: Some(envelope.key_source),
            trace_header: envelope.trace_header.clone(),
            client_context: envelope.client_context.clone(),
            tenant_id: envelope.tenant_id.clone(),
            durable_execution_name: envelope.durable_execution_name.clone(),
            redrives: envelope.redrives,
            payload: payload.clone(),
        }
    }

    /// The dead letter as it is stored. What a client's request would be refused for is refused here too: the event would be
    /// redriven as it is. The error names the event.
    pub fn buried(self, now: UnixMillis, home: &Home) -> Result<(Event, History), String> {
        let as_letter = self.letter();
        let Self { envelope, mut history, payload } = self;
        checked(&as_letter, home).map_err(|why| format!("{}: {why}", envelope.id))?;
        let name = FunctionName::new(&envelope.function);
        let is_sound = name.tag() == envelope.id.function_tag()
            && Parts::parse(&envelope.address).is_some_and(|parts| envelope.function.contains(parts.name));
        let Some(burial) = history.burial.as_mut().filter(|_| is_sound) else {
            return Err(format!("{} is not a dead letter that was exported", envelope.id));
        };
        // Another daemon may have another queue.
        burial.unshippable = None;
        history.due = now;
        let event = Event {
            id: envelope.id,
            function: Function {
                name,
                address: envelope.address,
                qualifier: envelope.qualifier,
                region: envelope.region,
            },
            key: IdempotencyKey { value: envelope.key, source: envelope.key_source }.outward(),
            carried: Carried {
                trace_header: envelope.trace_header,
                client_context: envelope.client_context,
                tenant_id: envelope.tenant_id,
                durable_execution_name: envelope.durable_execution_name,
            },
            payload,
            accepted_at: envelope.id.accepted_at(),
            deliver_at: None,
            expires_at: None,
            redrives: envelope.redrives,
        };
        match unsendable(&event) {
            Some(field) => Err(format!("{}: its {field} cannot be sent to Lambda", event.id)),
            None => Ok((event, history)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::deadletter::admit::admit;
    use crate::deadletter::admit::tests::{letter, rules};
    use crate::outbox::{Burial, BuryReason};

    #[test]
    fn an_import_passes_the_checks_of_the_doors() {
        type Damage = fn(&mut Exported);
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let event = admit(letter(|letter| letter.function = "orders".into()), &rules(), &clock).unwrap().event;
        let burial = Burial { reason: BuryReason::Refused, at: clock.now(), unshippable: None };
        let imported = |change: Damage| {
            let history = History { burial: Some(burial.clone()), ..History::default() };
            let mut exported = Exported::of(&event, &history);
            change(&mut exported);
            exported.buried(clock.now(), &rules().home).map(|(event, _)| event)
        };
        assert_eq!(imported(|_| {}).unwrap(), event);
        let changes: [(&str, Damage); 6] = [
            ("functionName", |exported| exported.envelope.address = "x".repeat(70_000)),
            ("not a dead letter", |exported| exported.envelope.address = "other".into()),
            ("key", |exported| exported.envelope.key = "k".repeat(70_000)),
            ("key", |exported| exported.envelope.key = String::new()),
            ("key", |exported| exported.envelope.key = "a\nb".into()),
            ("not JSON", |exported| exported.payload = "not json".into()),
        ];
        for (what, change) in changes {
            let why = imported(change).unwrap_err();
            assert!(why.contains(what), "{what}: {}", &why[..why.len().min(200)]);
        }
    }
}
