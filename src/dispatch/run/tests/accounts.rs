//! Tests functions of two accounts, called with the credentials of one.

use super::*;
use crate::dispatch::verdict::Scope;

const MINUTE: Duration = Duration::from_secs(60);

/// A function of our account, one of another account in the same region, and one of ours in another region.
const OURS: &str = "eu-west-1/111111111111/orders";
const THEIRS: &str = "eu-west-1/222222222222/orders";
const ELSEWHERE: &str = "eu-central-1/111111111111/orders";

fn throttle(reason: &str, retry_after: Option<Duration>) -> Reply {
    Reply::Answer(Answer {
        status: 429,
        code: Some("TooManyRequestsException".into()),
        throttle_reason: Some(reason.into()),
        retry_after,
        ..Answer::default()
    })
}

async fn send(bench: &Bench, functions: &[&str], events: usize) {
    for function in functions {
        bench.append((0..events).map(|_| bench.event(function)).collect()).await;
    }
}

async fn held(bench: &Bench, function: &str) -> Option<Scope> {
    let lanes = bench.status.lanes().await;
    lanes[&FunctionName::new(function)].held.as_ref().map(|held| held.scope)
}

#[tokio::test(start_paused = true)]
async fn what_throttles_another_account_neither_holds_nor_slows_ours() {
    for retry_after in [None, Some(MINUTE * 10)] {
        let bench = Bench::new(settings(policy()), move |call, _| {
            let theirs = call.function.name.as_str() == THEIRS;
            (FAST, if theirs { throttle("ConcurrentInvocationLimitExceeded", retry_after) } else { accepted() })
        });
        send(&bench, &[THEIRS], 500).await;
        bench.clock.sleep(MINUTE).await;
        let limit = bench.status.lanes().await[&FunctionName::new(THEIRS)].account_limit;
        assert!(limit < 256, "their account is slowed: {limit}");
        assert_eq!(held(&bench, THEIRS).await, retry_after.map(|_| Scope::Account));

        send(&bench, &[OURS, ELSEWHERE], 2_000).await;
        bench.clock.sleep(MINUTE / 6).await;
        assert_eq!((bench.delivered(OURS), bench.delivered(ELSEWHERE)), (2_000, 2_000), "{retry_after:?}");
        let ours = &bench.status.lanes().await[&FunctionName::new(OURS)];
        assert_eq!((ours.account_limit, ours.held.is_some()), (256, false));
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_throttles_the_caller_holds_both_accounts_of_the_region_and_no_other_region() {
    let over = START.plus(MINUTE * 3);
    let bench = Bench::new(settings(policy()), move |call, now| {
        let ill = now < over && call.function.name.as_str().starts_with("eu-west-1/");
        (FAST, if ill { throttle("CallerRateLimitExceeded", Some(MINUTE * 2)) } else { accepted() })
    });
    send(&bench, &[OURS, THEIRS, ELSEWHERE], 300).await;
    bench.clock.sleep(MINUTE).await;
    assert_eq!([held(&bench, OURS).await, held(&bench, THEIRS).await], [Some(Scope::Caller); 2]);
    assert_eq!((held(&bench, ELSEWHERE).await, bench.delivered(ELSEWHERE)), (None, 300));
    bench.until_empty(MINUTE * 10).await;
    assert_eq!((bench.delivered(OURS), bench.delivered(THEIRS)), (300, 300));
    bench.end().await;
}

/// One rejected signature may be the fault of one event. Rejections for two functions are the fault of the credentials,
/// which a whole region shares.
#[tokio::test(start_paused = true)]
async fn signatures_that_two_functions_of_a_region_have_rejected_hold_the_region_until_one_is_taken() {
    let mended = START.plus(MINUTE * 30);
    let bench = Bench::new(settings(policy()), move |call, now| {
        let ill = now < mended && call.function.name.as_str().starts_with("eu-west-1/");
        (FAST, if ill { error(403, "SignatureDoesNotMatch") } else { accepted() })
    });
    // Two events each, because a single one may itself be at fault.
    send(&bench, &[OURS], 2).await;
    bench.clock.sleep(MINUTE).await;
    assert_eq!(held(&bench, OURS).await, Some(Scope::Lane), "one function's word holds itself");
    send(&bench, &[THEIRS], 2).await;
    bench.clock.sleep(MINUTE).await;
    assert_eq!([held(&bench, OURS).await, held(&bench, THEIRS).await], [Some(Scope::Caller); 2]);

    // A third function of the region is not tried. One in another region is.
    let before = bench.fake.calls.lock().unwrap().len();
    send(&bench, &["eu-west-1/111111111111/mails", ELSEWHERE], 100).await;
    bench.clock.sleep(MINUTE).await;
    let calls = bench.fake.calls.lock().unwrap()[before..].to_vec();
    let region = calls.iter().filter(|(_, name)| name.starts_with("eu-west-1/")).count();
    assert!(region <= 10 && bench.delivered(ELSEWHERE) == 100, "probes only: {region} calls");

    bench.clock.sleep(MINUTE * 30).await;
    bench.until_empty(MINUTE * 6).await;
    assert_eq!((bench.count(Place::Buried).await, bench.delivered("eu-west-1/111111111111/mails")), (0, 100));
    bench.end().await;
}
