//! Reads a request's body within its limits.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep, timeout};

use crate::ingest::admission::{Crowded, Permit};

/// The first reservation of memory for a body, in bytes. Each further one doubles it.
const FIRST_BYTES: usize = 4 * 1024;

/// How often the progress of a body is checked. It is also checked after a number of frames.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const FRAMES_A_LOOK: u64 = 256;

/// While memory is scarce, a body must bring at least this many bytes between two checks. Otherwise it is given up, so
/// that slow clients cannot keep the memory from others for as long as a body may take.
const SCARCE_BYTES_MIN: usize = 4 * 1024;

/// How many bytes of a refused body are read and discarded: as many as a synchronous invocation may send. A client
/// that is still writing when the connection closes would see a reset instead of the answer, and retry in vain.
const DISCARD_BYTES_MAX: u64 = 6_291_456;

/// The longest that the body of a caller without rights is read and discarded.
const STRANGER_TIME_MAX: Duration = Duration::from_secs(3);

/// Why a body was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// The body exceeds the limit. Holds its length, if the client announced it.
    TooLarge(Option<u64>),
    /// No memory is available for it now.
    Crowded(Crowded),
    /// It did not arrive in time.
    Late,
    /// The connection ended before the body did.
    Torn,
}

impl From<Crowded> for Unread {
    fn from(crowded: Crowded) -> Self {
        Self::Crowded(crowded)
    }
}

/// Reads the whole body, at most `limit` bytes, within `time_max`. Reserves memory in `permit` as the body arrives; a
/// length that is only announced costs nothing. Refuses the body if no memory is left, and never waits for memory.
pub async fn read<B: Body>(
    mut body: Pin<&mut B>,
    limit: usize,
    time_max: Duration,
    permit: &mut Permit,
) -> Result<Bytes, Unread> {
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > limit as u64) {
        return Err(Unread::TooLarge(announced));
    }
    // Checked before the first byte, so that a client that waits for "100 Continue" need not send the body.
    permit.could_grow(announced.unwrap_or(0))?;
    let most = announced.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(limit);
    // Copied out of the connection's buffer, so that a small payload that waits for its commit does not keep a large
    // buffer alive.
    let mut payload = Vec::new();
    let mut clock = pin!(sleep(LOOK_EVERY.min(time_max)));
    let (mut left, mut seen) = (time_max, 0);
    for frames in 1_u64.. {
        match next(body.as_mut(), clock.as_mut(), frames.is_multiple_of(FRAMES_A_LOOK)).await {
            None => {
                left = left.saturating_sub(LOOK_EVERY);
                if left.is_zero() || permit.is_scarce() && payload.len() - seen < SCARCE_BYTES_MIN {
                    return Err(Unread::Late);
                }
                seen = payload.len();
                let next = clock.deadline() + LOOK_EVERY.min(left);
                clock.as_mut().reset(next);
            }
            Some(None) => break,
            Some(Some(frame)) => {
                let Ok(data) = frame.map_err(|_torn| Unread::Torn)?.into_data() else { continue };
                if data.remaining() > limit - payload.len() {
                    return Err(Unread::TooLarge(None));
                }
                make_room(&mut payload, data.remaining(), most, permit)?;
                payload.put(data);
            }
        }
    }
    Ok(payload.into())
}

/// The next frame or the end of the body, or `None` if `clock` fires first. With `look_first` the clock is polled first,
/// because a flood of frames would otherwise keep it from firing.
async fn next<B: Body>(
    mut body: Pin<&mut B>,
    mut clock: Pin<&mut Sleep>,
    look_first: bool,
) -> Option<Option<Result<Frame<B::Data>, B::Error>>> {
    poll_fn(|cx| {
        if look_first && clock.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => clock.as_mut().poll(cx).map(|()| None),
        }
    })
    .await
}

/// Makes room for `more` bytes. At least doubles the capacity, so that little is copied, but not beyond `most`.
fn make_room(payload: &mut Vec<u8>, more: usize, most: usize, permit: &mut Permit) -> Result<(), Crowded> {
    let needed = payload.len() + more;
    if needed > payload.capacity() {
        let capacity = needed.max((2 * payload.capacity()).max(FIRST_BYTES).min(most));
        permit.grow((capacity - payload.capacity()) as u64)?;
        payload.reserve_exact(capacity - payload.len());
    }
    Ok(())
}

/// Reads and discards the rest of a body, within limits, so that the client reads its answer. Not while memory is
/// scarce, because the request keeps some memory meanwhile.
pub async fn discard<B: Body>(body: Pin<&mut B>, time_max: Duration, permit: &Permit) {
    if body.is_end_stream() || body.size_hint().lower() > DISCARD_BYTES_MAX || permit.is_scarce() {
        return;
    }
    // The answer follows in either case.
    timeout(time_max, discard_to(body, DISCARD_BYTES_MAX)).await.unwrap_or_default();
}

/// Like [`discard`] for a caller without rights: for a short time, and without a permit, because nothing of it is kept.
pub async fn discard_briefly<B: Body>(body: Pin<&mut B>) {
    if !body.is_end_stream() && body.size_hint().lower() <= DISCARD_BYTES_MAX {
        timeout(STRANGER_TIME_MAX, discard_to(body, DISCARD_BYTES_MAX)).await.unwrap_or_default();
    }
}

async fn discard_to<B: Body>(mut body: Pin<&mut B>, bytes_max: u64) {
    let mut read = 0_u64;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.into_data().map_or(0, |data| data.remaining() as u64);
        if read > bytes_max {
            return;
        }
    }
}
