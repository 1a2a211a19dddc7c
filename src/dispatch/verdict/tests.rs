use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::dispatch::{Answer, Failure};
use crate::event::{Carried, EventId, Function, FunctionName, IdempotencyKey, KeySource};

const NOW: UnixMillis = UnixMillis(1_000_000_000);

fn policy() -> Policy {
    Policy {
        attempts_max: 3,
        age_max: Duration::from_secs(3_600),
        backoff_base: Duration::from_millis(500),
        backoff_cap: Duration::from_secs(60),
        concurrency_max: 8,
        rate: 0,
        invocations_per_hour_max: 0,
        mode: crate::dispatch::Mode::Event,
    }
}

fn event() -> Event {
    Event {
        id: EventId::from_bytes([7; 16]),
        function: Function {
            name: FunctionName::new("orders"),
            address: "orders".into(),
            qualifier: None,
            region: None,
        },
        key: IdempotencyKey { value: "k".into(), source: KeySource::Minted },
        carried: Carried::default(),
        payload: Bytes::new(),
        accepted_at: UnixMillis(NOW.0 - 1_000),
        deliver_at: None,
        expires_at: None,
        redrives: 0,
    }
}

const CONFIRM: Mode = Mode::Confirm { timeout: Duration::from_secs(900) };

fn answer(status: u16, code: Option<&str>) -> Reply {
    Reply::Answer(Answer { status, code: code.map(Into::into), message: "why".into(), ..Answer::default() })
}

fn throttle(reason: Option<&str>, retry_after: Option<Duration>) -> Reply {
    Reply::Answer(Answer {
        status: 429,
        code: Some("TooManyRequestsException".into()),
        message: "Rate Exceeded.".into(),
        throttle_reason: reason.map(Into::into),
        retry_after,
        request_id: Some("r-1".into()),
        ..Answer::default()
    })
}

fn not_sent(kind: FailureKind) -> Reply {
    Reply::NotSent(Failure { kind, message: "refused".into() })
}

fn lost(kind: FailureKind) -> Reply {
    Reply::Lost(Failure { kind, message: "reset".into() })
}

fn judge_at(now: UnixMillis, reply: &Reply, event: &Event, history: &History) -> Verdict {
    decide(&outcome_of(reply, Mode::Event), Blame::Event, reply, event, history, &policy(), now, &Clock::seeded(NOW, 1))
}

fn judge(reply: &Reply, history: &History) -> Verdict {
    judge_at(NOW, reply, &event(), history)
}

fn retried(verdict: &Verdict) -> &History {
    match &verdict.settlement {
        Settlement::RetryAt(history) => history,
        other @ (Settlement::Delivered
        | Settlement::Release
        | Settlement::Bury(_)
        | Settlement::Shipped
        | Settlement::HandedOver) => {
            panic!("{other:?} instead of a retry")
        }
    }
}

fn buried(verdict: &Verdict) -> (&History, BuryReason) {
    match &verdict.settlement {
        Settlement::Bury(history) => (history, history.burial.as_ref().unwrap().reason),
        other @ (Settlement::Delivered
        | Settlement::Release
        | Settlement::RetryAt(_)
        | Settlement::Shipped
        | Settlement::HandedOver) => {
            panic!("{other:?} instead of a burial")
        }
    }
}

#[test]
fn only_lambdas_own_acceptance_is_a_delivery() {
    for (mode, accepted) in [(Mode::Event, 202), (CONFIRM, 200)] {
        for status in 100..600 {
            let outcome = outcome_of(&answer(status, None), mode);
            assert_eq!(outcome == Outcome::Delivered, status == accepted, "{status} in {mode:?}");
            let foreign = (200..300).contains(&status) && status != accepted;
            assert_eq!(outcome == Outcome::Foreign, foreign, "{status} in {mode:?}");
        }
        let page = Reply::Answer(Answer { status: accepted, foreign: true, ..Answer::default() });
        assert_eq!(outcome_of(&page, mode), Outcome::Foreign, "a captive portal's page");
    }
    assert_eq!(outcome_of(&answer(202, Some("Any")), Mode::Event), Outcome::Delivered, "the status decides");
}

