//! Calls that pass through.

use super::*;
use crate::hop::Hop;

type Answered = Result<Response<passthrough::AnswerBody>, passthrough::Failed>;

/// Answers every call as told, and notes what it was asked and whether a call was given up.
#[derive(Clone, Default)]
struct Fake {
    calls: Arc<Mutex<Vec<passthrough::PassthroughCall>>>,
    others: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<Option<Answered>>>,
    given_up: CancellationToken,
}

impl Passthrough for Fake {
    async fn call(&self, call: passthrough::PassthroughCall) -> Answered {
        self.calls.lock().unwrap().push(call);
        let answer = self.answer.lock().unwrap().take();
        match answer {
            Some(answer) => answer,
            None => {
                let _given_up = self.given_up.clone().drop_guard();
                std::future::pending().await
            }
        }
    }

    async fn other(&self, other: passthrough::Other) -> Answered {
        self.others.lock().unwrap().push(format!("{} {}", other.method, other.target));
        Ok(Response::new(body_of("{}")))
    }
}

fn body_of(text: &'static str) -> passthrough::AnswerBody {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

fn open_door(limits: passthrough::Limits) -> (Door<Kept, Fake>, Fake) {
    let fake = Fake::default();
    (door(settings()).0.passing(fake.clone(), Some(limits)), fake)
}

const CALLS: passthrough::Limits =
    passthrough::Limits { calls_max: 2, bytes_max: 7 << 20, others: passthrough::Others::Reads };

async fn pass(door: &Door<Kept, Fake>, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let (head, body) = door.handle(post(target, headers, body)).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

#[tokio::test]
async fn a_passed_call_counts_in_the_class_of_its_status() {
    let (door, fake) = open_door(CALLS);
    for (status, class) in [(200, "2xx"), (302, "3xx"), (404, "4xx"), (503, "5xx")] {
        *fake.answer.lock().unwrap() = Some(Ok(Response::builder().status(status).body(body_of("")).unwrap()));
        assert_eq!(pass(&door, INVOKE, &[], "{}").await.status, status);
        assert_eq!(door.shared.metrics.ingest_passed.with_label_values(&[class]).get(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_call_that_is_no_event_passes_through_unchanged() {
    const STREAM: &str = "/2021-11-15/functions/orders/response-streaming-invocations";
    let (door, fake) = open_door(CALLS);
    for (target, headers, operation) in [
        (INVOKE, &[("x-amz-log-type", "Tail"), ("x-amz-client-context", "not base64")][..], "Invoke"),
        (INVOKE, &[("x-amz-invocation-type", "DryRun"), ("idempotency-key", "\"open")], "Invoke"),
        (STREAM, &[], "InvokeWithResponseStream"),
    ] {
        let answer = Response::builder().status(200).header("x-amz-function-error", "Unhandled");
        let answer = answer.header("connection", "close").body(body_of("not json")).unwrap();
        *fake.answer.lock().unwrap() = Some(Ok(answer));
        let reply = pass(&door, target, headers, "not json either").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "not json"));
        assert_eq!((reply.header("x-amz-function-error"), reply.header("connection")), ("Unhandled", ""));
        let call = fake.calls.lock().unwrap().pop().unwrap();
        assert_eq!((format!("{:?}", call.operation).as_str(), &call.payload[..]), (operation, &b"not json either"[..]));
        assert!(!call.headers.contains_key("idempotency-key"));
    }
    assert!(door.outbox.is_empty());
}

#[tokio::test]
async fn what_cannot_be_passed_through_is_said_in_lambdas_shape() {
    let (door, fake) = open_door(CALLS);
    for (failed, status) in [
        (passthrough::Failed::NotSent("refused".to_owned()), 503),
        (passthrough::Failed::Lost("closed".to_owned()), 502),
    ] {
        *fake.answer.lock().unwrap() = Some(Err(failed));
        let reply = pass(&door, INVOKE, &[], "{}").await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (status, "ServiceException"));
    }
    let large = "1".repeat(6_291_457);
    let reply = pass(&door, INVOKE, &[], &large).await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (413, "RequestEntityTooLargeException"));
    assert!(reply.body.contains("Request must be smaller than 6291456 bytes for the InvokeFunction operation"));
    let event = [("x-amz-invocation-type", "Event")];
    let reply = pass(&door, "/2021-11-15/functions/f/response-streaming-invocations", &event, "").await;
    assert!(reply.status == 400 && reply.body.contains("[RequestResponse, DryRun]"), "{}", reply.body);
}

#[tokio::test]
async fn a_web_page_invokes_nothing() {
    let (door, fake) = open_door(CALLS);
    let origin = ("origin", "https://evil.example");
    for target in [INVOKE, "/v1/events"] {
        let headers = [origin, ("content-type", "text/plain")];
        let reply = pass(&door, target, &headers, "{\"function\":\"orders\"}").await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (403, "AccessDeniedException"));
    }
    assert!(fake.calls.lock().unwrap().is_empty() && door.outbox.is_empty());
}

#[tokio::test]
async fn a_call_of_a_sendoff_is_refused_on_every_path_and_stores_nothing() {
    let (door, fake) = open_door(CALLS);
    let door = door.marked(Hop::minted(7));
    let own = Hop::minted(7).value();
    for (target, kind) in [
        (INVOKE, "Event"),
        (INVOKE, "RequestResponse"),
        (INVOKE, "DryRun"),
        ("/2014-11-13/functions/orders/invoke-async", ""),
        ("/2021-11-15/functions/orders/response-streaming-invocations", "RequestResponse"),
        ("/v1/events", "Event"),
        ("/no/such/path", ""),
    ] {
        for (mark, words) in [(own.to_str().unwrap(), "this very sendoff"), ("cdn, sendoff; id=1", "another sendoff")] {
            let headers = [("x-amz-invocation-type", kind), ("cdn-loop", mark)];
            let reply = pass(&door, target, &headers, "{\"function\":\"orders\"}").await;
            assert_eq!((reply.status, reply.header("x-amzn-errortype")), (508, "LoopDetectedException"), "{target}");
            assert!(reply.body.contains(words) && reply.body.contains("lambda.endpoint_url"), "{}", reply.body);
            assert_eq!((reply.header("retry-after"), reply.header("x-amz-retry-after")), ("", ""));
        }
    }
    assert!(fake.calls.lock().unwrap().is_empty() && door.outbox.is_empty());
    let reply = pass(&door, INVOKE, &[("cdn-loop", "a-cdn"), ("x-amz-invocation-type", "Event")], "{}").await;
    assert_eq!(reply.status, 202, "a CDN before the door is nobody's loop");
}

#[tokio::test]
async fn calls_in_flight_are_limited_and_events_are_not_touched() {
    let (door, _fake) = open_door(CALLS);
    let mut held: Vec<_> = (0..2).map(|_| Box::pin(door.handle(post(INVOKE, &[], "{}")))).collect();
    for call in &mut held {
        assert!(futures_util::poll!(call).is_pending());
    }
    let reply = pass(&door, INVOKE, &[], "{}").await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (429, "TooManyRequestsException"));
    assert!(!reply.header("retry-after").is_empty() && reply.body.contains("passthrough_max"));
    let reply = pass(&door, INVOKE, &[("x-amz-invocation-type", "Event")], "{}").await;
    assert_eq!(reply.status, 202);
    drop(held);
    assert_eq!(door.gate.as_ref().unwrap().slots.available_permits(), 2);
    assert!(door.gate.as_ref().unwrap().admission.set_aside(CALLS.bytes_max).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_answered_ends() {
    let (door, _fake) = open_door(CALLS);
    let reply = pass(&door, INVOKE, &[], "{}").await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (502, "ServiceException"));
}

#[tokio::test]
async fn a_caller_who_leaves_cancels_the_call() {
    let (door, fake) = open_door(CALLS);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let limits = Limits {
        connections_max: 4,
        headers_max: 64,
        header_bytes_max: 16 << 10,
        header_timeout: Duration::from_secs(30),
    };
    let server = Server::new(limits, None, Clock::system(), stop.clone(), tasks.clone());
    tasks.spawn(server.serve(listener, door.service()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("POST {INVOKE} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}");
    stream.write_all(request.as_bytes()).await.unwrap();
    while fake.calls.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!fake.given_up.is_cancelled());
    drop(stream);
    let given_up = tokio::time::timeout(Duration::from_secs(30), fake.given_up.cancelled()).await;
    given_up.expect("the call is given up");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn operations_that_only_read_pass_and_others_are_refused_in_lambdas_shape() {
    let (door, fake) = open_door(CALLS);
    let ask = async |method: &str, target: &str| {
        let request = Request::builder().method(method).uri(target).header("host", "127.0.0.1");
        door.handle(request.body(Full::<Bytes>::default()).unwrap()).await
    };
    let target =
        "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Af?Qualifier=%24LATEST";
    assert_eq!(ask("GET", target).await.status(), 200);
    assert_eq!(fake.others.lock().unwrap().drain(..).collect::<Vec<_>>(), [format!("GET {target}")]);
    for (method, target, status) in [
        ("DELETE", "/2015-03-31/functions/orders", 404),
        ("POST", "/2015-03-31/functions", 404),
        ("GET", "/latest/meta-data/", 404),
        ("GET", INVOKE, 405),
    ] {
        let answer = ask(method, target).await;
        assert_eq!(answer.status(), status, "{method} {target}");
        assert!(answer.headers().contains_key("x-amzn-errortype"));
    }
    assert!(fake.others.lock().unwrap().is_empty());
}
