//! Decides what an answer means. Pure: from a reply to an outcome, and from an outcome to what is written and who must
//! pause.
//!
//! Two rules decide the hard cases. First, an event is charged for a failure that is its own fault, as far as the lane
//! can tell ([`Blame`], docs/adr/0012). Other failures do not charge it. Second, an event is buried at once only if the
//! error code is known to be final. An unknown code may be the event's fault, so the event is neither lost, nor buried
//! at once, nor retried for ever.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limiter::Load;
use super::{Failure, FailureKind, Mode, Policy, Reply};
use crate::backoff;
use crate::clock::{Clock, UnixMillis};
use crate::event::Event;
use crate::event::sendable::unsendable;
use crate::outbox::{Burial, BuryReason, History, LastOutcome, Settlement};

mod codes;

use codes::Class;

/// The longest `Retry-After` that sendoff obeys. Longer ones are cut to it.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

/// The longest hold between two probes that find out whether an operator has repaired something.
pub const HOLD_MAX: Duration = Duration::from_secs(5 * 60);

/// The longest wait of a held lane whose endpoint cannot be reached.
pub const UNREACHABLE_HOLD_MAX: Duration = Duration::from_secs(5);

/// The longest wait between two probes of a lane in an outage. The end of the outage is noticed within it.
pub const OUTAGE_HOLD_MAX: Duration = Duration::from_secs(20);

/// Lambda's status for an event that it has queued.
const ACCEPTED: u16 = 202;

/// Lambda's status for a call whose function has ended.
const RETURNED: u16 = 200;

/// Lambda's status for a dry run of a function that may be invoked.
const WELL: u16 = 204;

/// The most bytes kept of an error message: as many as Lambda's own dead letters have.
pub const MESSAGE_BYTES_MAX: usize = 1_024;

/// The most bytes of a hold's reason.
const REASON_BYTES_MAX: usize = 256;

/// The result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Lambda accepted the event (202), or the awaited call has returned (200).
    Delivered,
    /// The function ran and failed. Seen only in confirm mode.
    FunctionFailed,
    /// Lambda throttled the scope. Not the event's fault.
    Throttled { scope: Scope, retry_after: Option<Duration> },
    /// A failure that may pass, or that sendoff does not know.
    Transient,
    /// The signature was rejected: the credentials are wrong, or something in between changes this one request.
    Rejected,
    /// The function is being created, updated or connected. This passes by itself.
    Unready,
    /// Something in between answered as if it had accepted the event.
    Foreign,
    /// No answer arrived. Lambda may have the event, so a retry may deliver it twice.
    Lost,
    /// The request certainly reached nobody.
    NotSent,
    /// Somebody must repair something in the scope. Not the event's fault.
    Operator { scope: Scope },
    /// Lambda will never accept this event.
    Refused,
}

impl Outcome {
    /// Every word of [`Outcome::as_str`].
    pub const WORDS: [&str; 11] = [
        "delivered",
        "function-failed",
        "throttled",
        "transient",
        "rejected",
        "unready",
        "foreign",
        "lost",
        "not-sent",
        "held",
        "refused",
    ];

    /// The word used in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::FunctionFailed => "function-failed",
            Self::Throttled { .. } => "throttled",
            Self::Transient => "transient",
            Self::Rejected => "rejected",
            Self::Unready => "unready",
            Self::Foreign => "foreign",
            Self::Lost => "lost",
            Self::NotSent => "not-sent",
            Self::Operator { .. } => "held",
            Self::Refused => "refused",
        }
    }

    /// What this says about how many attempts of `scope` may be in flight.
    pub fn load(&self, scope: Scope) -> Load {
        match self {
            Self::Delivered | Self::FunctionFailed | Self::Refused => Load::Taken,
            Self::Throttled { scope: throttled, .. } if *throttled == scope => Load::TooMuch,
            // A call that hangs holds slots of its lane. It says nothing about the account or region.
            Self::Lost if scope == Scope::Lane => Load::TooMuch,
            Self::Throttled { .. }
            | Self::Lost
            | Self::Transient
            | Self::Foreign
            | Self::Rejected
            | Self::Unready
            | Self::NotSent
            | Self::Operator { .. } => Load::Unknown,
        }
    }

    /// Whether the event or an outage may be at fault, so that [`Blame`] must decide.
    pub fn is_doubtful(&self) -> bool {
        match self {
            Self::Transient | Self::Foreign | Self::Lost | Self::FunctionFailed | Self::Rejected => true,
            Self::Delivered
            | Self::Throttled { .. }
            | Self::Unready
            | Self::NotSent
            | Self::Operator { .. }
            | Self::Refused => false,
        }
    }
}