#[test]
fn each_class_of_code_has_its_outcome() {
    use Outcome::{Operator, Refused, Throttled, Transient};
    let throttled = |scope| Throttled { scope, retry_after: None };
    for (status, code, outcome) in [
        (500, "ServiceException", Transient),
        (502, "EC2UnexpectedException", Outcome::Unready),
        (409, "ResourceConflictException", Outcome::Unready),
        (410, "EFSIOException", Outcome::Unready),
        (502, "ENINotReadyException", Outcome::Unready),
        (502, "ResourceNotReadyException", Outcome::Unready),
        (409, "SnapStartNotReadyException", Outcome::Unready),
        (502, "EC2ThrottledException", throttled(Scope::Lane)),
        (400, "ThrottlingException", throttled(Scope::Caller)),
        (503, "RequestLimitExceeded", throttled(Scope::Caller)),
        (404, "ResourceNotFoundException", Operator { scope: Scope::Lane }),
        (502, "KMSDisabledException", Operator { scope: Scope::Lane }),
        (402, "ServiceQuotaExceededException", Operator { scope: Scope::Lane }),
        (403, "AccessDeniedException", Operator { scope: Scope::Lane }),
        (403, "ExpiredTokenException", Operator { scope: Scope::Caller }),
        (403, "InvalidSignatureException", Outcome::Rejected),
        (403, "SignatureDoesNotMatch", Outcome::Rejected),
        (403, "UnrecognizedClientException", Operator { scope: Scope::Caller }),
        (400, "InvalidRequestContentException", Refused),
        (400, "ValidationException", Refused),
        (413, "RequestEntityTooLargeException", Refused),
        (413, "RequestTooLargeException", Refused),
        (415, "UnsupportedMediaTypeException", Transient),
        (409, "DurableExecutionAlreadyStartedException", Refused),
    ] {
        assert_eq!(outcome_of(&answer(status, Some(code)), Mode::Event), outcome, "{code}");
    }
}

#[test]
fn the_reason_of_a_429_says_whom_it_concerns() {
    for (reason, scope) in [
        (Some("ConcurrentInvocationLimitExceeded"), Scope::Account),
        (Some("CallerRateLimitExceeded"), Scope::Caller),
        (Some("ReservedFunctionConcurrentInvocationLimitExceeded"), Scope::Lane),
        (Some("ReservedFunctionInvocationRateLimitExceeded"), Scope::Lane),
        (Some("FunctionInvocationRateLimitExceeded"), Scope::Lane),
        (Some("ConcurrentSnapshotCreateLimitExceeded"), Scope::Lane),
        (Some("NewLimitExceeded"), Scope::Lane),
        (None, Scope::Lane),
    ] {
        let retry_after = Some(Duration::from_secs(2));
        assert_eq!(
            outcome_of(&throttle(reason, retry_after), Mode::Event),
            Outcome::Throttled { scope, retry_after },
            "{reason:?}"
        );
    }
}

#[test]
fn transport_failures_are_told_apart_by_what_is_certain() {
    for kind in [FailureKind::ReadTimeout, FailureKind::Closed, FailureKind::Connect] {
        assert_eq!(outcome_of(&lost(kind), Mode::Event), Outcome::Lost);
        assert_eq!(outcome_of(&not_sent(kind), Mode::Event), Outcome::NotSent);
    }
    assert_eq!(
        outcome_of(&not_sent(FailureKind::Credentials), Mode::Event),
        Outcome::Operator { scope: Scope::Caller }
    );
    assert_eq!(outcome_of(&not_sent(FailureKind::Unbuildable), Mode::Event), Outcome::Operator { scope: Scope::Lane });
}

#[test]
fn the_words_of_the_outcomes_are_distinct() {
    let scope = Scope::Lane;
    let words = [
        Outcome::Delivered,
        Outcome::Throttled { scope, retry_after: None },
        Outcome::Transient,
        Outcome::Foreign,
        Outcome::Rejected,
        Outcome::Unready,
        Outcome::Lost,
        Outcome::NotSent,
        Outcome::Operator { scope },
        Outcome::Refused,
    ]
    .map(|outcome| outcome.as_str());
    assert_eq!(
        words,
        [
            "delivered",
            "throttled",
            "transient",
            "foreign",
            "rejected",
            "unready",
            "lost",
            "not-sent",
            "held",
            "refused"
        ]
    );
}

