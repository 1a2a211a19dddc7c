//! What the stand-in was asked and what it answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::clock::UnixMillis;
use crate::standin::request::InvocationType;
use crate::standin::script::Reason;

/// What is kept of each request, besides the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Nothing: for benches. What is kept does not grow with the requests.
    Counts,
    /// An entry without the payload: about 2 KiB.
    #[default]
    Entries,
    /// An entry with the payload.
    EntriesAndPayloads,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// 202, or 200 with the function's result.
    Accepted,
    /// The same, late.
    SlowReply(Duration),
    /// Taken, and the connection reset instead of answered.
    LostReply,
    /// 204.
    DryRun,
    Throttled(Reason),
    /// An error; without a code if a proxy's page.
    Refused {
        status: u16,
        code: Option<String>,
    },
    /// 200, but the function failed.
    FunctionError,
    /// The connection was reset before the body was read.
    Reset,
    /// The caller went away before its body was complete.
    Unfinished,
}

impl Answered {
    /// Whether the function has got the event. A function that failed has not: its caller is expected to try again.
    pub fn taken(&self) -> bool {
        match self {
            Self::Accepted | Self::SlowReply(_) | Self::LostReply => true,
            Self::DryRun
            | Self::Throttled(_)
            | Self::Refused { .. }
            | Self::FunctionError
            | Self::Reset
            | Self::Unfinished => false,
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When its head had been read.
    pub at: UnixMillis,
    /// `FunctionName`, percent-decoded, as it was sent.
    pub function: String,
    /// `name` or `name:qualifier`: without account and region, whatever form was sent.
    pub lane: String,
    pub qualifier: Option<String>,
    pub invocation_type: InvocationType,
    pub headers: HeaderMap,
    /// Of the client context, else the durable execution's name.
    pub idempotency_key: Option<String>,
    /// `X-Amzn-Trace-Id`.
    pub trace_header: Option<String>,
    /// What the payload's id field says, if [`super::Settings::id_field`] names one and the payload was read.
    pub id: Option<String>,
    /// Bytes; 0 if it was not read.
    pub payload_len: usize,
    /// SHA-256 in lower-case hex; none if the payload was not read whole.
    pub payload_sha256: Option<String>,
    pub payload: Option<Bytes>,
    /// `x-amzn-RequestId` of the answer, if there was one.
    pub request_id: Uuid,
    pub answered: Answered,
}

/// Requests by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    /// Accepted, slow and lost replies: each request that gave the function an event, repeats included.
    pub taken: u64,
    pub slow_replies: u64,
    pub lost_replies: u64,
    pub dry_runs: u64,
    pub throttled: u64,
    pub refused: u64,
    pub function_errors: u64,
    pub resets: u64,
    pub unfinished: u64,
    /// Payload bytes of the taken ones.
    pub taken_bytes: u64,
    /// Requests from the end of their headers to their answer or the end of their connection.
    pub in_flight: u64,
    /// The most of them at once. A caller that gives up on an answer and calls again may count twice for a moment.
    pub in_flight_max: u64,
}

impl Counts {
    fn add(&mut self, answered: &Answered, payload_len: usize) {
        self.requests += 1;
        if answered.taken() {
            self.taken += 1;
            self.taken_bytes += payload_len as u64;
        }
        match answered {
            Answered::Accepted => {}
            Answered::SlowReply(_) => self.slow_replies += 1,
            Answered::LostReply => self.lost_replies += 1,
            Answered::DryRun => self.dry_runs += 1,
            Answered::Throttled(_) => self.throttled += 1,
            Answered::Refused { .. } => self.refused += 1,
            Answered::FunctionError => self.function_errors += 1,
            Answered::Reset => self.resets += 1,
            Answered::Unfinished => self.unfinished += 1,
        }
    }

    fn begin(&mut self) {
        self.in_flight += 1;
        self.in_flight_max = self.in_flight_max.max(self.in_flight);
    }
}

/// The ledger's content at one moment.
#[derive(Debug, Default)]
pub struct Book {
    total: Counts,
    lanes: BTreeMap<String, Counts>,
    entries: Vec<Arc<Entry>>,
    taken_ids: BTreeMap<String, u64>,
    strays: u64,
}

impl Book {
    /// All requests of Invoke.
    pub fn total(&self) -> &Counts {
        &self.total
    }

    /// Those of one function, `name` or `name:qualifier` as in [`Entry::lane`]; all zero if it was never called.
    pub fn function(&self, lane: &str) -> Counts {
        self.lanes.get(lane).cloned().unwrap_or_default()
    }

    /// The counts of each function that was called.
    pub fn functions(&self) -> &BTreeMap<String, Counts> {
        &self.lanes
    }

    /// All requests in the order of their answers; none under [`Keep::Counts`].
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The entries that gave their function an event.
    pub fn taken(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().filter(|entry| entry.answered.taken())
    }

    /// How often each event was taken, by its id in the payload ([`super::Settings::id_field`]); more than once is a
    /// duplicate. Kept under every [`Keep`].
    pub fn taken_ids(&self) -> &BTreeMap<String, u64> {
        &self.taken_ids
    }

    /// Requests that were not Invoke's, or had no valid function name or type: answered with an error, without an entry.
    pub fn strays(&self) -> u64 {
        self.strays
    }
}

/// The handle to a book that is being written. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    written: Notify,
}

impl Ledger {
    /// Looks at the book; it is locked meanwhile, so `look` is to be short.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.lock())
    }

    /// All entries so far.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.read(|book| book.entries().to_vec())
    }

    /// The entries so far that gave their function an event.
    pub fn taken(&self) -> Vec<Arc<Entry>> {
        self.read(|book| book.taken().map(Arc::clone).collect())
    }

    /// Waits until `condition` holds; false if it does not within `limit`. It is asked again after every request.
    pub async fn wait_until(&self, condition: impl Fn(&Book) -> bool, limit: Duration) -> bool {
        let held = async {
            loop {
                let mut written = std::pin::pin!(self.shared.written.notified());
                // Listen first, look then: what is written in between is not missed.
                written.as_mut().enable();
                if self.read(&condition) {
                    return;
                }
                written.await;
            }
        };
        tokio::time::timeout(limit, held).await.is_ok()
    }

    pub(super) fn begin(&self, lane: &str) -> InFlight {
        let mut book = self.lock();
        book.total.begin();
        book.lanes.entry(lane.to_owned()).or_default().begin();
        InFlight { ledger: self.clone(), lane: lane.to_owned() }
    }

    pub(super) fn record(&self, lane: &str, written: Written) {
        let mut book = self.lock();
        book.total.add(&written.answered, written.payload_len);
        book.lanes.entry(lane.to_owned()).or_default().add(&written.answered, written.payload_len);
        if let Some(id) = written.id.filter(|_| written.answered.taken()) {
            *book.taken_ids.entry(id).or_default() += 1;
        }
        book.entries.extend(written.entry.map(Arc::new));
        drop(book);
        self.shared.written.notify_waiters();
    }

    pub(super) fn stray(&self) {
        self.lock().strays += 1;
        self.shared.written.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request adds to the book.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) answered: Answered,
    pub(super) payload_len: usize,
    pub(super) id: Option<String>,
    pub(super) entry: Option<Entry>,
}

/// One request in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    ledger: Ledger,
    lane: String,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut book = self.ledger.lock();
        book.total.in_flight -= 1;
        if let Some(counts) = book.lanes.get_mut(&self.lane) {
            counts.in_flight -= 1;
        }
        drop(book);
        self.ledger.shared.written.notify_waiters();
    }
}
