//! Tells whether a peer reads its answers. A peer that asks and does not read must not hold a connection, a call that
//! is passed through, or the memory of its answer.
//!
//! Two places show it. If a write to the socket blocks, the peer's receive window is full (both protocols). If a body
//! has handed out a frame and is not polled for more, the peer gives its HTTP/2 stream no window; the socket does not
//! show this. Each place has some patience. Waiting uses it up. Bytes that the peer reads restore it at
//! [`BYTES_PER_SECOND`], so a byte now and then buys little time.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// The slowest reader that is tolerated in the long run.
const BYTES_PER_SECOND: u32 = 4 * 1024;

/// The most bytes of a frame. A frame that was handed out and not read stays in memory, and at the end of a body
/// neither place sees it.
const FRAME_BYTES_MAX: usize = 16 * 1024;

/// How long one place has waited for its peer.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    patience: Duration,
    since: Option<Instant>,
}

impl Waiting {
    fn new(patience: Duration) -> Self {
        Self { patience, since: None }
    }

    fn begins(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The peer has read `bytes`. `most` is the patience of a place that never waited.
    fn ends(&mut self, now: Instant, bytes: usize, most: Duration) {
        let Some(since) = self.since.take() else { return };
        let waited = now.saturating_duration_since(since);
        let earned = Duration::from_secs(1).saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX)) / BYTES_PER_SECOND;
        self.patience = self.patience.saturating_sub(waited).saturating_add(earned).min(most);
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.patience)
    }
}

/// The progress of one connection. Cheap to clone. Clones share one state.
#[derive(Debug, Clone)]
pub struct Progress {
    clock: Clock,
    patience: Duration,
    places: Arc<Mutex<Places>>,
}

#[derive(Debug)]
struct Places {
    socket: Waiting,
    answers: BTreeMap<u64, Answer>,
    next_answer: u64,
}

#[derive(Debug)]
struct Answer {
    waiting: Waiting,
    bytes: usize,
    /// Cancels this answer only. `None` on HTTP/1, where the connection ends instead.
    alone: Option<CancellationToken>,
}