proptest! {
    #[test]
    fn what_is_not_understood_is_neither_buried_at_once_nor_free(
        status in prop_oneof![100..200_u16, 300..600_u16],
        code in proptest::option::of("[A-Z][a-z]{3,20}Zz"),
    ) {
        let outcome = outcome_of(&answer(status, code.as_deref()), Mode::Event);
        if status == 429 {
            prop_assert_eq!(outcome, Outcome::Throttled { scope: Scope::Lane, retry_after: None });
        } else {
            prop_assert_eq!(outcome, Outcome::Transient);
        }
    }

    #[test]
    fn every_verdict_keeps_the_counts_and_the_deadline(
        reply in any_reply(), blame in any_blame(),
        attempts in 0..3_u32, throttles in any::<u32>(), setbacks in any::<u32>(), calls in any::<u32>(),
        age_millis in 0..7_200_000_u64, expires_in in proptest::option::of(0..7_200_000_u64), seed in any::<u64>(),
    ) {
        let mut event = event();
        event.accepted_at = UnixMillis(NOW.0 - age_millis);
        event.expires_at = expires_in.map(|millis| UnixMillis(event.accepted_at.0 + millis));
        let before = History { attempts, throttles, setbacks, calls, ..History::default() };
        let outcome = outcome_of(&reply, Mode::Event);
        let verdict = decide(&outcome, blame, &reply, &event, &before, &policy(), NOW, &Clock::seeded(NOW, seed));
        let deadline = deadline(&event, policy().age_max, &Clock::seeded(NOW, seed));
        match &verdict.settlement {
            Settlement::Delivered => prop_assert_eq!(outcome, Outcome::Delivered),
            Settlement::RetryAt(after) => {
                prop_assert!(after.due >= NOW && after.due <= deadline && NOW < deadline);
                prop_assert!(after.attempts < policy().attempts_max);
                prop_assert_eq!(after.calls, calls.saturating_add(1));
                prop_assert!(after.last.is_some() && after.burial.is_none());
            }
            Settlement::Bury(after) => {
                let reason = after.burial.as_ref().unwrap().reason;
                match reason {
                    BuryReason::Refused => prop_assert_eq!(outcome, Outcome::Refused),
                    BuryReason::RetriesExhausted => prop_assert!(after.attempts >= policy().attempts_max),
                    BuryReason::EventAgeExceeded => prop_assert!(NOW >= deadline),
                }
            }
            Settlement::Release | Settlement::Shipped | Settlement::HandedOver => prop_assert!(false, "not a verdict"),
        }
        if let Some(hold) = &verdict.hold {
            prop_assert!(hold.until > NOW && hold.until <= NOW.plus(RETRY_AFTER_MAX));
        }
    }
}

fn any_blame() -> impl Strategy<Value = Blame> {
    let scopes = [Scope::Lane, Scope::Caller].map(|scope| Blame::Outage { scope });
    proptest::sample::select([&[Blame::Event, Blame::Ask, Blame::Wait], &scopes[..]].concat())
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let code = proptest::sample::select(vec![
        None,
        Some("TooManyRequestsException"),
        Some("ServiceException"),
        Some("ResourceNotFoundException"),
        Some("ExpiredTokenException"),
        Some("ValidationException"),
        Some("Unheard"),
    ]);
    let kind = proptest::sample::select(vec![
        FailureKind::Connect,
        FailureKind::Credentials,
        FailureKind::Unbuildable,
        FailureKind::ReadTimeout,
        FailureKind::Closed,
    ]);
    let retry_after = proptest::option::of(any::<u64>().prop_map(Duration::from_millis));
    prop_oneof![
        (200..600_u16, code, retry_after).prop_map(|(status, code, retry_after)| Reply::Answer(Answer {
            status,
            code: code.map(Into::into),
            retry_after,
            ..Answer::default()
        })),
        (any::<bool>(), kind).prop_map(|(sent, kind)| if sent { lost(kind) } else { not_sent(kind) }),
    ]
}

#[test]
fn a_delivered_event_is_settled_whatever_its_age() {
    let late = UnixMillis(NOW.0 + 10_000_000);
    let verdict = judge_at(late, &answer(202, None), &event(), &History::default());
    assert_eq!(verdict, Verdict { settlement: Settlement::Delivered, hold: None });
}

