//! Reading a request's body within its limits.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::timeout;

use crate::ingest::refusal::Refusal;

/// How much of a body that is not wanted is read nevertheless, in bytes: what a synchronous invocation may send. A client
/// that still writes when the connection closes sees a reset instead of the answer, and tries again for nothing.
const DISCARD_BYTES_MAX: u64 = 6_291_456;

/// Reads the whole body, at most `limit` bytes of it, within `time_max`.
pub async fn read<B: Body>(mut body: Pin<&mut B>, limit: usize, time_max: Duration) -> Result<Bytes, Refusal> {
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let complete = async {
        // Copied out of the connection's buffers, so that a small payload that waits for its commit does not hold a large one.
        let mut payload = BytesMut::with_capacity(announced.min(limit));
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_torn| Refusal::BodyTorn)?.into_data() else { continue };
            if data.remaining() > limit - payload.len() {
                return Err(Refusal::PayloadTooLarge { bytes: None, limit: limit as u64 });
            }
            payload.put(data);
        }
        Ok(payload.freeze())
    };
    timeout(time_max, complete).await.unwrap_or(Err(Refusal::BodyTimeout))
}

/// Reads and forgets what is left of a body, within limits, so that the client gets to read its answer.
pub async fn discard<B: Body>(mut body: Pin<&mut B>, time_max: Duration) {
    if body.is_end_stream() || body.size_hint().lower() > DISCARD_BYTES_MAX {
        return;
    }
    let rest = async {
        let mut read = 0_u64;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.into_data().map_or(0, |data| data.remaining() as u64);
            if read > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // Either way the answer follows.
    timeout(time_max, rest).await.unwrap_or_default();
}
