//! Records the requests that the stand-in received and its answers.

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

/// What the ledger keeps of each request, besides the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Nothing. Memory does not grow with the requests, as benches need.
    Counts,
    /// An entry without the payload: about 2 KiB.
    #[default]
    Entries,
    /// An entry with the payload.
    EntriesAndPayloads,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// 202, or 200 with the function's result.
    Accepted,
    /// As `Accepted`, but late.
    SlowReply(Duration),
    /// The event was taken, and the connection reset instead of answered.
    LostReply,
    /// 204.
    DryRun,
    Throttled(Reason),
    /// An error. Without a code if it is a proxy's page.
    Refused {
        status: u16,
        code: Option<String>,
    },
    /// 200, but the function failed.
    FunctionError,
    /// The connection was reset before the body was read.
    Reset,
    /// The caller left before its body was complete.
    Unfinished,
}

impl Answered {
    /// Whether the function got the event. A function that failed did not: its caller is expected to retry.
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
    /// When the head was read.
    pub at: UnixMillis,
    /// `FunctionName`, percent-decoded, as it was sent.
    pub function: String,
    /// `name` or `name:qualifier`, without account and region, in whichever form it was sent.
    pub lane: String,
    pub qualifier: Option<String>,
    pub invocation_type: InvocationType,
    pub headers: HeaderMap,
    /// From the client context, else the name of the durable execution.
    pub idempotency_key: Option<String>,
    /// `X-Amzn-Trace-Id`.
    pub trace_header: Option<String>,
    /// The value of the payload's id field. `None` if [`super::Settings::id_field`] names none or the payload was not
    /// read.
    pub id: Option<String>,
    /// In bytes. 0 if the payload was not read.
    pub payload_len: usize,
    /// SHA-256 in lower-case hex. `None` if the payload was not read completely.
    pub payload_sha256: Option<String>,
    pub payload: Option<Bytes>,
    /// `x-amzn-RequestId` of the answer, if there was an answer.
    pub request_id: Uuid,
    pub answered: Answered,
}

/// Counts of requests by how they ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    /// Accepted requests, with slow and lost replies: each one that gave the function an event, duplicates included.
    pub taken: u64,
    pub slow_replies: u64,
    pub lost_replies: u64,
    pub dry_runs: u64,
    pub throttled: u64,
    pub refused: u64,
    pub function_errors: u64,
    pub resets: u64,
    pub unfinished: u64,
    /// Payload bytes of the taken requests.
    pub taken_bytes: u64,
    /// Requests between the end of their headers and their answer, or the end of their connection.
    pub in_flight: u64,
    /// The highest value of `in_flight`. A caller that gives up on an answer and calls again may count twice for a
    /// moment.
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

    /// The counts of one function, `name` or `name:qualifier` as in [`Entry::lane`]. All zero if it was never called.
    pub fn function(&self, lane: &str) -> Counts {
        self.lanes.get(lane).cloned().unwrap_or_default()
    }

    /// The counts of each function that was called.
    pub fn functions(&self) -> &BTreeMap<String, Counts> {
        &self.lanes
    }

    /// All requests in the order of their answers. Empty with [`Keep::Counts`].
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The entries that gave their function an event.
    pub fn taken(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().filter(|entry| entry.answered.taken())
    }

    /// How often each event was taken, by its id in the payload ([`super::Settings::id_field`]). More than once means a
    /// duplicate. Available with every [`Keep`].
    pub fn taken_ids(&self) -> &BTreeMap<String, u64> {
        &self.taken_ids
    }

    /// Requests that were not Invoke's, or had no valid function name or type. They got an error and have no entry.
    pub fn strays(&self) -> u64 {
        self.strays
    }
}

/// Reads and writes a book. Cheap to clone. Clones share one book.
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
    /// Reads the book under its lock, so `look` must be short.
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

    /// Waits until `condition` holds, and checks it after every request. Returns false if it does not hold within
    /// `limit`.
    pub async fn wait_until(&self, condition: impl Fn(&Book) -> bool, limit: Duration) -> bool {
        let held = async {
            loop {
                let mut written = std::pin::pin!(self.shared.written.notified());
                // Listen before looking, so that no change in between is missed.
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

/// One request in flight. Ends when it is dropped.
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