#[test]
fn a_charged_failure_is_retried_until_the_attempts_are_used_up() {
    for reply in [answer(500, Some("ServiceException")), lost(FailureKind::Closed)] {
        let mut history = History { setbacks: 4, ..History::default() };
        for attempt in 1..=2 {
            let verdict = judge(&reply, &history);
            history = retried(&verdict).clone();
            assert_eq!((history.attempts, history.calls, history.setbacks), (attempt, attempt, 0));
            assert!(history.due <= NOW.plus(Duration::from_millis(500 << (attempt - 1))));
            assert_eq!(verdict.hold, None, "one event's failure delays no other");
        }
        let verdict = judge(&reply, &history);
        let (history, reason) = buried(&verdict);
        assert_eq!((history.attempts, reason, history.due), (3, BuryReason::RetriesExhausted, NOW));
    }
}

#[test]
fn a_failure_in_an_outage_costs_nothing_and_holds_the_lane_for_seconds() {
    let replies = [
        answer(500, Some("ServiceException")),
        answer(502, None),
        answer(403, None),
        answer(302, None),
        lost(FailureKind::ReadTimeout),
        lost(FailureKind::Closed),
        Reply::Answer(Answer { status: 200, foreign: true, ..Answer::default() }),
    ];
    let before = History { attempts: 2, setbacks: 30, ..History::default() };
    for reply in replies {
        let judge = |blame| {
            let outcome = outcome_of(&reply, Mode::Event);
            assert!(outcome.is_doubtful(), "{reply:?}");
            decide(&outcome, blame, &reply, &event(), &before, &policy(), NOW, &Clock::seeded(NOW, 1))
        };
        let held = judge(Blame::Outage { scope: Scope::Lane });
        let history = retried(&held);
        assert_eq!((history.attempts, history.setbacks, history.calls), (2, 31, 1));
        let hold = held.hold.as_ref().unwrap();
        assert_eq!((hold.scope, hold.kind), (Scope::Lane, HoldKind::Outage));
        assert_eq!(hold.until, NOW.plus(OUTAGE_HOLD_MAX));
        assert!(history.due <= NOW.plus(OUTAGE_HOLD_MAX * 9 / 8), "its end is noticed soon by a lone event, too");
        let waits = judge(Blame::Wait);
        assert_eq!((retried(&waits).attempts, &waits.hold), (2, &None));
        let guilty = judge(Blame::Event);
        assert_eq!((buried(&guilty).1, &guilty.hold), (BuryReason::RetriesExhausted, &None));
    }
}

#[test]
fn a_dry_run_clears_the_function_only_if_lambda_itself_says_so() {
    let outage = Blame::Outage { scope: Scope::Lane };
    for (reply, blame) in [
        (answer(204, None), Blame::Event),
        (answer(400, Some("InvalidParameterValueException")), Blame::Event),
        (answer(200, None), outage),
        (answer(202, None), outage),
        (Reply::Answer(Answer { status: 204, foreign: true, ..Answer::default() }), outage),
        (answer(500, Some("ServiceException")), outage),
        (answer(503, None), outage),
        (answer(404, Some("ResourceNotFoundException")), outage),
        (answer(429, Some("TooManyRequestsException")), outage),
        (lost(FailureKind::ReadTimeout), outage),
        (not_sent(FailureKind::Connect), outage),
    ] {
        assert_eq!(blame_after_dry_run(&reply), blame, "{reply:?}");
    }
}

#[test]
fn a_function_that_is_being_updated_costs_nothing_and_pauses_its_lane_for_seconds() {
    let history = History { attempts: 2, setbacks: 30, ..History::default() };
    let verdict = judge(&answer(409, Some("ResourceConflictException")), &history);
    assert_eq!(retried(&verdict).attempts, 2);
    let hold = verdict.hold.unwrap();
    assert_eq!((hold.scope, hold.kind, hold.until), (Scope::Lane, HoldKind::Unready, NOW.plus(OUTAGE_HOLD_MAX)));
}

