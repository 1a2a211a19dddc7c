//! Hand-offs: what the ingest listener needs to take them.

use std::sync::Arc;

use crate::admin::Readiness;
use crate::clock::Clock;
use crate::config::Config;
use crate::event::name::Home;
use crate::handoff::protocol::Party;
use crate::ingest::door::Reception;

/// This process as a party of hand-offs.
pub(super) fn party(clock: &Clock, home: &Home) -> Party {
    let instance = uuid::Builder::from_random_bytes(clock.random_bits().to_be_bytes()).into_uuid();
    Party { instance, home: home.clone() }
}

/// How the ingest listener takes hand-offs.
pub(super) fn reception(config: &Config, party: Party, readiness: &Readiness) -> Reception {
    let readiness = readiness.clone();
    Reception { party, is_open: config.handoff.receive, stays: Arc::new(move || readiness.is_ready()) }
}
