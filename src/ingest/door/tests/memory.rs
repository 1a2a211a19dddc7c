//! The memory of requests: set aside as they come to need it, and for as long as they have it.

use super::*;
use crate::ingest::admission::{EVENT_BYTES, SLOT_BYTES};

/// Bytes that are set aside.
fn in_use(door: &Door<Kept>) -> u64 {
    match door.shared.admission.set_aside(u64::MAX) {
        Ok(_) => 0,
        Err(crowded) => crowded.used,
    }
}

/// A body of unknown length, and where its bytes are put in.
fn streamed() -> (tokio::sync::mpsc::Sender<Bytes>, impl Body<Data = Bytes, Error = Infallible> + Unpin) {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(64);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        let data = receiver.recv().await?;
        Some((Ok(hyper::body::Frame::data(data)), receiver))
    });
    (sender, http_body_util::StreamBody::new(Box::pin(frames.fuse())))
}

/// A request whose body is still to come.
struct Asked<F: Future<Output = Answer>> {
    sender: tokio::sync::mpsc::Sender<Bytes>,
    answer: Pin<Box<F>>,
}

fn ask_streamed(door: &Door<Kept>, path: &str) -> Asked<impl Future<Output = Answer> + use<>> {
    let (sender, body) = streamed();
    let request = Request::post(path).header("x-amz-invocation-type", "Event").body(body).unwrap();
    let door = door.clone();
    Asked { sender, answer: Box::pin(async move { door.handle(request).await }) }
}

async fn poll_once<F: Future<Output = Answer>>(asked: &mut Asked<F>) -> Option<u16> {
    match futures_util::poll!(asked.answer.as_mut()) {
        std::task::Poll::Ready(answer) => Some(answer.status().as_u16()),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn small_bodies_of_unknown_length_are_all_taken_at_once() {
    for path in [INVOKE, "/v1/events"] {
        let (door, _kept) = door(Settings { request_bytes_max: REQUEST_BYTES_MIN, ..settings() });
        let mut all: Vec<_> = (0..100).map(|_| ask_streamed(&door, path)).collect();
        for asked in &mut all {
            asked.sender.try_send(Bytes::from_static(b"{\"function\":\"f\",\"payl")).unwrap();
            assert_eq!(poll_once(asked).await, None);
        }
        for asked in &mut all {
            asked.sender.try_send(Bytes::from_static(b"oad\":1}")).unwrap();
        }
        for Asked { sender, answer } in all {
            drop(sender);
            assert_eq!(answer.await.status(), 202, "{path}");
        }
        assert_eq!(in_use(&door), 0);
    }
}

#[tokio::test]
async fn a_length_that_is_only_announced_costs_nothing() {
    let served = Served::start(Settings { request_bytes_max: REQUEST_BYTES_MIN, ..settings() }).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = served.connect().await;
        stream.write_all(head("Expect: 100-continue\r\nContent-Length: 1048576\r\n\r\n").as_bytes()).await.unwrap();
        // The answer "100 Continue" tells that the body is waited for.
        assert!(one_head(&mut stream).await.starts_with("HTTP/1.1 100"));
        silent.push(stream);
    }
    let reply = served.raw(head(&format!("{CLOSE}Content-Length: 2\r\n\r\n{{}}"))).await;
    assert!(reply.starts_with("HTTP/1.1 202"), "{reply}");
    drop(silent);
    served.finish().await;
}

#[tokio::test(start_paused = true)]
async fn bodies_that_do_not_fit_together_are_refused_and_do_not_wait_for_each_other() {
    let (door, kept) = door(Settings { request_bytes_max: 3 * REQUEST_BYTES_MIN, ..settings() });
    let mut all: Vec<_> = (0..8).map(|_| ask_streamed(&door, "/v1/events")).collect();
    let piece = Bytes::from(vec![b' '; 256 * 1024]);
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let mut left = Vec::new();
        for mut asked in all {
            asked.sender.try_send(piece.clone()).unwrap();
            match poll_once(&mut asked).await {
                Some(status) => statuses.push(status),
                None => left.push(asked),
            }
        }
        all = left;
    }
    for Asked { sender, answer } in all {
        sender.try_send(Bytes::from_static(b"{\"function\":\"f\"}")).unwrap();
        drop(sender);
        statuses.push(answer.await.status().as_u16());
    }
    assert!(statuses.contains(&429) && statuses.contains(&202), "{statuses:?}");
    assert!(statuses.iter().all(|status| [202, 429].contains(status)), "{statuses:?}");
    assert!(!kept.is_empty());
    assert_eq!(in_use(&door), 0);
}

