//! The event that tests start from.

use super::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use crate::clock::Clock;

/// An event that `function` accepts now: the payload `{}`, a key that sendoff made, and nothing else. A test that needs
/// more writes `Event { payload, ..event(&clock, "orders") }`.
pub fn event(clock: &Clock, function: &str) -> Event {
    let (name, accepted_at) = (FunctionName::new(function), clock.now());
    Event {
        id: EventId::mint(accepted_at, clock.random_bits(), &name),
        function: Function { name, address: function.into(), qualifier: None, region: None },
        key: IdempotencyKey { value: "minted".into(), source: KeySource::Minted },
        carried: Carried::default(),
        payload: "{}".into(),
        accepted_at,
        deliver_at: None,
        expires_at: None,
        redrives: 0,
    }
}