/// Whom a throttle or a hold concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// One function.
    Lane,
    /// All functions of the account in the region.
    Account,
    /// All calls into the region, to functions of any account: they use the same credentials.
    Caller,
}

impl Scope {
    /// The word used in logs and the operator's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Account => "account",
            Self::Caller => "caller",
        }
    }
}

/// Whose fault a doubtful failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The event's own. It is charged.
    Event,
    /// Not known yet. Lambda must be asked (`DryRun`).
    Ask,
    /// Not known, and Lambda is being asked for another event of the lane. This event waits, uncharged.
    Wait,
    /// An outage. The event waits, uncharged, and the scope is held.
    Outage { scope: Scope },
}

/// What a dry run says about the event that failed. Lambda's 204 means that function and service work. So does an
/// answer that refuses the dry run itself: emulators without dry runs give one.
pub fn blame_after_dry_run(reply: &Reply) -> Blame {
    let well = match reply {
        Reply::Answer(answer) => {
            let refused = answer.code.as_deref().and_then(codes::class_of) == Some(Class::Refused);
            answer.status == WELL && !answer.foreign || refused
        }
        Reply::NotSent(_) | Reply::Lost(_) => false,
    };
    if well { Blame::Event } else { Blame::Outage { scope: Scope::Lane } }
}

/// What to write, and what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub settlement: Settlement,
    pub hold: Option<Hold>,
}

/// No new attempts in the scope before `until`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub scope: Scope,
    pub kind: HoldKind,
    pub until: UnixMillis,
    /// Code and message, for people.
    pub reason: String,
}

/// Why a scope is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HoldKind {
    Throttled,
    Unreachable,
    /// Everything fails, and the events are not at fault.
    Outage,
    /// The function is being created, updated or connected.
    Unready,
    /// An operator must repair something.
    Operator,
    /// The ceiling of the spend guard is reached.
    Spent,
}

impl HoldKind {
    /// The word used in logs and the operator's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Unreachable => "unreachable",
            Self::Outage => "outage",
            Self::Unready => "unready",
            Self::Operator => "held",
            Self::Spent => "spent",
        }
    }

    /// The longest wait between two probes. `None` means that the waits do not grow: Lambda or the spend guard sets their
    /// length.
    pub fn wait_max(self) -> Option<Duration> {
        match self {
            Self::Throttled | Self::Spent => None,
            Self::Unreachable => Some(UNREACHABLE_HOLD_MAX),
            Self::Outage | Self::Unready => Some(OUTAGE_HOLD_MAX),
            Self::Operator => Some(HOLD_MAX),
        }
    }
}

/// What a reply to a call in this mode means. Depends only on code, status and kind of failure.
pub fn outcome_of(reply: &Reply, mode: Mode) -> Outcome {
    let answer = match reply {
        Reply::NotSent(failure) => return not_sent(failure.kind),
        Reply::Lost(_) => return Outcome::Lost,
        Reply::Answer(answer) => answer,
    };
    if answer.foreign || (200..300).contains(&answer.status) {
        let accepted = match mode {
            Mode::Event => ACCEPTED,
            Mode::Confirm { .. } => RETURNED,
        };
        return match answer.function_error {
            _ if answer.foreign || answer.status != accepted => Outcome::Foreign,
            Some(_) => Outcome::FunctionFailed,
            None => Outcome::Delivered,
        };
    }
    let throttled = |scope| Outcome::Throttled { scope, retry_after: answer.retry_after };
    match answer.code.as_deref().and_then(codes::class_of) {
        Some(Class::Transient) => Outcome::Transient,
        Some(Class::ThrottledLane) => throttled(Scope::Lane),
        Some(Class::ThrottledCaller) => throttled(Scope::Caller),
        Some(Class::ThrottledByReason) => throttled(throttle_scope(answer.throttle_reason.as_deref())),
        Some(Class::OperatorLane) => Outcome::Operator { scope: Scope::Lane },
        Some(Class::OperatorCaller) => Outcome::Operator { scope: Scope::Caller },
        Some(Class::Rejected) => Outcome::Rejected,
        Some(Class::Unready) => Outcome::Unready,
        Some(Class::Refused) => Outcome::Refused,
        // Status 429 means "too fast", whoever sends it (RFC 6585 section 4).
        None if answer.status == 429 => throttled(Scope::Lane),
        // An unknown code, perhaps not Lambda's: see the head of this file.
        None => Outcome::Transient,
    }
}