/// A body that brings so many bytes a second, while the pool is full to this part.
async fn trickles(used: u64, bytes_a_second: usize) -> u16 {
    let (door, _kept) = door(settings());
    let _others = door.shared.admission.set_aside(used).unwrap();
    let Asked { sender, answer } = ask_streamed(&door, INVOKE);
    let trickle = async {
        for _ in 0..9 {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            if sender.send(vec![b' '; bytes_a_second].into()).await.is_err() {
                return;
            }
        }
        drop(sender.send(Bytes::from_static(b"{}")).await);
        drop(sender);
    };
    let (answer, ()) = tokio::join!(answer, trickle);
    answer.status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_given_up_only_while_memory_is_scarce() {
    let limit = settings().request_bytes_max;
    assert_eq!(trickles(0, 1).await, 202);
    assert_eq!(trickles(limit * 3 / 4, 1).await, 408);
    assert_eq!(trickles(limit * 3 / 4, 8_192).await, 202);
}

#[tokio::test]
async fn memory_stays_set_aside_while_the_outbox_has_the_events_of_a_client_that_has_gone() {
    let leftovers = TaskTracker::new();
    for (path, body, least) in [
        (INVOKE, format!("\"{}\"", "x".repeat(100_000)), SLOT_BYTES + 100_000),
        ("/v1/events", "{\"function\":\"f\"}\n".repeat(1_000), SLOT_BYTES + 1_000 * EVENT_BYTES),
    ] {
        let (door, kept) = door(settings());
        let door = door.leaving(leftovers.clone());
        let gate = kept.gate.lock().await;
        let mut answer = Box::pin(door.handle(post(path, &[("x-amz-invocation-type", "Event")], &body)));
        assert!(futures_util::poll!(answer.as_mut()).is_pending());
        assert!(in_use(&door) > least);
        drop(answer);
        assert!(in_use(&door) > least, "{path}: the events are still in memory");
        assert_eq!(leftovers.len(), 1);
        drop(gate);
        leftovers.close();
        leftovers.wait().await;
        assert_eq!(in_use(&door), 0);
        assert!(!kept.is_empty(), "the outbox alone decides");
    }
}

#[tokio::test]
async fn an_answer_holds_its_memory_until_it_is_taken() {
    let (door, _kept) = door(settings());
    let batch = "{\"function\":\"f\"}\n".repeat(1_000);
    let answer = door.handle(post("/v1/events", &[], &batch)).await;
    let length = hyper::body::Body::size_hint(answer.body()).exact().unwrap();
    assert_eq!(in_use(&door), SLOT_BYTES + length);
    drop(answer);
    assert_eq!(in_use(&door), 0);
}

#[tokio::test]
async fn a_batch_of_blank_lines_or_of_one_huge_name_takes_no_more_than_its_text() {
    let (door, kept) = door(settings());
    let blank = " \n".repeat(1 << 20);
    let reply = ask(&door, post("/v1/events", &[("content-type", "application/x-ndjson")], &blank)).await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    let long = "x".repeat(1 << 20);
    for line in [
        format!("{{\"function\":\"{long}\"}}"),
        format!("{{\"{long}\":1}}"),
        format!("{{\"function\":\"f\",\"tenant_id\":\"{long}\"}}"),
        format!("{{\"function\":\"f\",\"deliver_at\":\"{long}\"}}"),
        format!("{{\"function\":\"f\",\"delay\":[{}0]}}", "0,".repeat(1 << 20)),
        format!("{{\"function\":\"f\",\"expires_at\":{}1{}}}", "[".repeat(1_000), "]".repeat(1_000)),
    ] {
        let reply = ask(&door, post("/v1/events", &[], &line)).await;
        assert_eq!(reply.status, 400);
        assert!(reply.body.len() < 2_000, "{} bytes", reply.body.len());
    }
    assert!(kept.is_empty());
    assert_eq!(in_use(&door), 0);
}

#[tokio::test]
async fn an_encoded_body_is_refused_in_each_doors_shape() {
    let (door, kept) = door(settings());
    for path in [INVOKE, "/2014-11-13/functions/orders/invoke-async/", "/v1/events"] {
        let headers = [("x-amz-invocation-type", "Event"), ("content-encoding", "gzip")];
        let reply = ask(&door, post(path, &headers, "\u{1f}\u{8b}")).await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (415, "UnsupportedMediaTypeException"), "{path}");
        assert!(reply.body.contains("Content-Encoding gzip is not supported"), "{}", reply.body);
    }
    assert!(kept.is_empty());
}