#[test]
fn a_throttle_is_free_and_its_retry_after_is_obeyed_by_event_and_scope() {
    let asked = Duration::from_secs(20);
    let verdict = judge(
        &throttle(Some("CallerRateLimitExceeded"), Some(asked)),
        &History { attempts: 2, throttles: 1, ..History::default() },
    );
    let history = retried(&verdict);
    assert_eq!((history.attempts, history.throttles, history.calls), (2, 2, 1));
    assert!(history.due >= NOW.plus(asked) && history.due <= NOW.plus(asked * 9 / 8));
    let hold = verdict.hold.unwrap();
    assert_eq!((hold.scope, hold.kind, hold.until), (Scope::Caller, HoldKind::Throttled, NOW.plus(asked)));
    assert_eq!(hold.reason, "TooManyRequestsException: Rate Exceeded.");
}

#[test]
fn an_absurd_retry_after_is_cut() {
    let verdict = judge(&throttle(None, Some(Duration::MAX)), &History::default());
    assert_eq!(verdict.hold.unwrap().until, NOW.plus(RETRY_AFTER_MAX));
}

#[test]
fn a_throttle_without_a_time_is_left_to_the_limiter_of_its_scope() {
    let history = History { throttles: 30, ..History::default() };
    assert_eq!(judge(&throttle(None, None), &history).hold, None);
    assert_eq!(judge(&throttle(Some("CallerRateLimitExceeded"), None), &history).hold, None);
}

#[test]
fn an_error_of_the_function_is_charged_and_its_words_are_kept() {
    let failed = Reply::Answer(Answer {
        status: 200,
        message: "ValueError: no".into(),
        function_error: Some("Unhandled".into()),
        ..Answer::default()
    });
    assert_eq!(outcome_of(&failed, CONFIRM), Outcome::FunctionFailed);
    let judge = |reply: &Reply, history: &History| {
        decide(
            &outcome_of(reply, CONFIRM),
            Blame::Event,
            reply,
            &event(),
            history,
            &policy(),
            NOW,
            &Clock::seeded(NOW, 1),
        )
    };
    let verdict = judge(&failed, &History::default());
    let last = retried(&verdict).last.as_ref().unwrap();
    assert_eq!(
        (retried(&verdict).attempts, last.code.as_str(), last.message.as_str()),
        (1, "Unhandled", "ValueError: no")
    );
    let verdict = judge(&failed, &History { attempts: 2, ..History::default() });
    assert_eq!(buried(&verdict).1, BuryReason::RetriesExhausted);
}

#[test]
fn a_proxys_retry_after_is_obeyed_too() {
    let asked = Duration::from_secs(30);
    let reply = Reply::Answer(Answer { status: 503, retry_after: Some(asked), ..Answer::default() });
    let verdict = judge(&reply, &History::default());
    assert!(retried(&verdict).due >= NOW.plus(asked));
    assert_eq!(retried(&verdict).last.as_ref().unwrap().code, "http-503");
}

#[test]
fn an_unreachable_endpoint_costs_nothing_and_pauses_its_lane_for_seconds() {
    let verdict = judge(&not_sent(FailureKind::Connect), &History { attempts: 2, setbacks: 20, ..History::default() });
    let history = retried(&verdict);
    assert_eq!((history.attempts, history.setbacks), (2, 21));
    let hold = verdict.hold.as_ref().unwrap();
    let until = NOW.plus(UNREACHABLE_HOLD_MAX);
    assert_eq!((hold.scope, hold.kind, hold.until), (Scope::Lane, HoldKind::Unreachable, until));
    assert!(history.due >= until);
}

#[test]
fn a_hold_costs_nothing_and_grows_to_five_minutes() {
    let reply = answer(403, Some("AccessDeniedException"));
    let pause_after = |setbacks| {
        let verdict = judge(&reply, &History { attempts: 2, setbacks, ..History::default() });
        assert_eq!((retried(&verdict).attempts, retried(&verdict).setbacks), (2, setbacks + 1));
        let hold = verdict.hold.unwrap();
        assert_eq!((hold.scope, hold.kind), (Scope::Lane, HoldKind::Operator));
        hold.until.since(NOW)
    };
    assert_eq!([0, 1, 4, 60].map(pause_after), [500, 1_000, 8_000, 300_000].map(Duration::from_millis));
}

#[test]
fn a_refusal_is_buried_at_the_first_attempt() {
    let verdict = judge(&answer(413, Some("RequestEntityTooLargeException")), &History::default());
    assert_eq!((buried(&verdict).1, buried(&verdict).0.attempts), (BuryReason::Refused, 1));
}

