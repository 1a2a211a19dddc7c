//! The library's own stand-in as Lambda. It follows scripts and remembers everything.

use std::collections::BTreeMap;

use sendoff::clock::{Clock, UnixMillis};
use sendoff::standin::{Keep, Reason, Script, Settings, Standin, Trouble};
use tokio::runtime::Runtime;

use super::eventually;

/// A stand-in in a runtime of its own. The field `id` of a payload names the event.
pub struct Lambda {
    standin: Standin,
    _runtime: Runtime,
}

impl Lambda {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let settings = Settings { keep: Keep::EntriesAndPayloads, id_field: Some("id".to_owned()) };
        let standin = Standin::start_with(Clock::system(), settings).unwrap();
        drop(entered);
        Self { standin, _runtime: runtime }
    }

    pub fn endpoint_url(&self) -> String {
        self.standin.endpoint_url()
    }

    pub fn script(&self, function: &str, script: Script) {
        self.standin.script(function, script);
    }

    pub fn default_script(&self, script: Script) {
        self.standin.default_script(script);
    }

    /// From now on throttles every request. All events wait, because a throttle is not their fault.
    pub fn throttle_all(&self) {
        self.default_script(Script::always(throttle()));
    }

    /// From now on takes every request at once.
    pub fn take_all(&self) {
        self.default_script(Script::default());
    }

    /// How often each event was taken.
    pub fn taken(&self) -> BTreeMap<String, u64> {
        self.standin.ledger().read(|book| book.taken_ids().clone())
    }

    /// Every request that gave a function an event.
    pub fn taken_entries(&self) -> Vec<std::sync::Arc<sendoff::standin::Entry>> {
        self.standin.ledger().read(|book| book.taken().cloned().collect())
    }

    /// When requests for `function` came, and whether each was taken.
    pub fn seen(&self, function: &str) -> Vec<(UnixMillis, bool)> {
        self.standin.ledger().read(|book| {
            let of_it = book.entries().iter().filter(|entry| entry.function == function);
            of_it.map(|entry| (entry.at, entry.answered.taken())).collect()
        })
    }

    /// Every request with a complete body, also throttled and refused ones.
    pub fn entries(&self) -> Vec<std::sync::Arc<sendoff::standin::Entry>> {
        self.standin.ledger().entries()
    }

    /// Waits until all of `ids` were taken.
    pub fn wait_for(&self, ids: &[String]) {
        eventually("Lambda has taken every event", || {
            let taken = self.taken();
            ids.iter().all(|id| taken.contains_key(id)).then_some(())
        });
    }

    /// The number of requests that have ended, with or without an answer.
    pub fn requests(&self) -> u64 {
        self.standin.ledger().read(|book| book.total().requests)
    }

    /// The number of requests that are being answered now.
    pub fn in_flight(&self) -> u64 {
        self.standin.ledger().read(|book| book.total().in_flight)
    }
}

/// The function is at its concurrency limit.
pub fn throttle() -> Trouble {
    Trouble::throttle(Reason::ReservedFunctionConcurrentInvocationLimitExceeded)
}

/// The payload with this `id`.
pub fn payload(id: &str) -> Vec<u8> {
    serde_json::json!({ "id": id }).to_string().into_bytes()
}