/// The outcome of an event's attempt. If no request can be built and the configuration is at fault, the lane is held.
/// If no configuration could send the event, it is refused, so that it does not block others.
pub fn outcome_for(event: &Event, reply: &Reply, mode: Mode) -> Outcome {
    let is_unbuildable =
        matches!(reply, Reply::NotSent(Failure { kind: FailureKind::Unbuildable, .. })) && unsendable(event).is_some();
    if is_unbuildable { Outcome::Refused } else { outcome_of(reply, mode) }
}

fn not_sent(kind: FailureKind) -> Outcome {
    match kind {
        FailureKind::Credentials => Outcome::Operator { scope: Scope::Caller },
        FailureKind::Unbuildable => Outcome::Operator { scope: Scope::Lane },
        FailureKind::Connect | FailureKind::ReadTimeout | FailureKind::Closed | FailureKind::Panicked => {
            Outcome::NotSent
        }
    }
}

/// Whom a 429 concerns, by its `Reason`. Only limits that all functions share slow all of them. The limit on creating
/// snapshots concerns only functions that start from one, so it slows one lane.
fn throttle_scope(reason: Option<&str>) -> Scope {
    match reason {
        Some("CallerRateLimitExceeded") => Scope::Caller,
        Some("ConcurrentInvocationLimitExceeded") => Scope::Account,
        Some(_) | None => Scope::Lane,
    }
}

/// What becomes of an event after an attempt. `history` is from before the attempt, `now` is its end. `blame` counts
/// only if the outcome is doubtful. No retry is due after the event's deadline, so that the event is buried in time.
#[expect(clippy::too_many_arguments, reason = "all that a verdict depends on, and nothing else")]
pub fn decide(
    outcome: &Outcome,
    blame: Blame,
    reply: &Reply,
    event: &Event,
    history: &History,
    policy: &Policy,
    now: UnixMillis,
    clock: &Clock,
) -> Verdict {
    let history =
        History { calls: history.calls.saturating_add(1), last: Some(last_outcome(reply, now)), ..history.clone() };
    let attempt = Attempt { reply, event, policy, now, clock };
    match outcome {
        Outcome::Delivered => Verdict { settlement: Settlement::Delivered, hold: None },
        Outcome::Refused => Verdict { settlement: bury(charged(history), BuryReason::Refused, now), hold: None },
        Outcome::Transient | Outcome::Foreign | Outcome::Lost | Outcome::FunctionFailed | Outcome::Rejected => {
            attempt.doubt(history, blame)
        }
        Outcome::Throttled { scope, retry_after } => attempt.throttle(history, *scope, *retry_after),
        Outcome::NotSent => attempt.set_back(history, Scope::Lane, HoldKind::Unreachable),
        Outcome::Unready => attempt.set_back(history, Scope::Lane, HoldKind::Unready),
        Outcome::Operator { scope } => attempt.set_back(history, *scope, HoldKind::Operator),
    }
}

/// When an event is buried, whatever its attempts brought: `age_max` after its acceptance (or after its `deliver_at`),
/// or at its own `expires_at` if that is sooner. An age counts the time that has passed, however the clock was set
/// since.
pub fn deadline(event: &Event, age_max: Duration, clock: &Clock) -> UnixMillis {
    let began = match event.deliver_at {
        Some(at) if at > clock.now() => at,
        Some(at) => clock.present(at),
        None => clock.present(event.accepted_at),
    };
    let by_age = began.plus(age_max);
    event.expires_at.map_or(by_age, |expires_at| expires_at.min(by_age))
}

/// Buries an event, to be shipped at once.
pub fn bury(history: History, reason: BuryReason, now: UnixMillis) -> Settlement {
    Settlement::Bury(History { due: now, burial: Some(Burial { reason, at: now, unshippable: None }), ..history })
}

/// At most `bytes_max` bytes of `text`, cut at a character.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

fn charged(history: History) -> History {
    History { attempts: history.attempts.saturating_add(1), setbacks: 0, ..history }
}

/// What the decisions about one attempt share.
struct Attempt<'a> {
    reply: &'a Reply,
    event: &'a Event,
    policy: &'a Policy,
    now: UnixMillis,
    clock: &'a Clock,
}

