//! A stand-in for AWS Lambda: an HTTP server on loopback that speaks Invoke, misbehaves as its scripts say, and keeps a
//! ledger of all requests. The demo, the integration tests and the benches deliver to it.
//!
//! In: Invoke requests. Out: Lambda's answers, byte for byte as far as they are known (AWS Lambda API reference,
//! Invoke).
//! Holds: an event is in the ledger before its answer is sent. So the ledger knows everything that the caller knows.
//! Limits: [`CONNECTIONS_MAX`], and Lambda's payload limits. The ledger grows with its requests ([`Keep`]).
//! Fails: only to start.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;

mod request;

pub mod script;

mod stage;

mod reply;

pub mod ledger;

mod server;

pub use ledger::{Answered, Book, Counts, Entry, Keep, Ledger};
pub use request::InvocationType;
pub use script::{ConcurrencyLimit, ErrorAnswer, Latency, RateLimit, Reason, Script, Throttle, Trouble};

/// The most concurrent connections. Further ones wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 4_096;

/// What the ledger keeps, and how it tells events apart.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub keep: Keep,
    /// The top-level field of a JSON object payload that names the event: see [`Book::taken_ids`].
    pub id_field: Option<String>,
}

/// A running stand-in. Dropping it stops it.
#[derive(Debug)]
pub struct Standin {
    address: SocketAddr,
    shared: Arc<server::Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Standin {
    /// Starts a stand-in on a free port of 127.0.0.1, in the current tokio runtime. Its ledger keeps entries without
    /// payloads.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(clock: Clock) -> io::Result<Self> {
        Self::start_with(clock, Settings::default())
    }

    /// As [`Standin::start`], with a choice of what the ledger keeps.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_with(clock: Clock, settings: Settings) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let listener = socket.listen(1_024)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(server::Shared::new(clock, settings));
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        tasks.spawn(server::serve(listener, Arc::clone(&shared), tasks.clone(), stop.clone()));
        tasks.close();
        Ok(Self { address, shared, tasks, stop })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value for `lambda.endpoint_url`.
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on `function` follows `script`. `function` is `name` or `name:qualifier`; the more exact one wins.
    /// One-time troubles and rates start afresh. Requests in flight end as they began.
    pub fn script(&self, function: &str, script: Script) {
        self.shared.stage.script(function, script);
    }

    /// From now on every function without a script of its own follows `script`, each with its own one-time troubles and
    /// rate.
    pub fn default_script(&self, script: Script) {
        self.shared.stage.default_script(script);
    }

    /// While on, every new connection is reset at once, and every request on an open connection before its body is
    /// read.
    pub fn outage(&self, on: bool) {
        self.shared.outage.store(on, Ordering::Relaxed);
    }

    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// Ends all connections and waits for their tasks.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
