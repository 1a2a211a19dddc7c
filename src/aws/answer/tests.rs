use http::HeaderMap;

use super::*;

fn signs(pairs: &[(&'static str, &'static str)]) -> Signs {
    let headers: HeaderMap =
        pairs.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    Signs::of(&Headers::try_from(headers).unwrap())
}

const ID: (&str, &str) = ("x-amzn-RequestId", "r-1");
const VERSION: (&str, &str) = ("X-Amz-Executed-Version", "$LATEST");
const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");
const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn only_lambdas_own_answer_counts_for_what_was_asked() {
    use Asked::{DryRun, Event, Result};
    for (asked, status, headers, body) in [
        (Event, 202, &[ID][..], ""),
        (Event, 202, &[ID, VERSION], ""),
        // moto answers an Event with the function's result.
        (Event, 202, &[ID, JSON], "Simple Lambda happy path OK"),
        // SAM's local Lambda has no request id.
        (Event, 202, &[JSON], ""),
        (Result, 200, &[ID, VERSION, JSON], "\"done\""),
        (Result, 200, &[VERSION], ""),
        (Result, 200, &[ID], "{}"),
        (DryRun, 204, &[], ""),
    ] {
        assert_eq!(signs(headers).foreign(asked, status, Some(body.as_bytes())), None, "{asked:?} {status} {body}");
    }
}

#[test]
fn whatever_else_looks_like_success_is_somebody_elses() {
    use Asked::{DryRun, Event, Result};
    for (asked, status, headers, body) in [
        (Event, 200, &[HTML][..], "<html>Welcome</html>"),
        (Event, 200, &[], ""),
        (Event, 200, &[ID, VERSION], "null"),
        (Event, 200, &[JSON], "{\"status\":\"ok\"}"),
        // An API Gateway sends request ids too.
        (Event, 200, &[ID, JSON], "{\"message\":\"hello\"}"),
        (Event, 202, &[HTML], ""),
        (Event, 202, &[], "<!doctype html><p>Accepted"),
        (Event, 202, &[ID, HTML], "<html></html>"),
        (Event, 202, &[JSON], "{\"queued\":true}"),
        (Event, 201, &[ID], ""),
        (Event, 203, &[ID], ""),
        (Event, 204, &[ID], ""),
        (Event, 205, &[ID], ""),
        (Event, 206, &[ID], ""),
        (Event, 207, &[ID], ""),
        (Event, 299, &[ID], ""),
        (Event, 302, &[("location", "http://portal/")], ""),
        (Event, 307, &[], ""),
        (Event, 304, &[ID], ""),
        (Result, 200, &[HTML], "<html></html>"),
        (Result, 200, &[JSON], "{\"status\":\"ok\"}"),
        (Result, 200, &[ID, HTML], "<html></html>"),
        (Result, 202, &[ID], ""),
        (Result, 204, &[ID], ""),
        (Result, 301, &[ID], ""),
        (DryRun, 200, &[HTML], "<html></html>"),
        (DryRun, 200, &[ID], "{}"),
        (DryRun, 202, &[], ""),
    ] {
        let foreign = signs(headers).foreign(asked, status, Some(body.as_bytes()));
        assert_eq!(foreign, Some(Foreign::Unknown), "{asked:?} {status} {body}");
    }
}

#[test]
fn a_sendoffs_202_is_not_lambdas() {
    let signs = signs(&[ID, ("X-Sendoff-Event-Id", "e-1")]);
    for asked in [Asked::Event, Asked::Result, Asked::DryRun] {
        assert_eq!(signs.foreign(asked, 202, None), Some(Foreign::Sendoff));
    }
    let answer = judged(Asked::Event, &signs, None, Answer { status: 202, ..Answer::default() });
    assert_eq!((answer.status, answer.code.as_deref()), (508, Some("LoopDetectedException")));
    assert!(answer.message.contains("lambda.endpoint_url"), "{}", answer.message);
}

#[test]
fn a_foreign_answer_says_what_it_looks_like_and_what_to_do() {
    let answer = judged(Asked::Event, &signs(&[HTML]), None, Answer { status: 200, ..Answer::default() });
    assert!(answer.foreign);
    for part in ["status 200", "text/html", "no x-amzn-RequestId", "lambda.endpoint_url"] {
        assert!(answer.message.contains(part), "{part}: {}", answer.message);
    }
}