impl Attempt<'_> {
    /// `history` includes this attempt already.
    fn charge(&self, history: History) -> Settlement {
        if history.attempts >= self.policy.attempts_max {
            return bury(history, BuryReason::RetriesExhausted, self.now);
        }
        let floor = self.retry_after().unwrap_or_default();
        let wait = self.wait(history.attempts - 1, self.policy.backoff_cap, floor);
        self.retry(history, wait)
    }

    fn throttle(&self, history: History, scope: Scope, retry_after: Option<Duration>) -> Verdict {
        let floor = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        let wait = self.wait(history.throttles, self.policy.backoff_cap, floor);
        // If Lambda gives no time, nothing is held: the limiter finds how fast the lane or account may go.
        let length = retry_after.map(|_| floor);
        let history = History { throttles: history.throttles.saturating_add(1), setbacks: 0, ..history };
        Verdict {
            hold: length.map(|length| self.hold(&history, scope, HoldKind::Throttled, length)),
            settlement: self.retry(history, wait),
        }
    }

    /// Decides about a failure that may be the event's own fault.
    fn doubt(&self, history: History, blame: Blame) -> Verdict {
        match blame {
            Blame::Event => Verdict { settlement: self.charge(charged(history)), hold: None },
            Blame::Outage { scope: Scope::Lane } => self.set_back(history, Scope::Lane, HoldKind::Outage),
            Blame::Outage { scope } => self.set_back(history, scope, HoldKind::Operator),
            Blame::Ask | Blame::Wait => Verdict { hold: None, ..self.set_back(history, Scope::Lane, HoldKind::Outage) },
        }
    }

    /// Retries without a charge. The event waits at least as long as its scope is held, but not much longer: the outage
    /// may be over by then, and the event nearly too old.
    fn set_back(&self, history: History, scope: Scope, kind: HoldKind) -> Verdict {
        let cap = kind.wait_max().unwrap_or(self.policy.backoff_cap);
        let length = backoff::ceiling(history.setbacks, self.policy.backoff_base, cap);
        let length = length.max(self.retry_after().unwrap_or_default());
        let wait = self.wait(history.setbacks, cap, length);
        let history = History { setbacks: history.setbacks.saturating_add(1), ..history };
        Verdict { hold: Some(self.hold(&history, scope, kind, length)), settlement: self.retry(history, wait) }
    }

    fn wait(&self, n: u32, cap: Duration, floor: Duration) -> Duration {
        backoff::delay(n, self.policy.backoff_base, cap, floor, self.clock)
    }

    /// Retries after `wait`, unless the event is past its deadline.
    fn retry(&self, history: History, wait: Duration) -> Settlement {
        let deadline = deadline(self.event, self.policy.age_max, self.clock);
        if self.now >= deadline {
            return bury(history, BuryReason::EventAgeExceeded, self.now);
        }
        Settlement::RetryAt(History { due: self.now.plus(wait).min(deadline), ..history })
    }

    fn hold(&self, history: &History, scope: Scope, kind: HoldKind, length: Duration) -> Hold {
        let reason = history.last.as_ref().map(|last| format!("{}: {}", last.code, last.message)).unwrap_or_default();
        let reason = cut(&reason, REASON_BYTES_MAX).to_owned();
        Hold { scope, kind, until: self.now.plus(length), reason }
    }

    /// The wait that the answer asks for. A proxy's 503 may have one, as well as Lambda's 429.
    fn retry_after(&self) -> Option<Duration> {
        match self.reply {
            Reply::Answer(answer) => answer.retry_after.map(|wait| wait.min(RETRY_AFTER_MAX)),
            Reply::NotSent(_) | Reply::Lost(_) => None,
        }
    }
}

/// What is kept of a reply. An answer without a code gets one from its status, for example `http-502`.
fn last_outcome(reply: &Reply, at: UnixMillis) -> LastOutcome {
    let (status, code, message, request_id) = match reply {
        Reply::Answer(answer) => {
            let code = answer.code.clone().or_else(|| answer.function_error.clone());
            let code = code.unwrap_or_else(|| format!("http-{}", answer.status));
            (answer.status, code, &answer.message, answer.request_id.clone())
        }
        Reply::NotSent(failure) | Reply::Lost(failure) => (0, failure.kind.as_str().to_owned(), &failure.message, None),
    };
    LastOutcome { at, status, code, message: cut(message, MESSAGE_BYTES_MAX).to_owned(), request_id }
}

#[cfg(test)]
mod tests;