#[test]
fn no_retry_outlives_the_deadline() {
    let mut event = event();
    let expires_at = NOW.plus(Duration::from_secs(10));
    event.expires_at = Some(expires_at);
    let reply = throttle(None, Some(Duration::from_secs(60)));
    assert_eq!(retried(&judge_at(NOW, &reply, &event, &History::default())).due, expires_at);
    let verdict = judge_at(expires_at, &reply, &event, &History::default());
    assert_eq!(buried(&verdict).1, BuryReason::EventAgeExceeded);
    event.expires_at = None;
    let too_old = event.accepted_at.plus(policy().age_max);
    let verdict = judge_at(too_old, &not_sent(FailureKind::Connect), &event, &History::default());
    assert_eq!(buried(&verdict).1, BuryReason::EventAgeExceeded, "however it fares");
}

#[test]
fn the_last_outcome_is_kept_and_its_message_cut_between_characters() {
    let message = format!("{}é and more", "x".repeat(MESSAGE_BYTES_MAX - 1));
    let reply = Reply::Answer(Answer {
        status: 500,
        code: Some("ServiceException".into()),
        message,
        request_id: Some("r-9".into()),
        ..Answer::default()
    });
    let verdict = judge(&reply, &History::default());
    let last = retried(&verdict).last.as_ref().unwrap();
    assert_eq!(last.message, "x".repeat(MESSAGE_BYTES_MAX - 1));
    assert_eq!((last.at, last.status, last.request_id.as_deref()), (NOW, 500, Some("r-9")));
    let verdict = judge(&lost(FailureKind::ReadTimeout), &History::default());
    let last = retried(&verdict).last.as_ref().unwrap();
    assert_eq!((last.status, last.code.as_str(), last.message.as_str()), (0, "read-timeout", "reset"));
}

#[test]
fn an_event_that_no_request_can_be_made_of_is_refused_and_holds_no_lane() {
    let unbuildable =
        Reply::NotSent(Failure { kind: FailureKind::Unbuildable, message: "failed to parse header".into() });
    assert_eq!(
        outcome_for(&event(), &unbuildable, Mode::Event),
        Outcome::Operator { scope: Scope::Lane },
        "the endpoint"
    );
    let mut torn = event();
    torn.carried.trace_header = Some("a\nb".into());
    assert_eq!(outcome_for(&torn, &unbuildable, Mode::Event), Outcome::Refused);
    let mut nowhere = event();
    nowhere.function.region = Some("eu central".into());
    assert_eq!(outcome_for(&nowhere, &unbuildable, Mode::Event), Outcome::Refused);
    let mut dotted = event();
    dotted.function.address = "..".into();
    assert_eq!(outcome_for(&dotted, &unbuildable, Mode::Event), Outcome::Refused, "stored by an earlier version");
    let credentials = Reply::NotSent(Failure { kind: FailureKind::Credentials, message: String::new() });
    assert_eq!(outcome_for(&torn, &credentials, Mode::Event), Outcome::Operator { scope: Scope::Caller });
}

#[test]
fn the_word_of_every_outcome_is_among_those_whose_series_begin_at_0() {
    // A new outcome does not compile here until it has a place in this chain.
    let next = |outcome: &Outcome| match outcome {
        Outcome::Delivered => Some(Outcome::FunctionFailed),
        Outcome::FunctionFailed => Some(Outcome::Throttled { scope: Scope::Lane, retry_after: None }),
        Outcome::Throttled { .. } => Some(Outcome::Transient),
        Outcome::Transient => Some(Outcome::Rejected),
        Outcome::Rejected => Some(Outcome::Unready),
        Outcome::Unready => Some(Outcome::Foreign),
        Outcome::Foreign => Some(Outcome::Lost),
        Outcome::Lost => Some(Outcome::NotSent),
        Outcome::NotSent => Some(Outcome::Operator { scope: Scope::Lane }),
        Outcome::Operator { .. } => Some(Outcome::Refused),
        Outcome::Refused => None,
    };
    let words = std::iter::successors(Some(Outcome::Delivered), next).map(|outcome| outcome.as_str());
    assert_eq!(words.collect::<Vec<_>>(), Outcome::WORDS);
}