impl Progress {
    pub fn new(clock: Clock, patience: Duration) -> Self {
        let places = Places { socket: Waiting::new(patience), answers: BTreeMap::new(), next_answer: 0 };
        Self { clock, patience, places: Arc::new(Mutex::new(places)) }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the result of a write to the socket.
    pub(super) fn written(&self, written: &Poll<std::io::Result<usize>>) {
        let mut places = self.places();
        match written {
            Poll::Pending => places.socket.begins(self.clock.instant()),
            Poll::Ready(Ok(bytes)) if places.socket.since.is_some() => {
                places.socket.ends(self.clock.instant(), *bytes, self.patience);
            }
            Poll::Ready(_) => {}
        }
    }

    /// Whether the peer has something to read.
    pub fn waits(&self) -> bool {
        let places = self.places();
        places.socket.since.is_some() || places.answers.values().any(|answer| answer.waiting.since.is_some())
    }

    /// Cancels the answers that have used up their patience. Returns whether the connection must end.
    fn end_what_is_over(&self) -> bool {
        let now = self.clock.instant();
        let mut places = self.places();
        let mut whole = places.socket.is_over(now);
        places.answers.retain(|_, answer| {
            let over = answer.waiting.is_over(now);
            match &answer.alone {
                Some(alone) if over => alone.cancel(),
                Some(_) => {}
                None => whole |= over,
            }
            !over
        });
        whole
    }

    /// Returns when the peer has read too little for too long. Meanwhile cancels single answers of HTTP/2.
    pub async fn stalled(&self) {
        let every = (self.patience / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
        while !self.end_what_is_over() {
            self.clock.sleep(every).await;
        }
    }
}

/// The body of an answer. It hands out frames of at most [`FRAME_BYTES_MAX`] and records when the peer has read one.
/// `held` is dropped with the body.
pub struct Answering<B, H> {
    body: B,
    /// What the inner body returned and is not yet handed out.
    rest: Bytes,
    progress: Progress,
    alone: Option<CancellationToken>,
    /// The answer's number in the progress. `None` until it has handed out a frame.
    number: Option<u64>,
    #[expect(dead_code, reason = "held for its drop")]
    held: H,
}

impl<B, H> Answering<B, H> {
    pub fn new(body: B, progress: Progress, alone: Option<CancellationToken>, held: H) -> Self {
        Self { body, rest: Bytes::new(), progress, alone, number: None, held }
    }

    /// The body is polled for more, so the frame before was read.
    fn is_asked(&self) {
        let Some(number) = self.number else { return };
        let (now, most) = (self.progress.clock.instant(), self.progress.patience);
        if let Some(answer) = self.progress.places().answers.get_mut(&number) {
            answer.waiting.ends(now, answer.bytes, most);
        }
    }

    fn hands_out(&mut self, bytes: usize) {
        let now = self.progress.clock.instant();
        let mut places = self.progress.places();
        let number = *self.number.get_or_insert(places.next_answer);
        places.next_answer = places.next_answer.max(number + 1);
        let patience = self.progress.patience;
        let answer = places.answers.entry(number).or_insert_with(|| Answer {
            waiting: Waiting::new(patience),
            bytes: 0,
            alone: self.alone.clone(),
        });
        answer.bytes = bytes;
        answer.waiting.begins(now);
    }
}

impl<B, H> Drop for Answering<B, H> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.progress.places().answers.remove(&number);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin, H: Unpin> Body for Answering<B, H> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        this.is_asked();
        if this.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(FRAME_BYTES_MAX));
        this.hands_out(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(rest));
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::clock::UnixMillis;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_does_not_buy_time_and_a_steady_reader_has_all_of_it() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let began = clock.instant();
        let over_after = |every: Duration, bytes: usize| {
            let (mut waiting, mut now) = (Waiting::new(PATIENCE), began);
            for _ in 0..1_000 {
                waiting.begins(now);
                now += every;
                if waiting.is_over(now) {
                    return Some(now - began);
                }
                waiting.ends(now, bytes, PATIENCE);
            }
            None
        };
        assert_eq!(over_after(Duration::from_secs(60), 1), Some(Duration::from_secs(60)));
        let trickle = over_after(Duration::from_secs(1), 1).unwrap();
        assert!(trickle <= Duration::from_secs(31), "{trickle:?}");
        assert_eq!(over_after(Duration::from_secs(1), BYTES_PER_SECOND as usize), None);
        assert_eq!(over_after(Duration::from_secs(4), FRAME_BYTES_MAX), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_comes_whole_in_small_frames_and_one_that_is_not_taken_ends_alone() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let progress = Progress::new(clock.clone(), PATIENCE);
        let body = || Full::new(Bytes::from(vec![7; 3 * FRAME_BYTES_MAX + 1]));
        let whole = Answering::new(body(), progress.clone(), None, ());
        assert_eq!(whole.size_hint().exact(), Some(3 * FRAME_BYTES_MAX as u64 + 1));
        assert_eq!(whole.collect().await.unwrap().to_bytes().len(), 3 * FRAME_BYTES_MAX + 1);
        assert!(!progress.waits());

        let alone = CancellationToken::new();
        let mut stuck = Answering::new(body(), progress.clone(), Some(alone.clone()), ());
        assert_eq!(stuck.frame().await.unwrap().unwrap().into_data().unwrap().len(), FRAME_BYTES_MAX);
        assert_eq!(stuck.size_hint().exact(), Some(2 * FRAME_BYTES_MAX as u64 + 1));
        let ended = tokio::time::timeout(PATIENCE * 2, progress.stalled()).await;
        assert!(ended.is_err() && alone.is_cancelled(), "the connection goes on");

        let mut only = Answering::new(body(), progress.clone(), None, ());
        only.frame().await.unwrap().unwrap();
        assert!(tokio::time::timeout(PATIENCE * 2, progress.stalled()).await.is_ok(), "the connection ends");
        drop(only);
        assert!(!progress.waits());
    }
}
