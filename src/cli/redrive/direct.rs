//! The destination that invokes Lambda directly. Without an outbox it remembers nothing: a message that is received twice is
//! invoked twice, with the same key.

use futures_util::future::join_all;

use crate::aws;
use crate::cli::{Exit, Failure};
use crate::clock::Clock;
use crate::config::Config;
use crate::deadletter::Trouble;
use crate::deadletter::admit::{NotAdmitted, Rules, admit};
use crate::deadletter::letter::Letter;
use crate::deadletter::redrive::{Acceptance, Destination};
use crate::dispatch::verdict::{Outcome, Scope, outcome_of};
use crate::dispatch::{Call, Invoke, Mode};

/// The most concurrent calls, and so the most duplicates after a crash. Fewer if the configuration allows fewer.
const CALLS_MAX: usize = 16;

/// Lambda as a destination.
pub(super) struct Direct<I> {
    lambda: I,
    rules: Rules,
    clock: Clock,
    calls_max: usize,
}

impl Direct<aws::direct::Client> {
    pub(super) async fn new(config: &Config, shared: &aws::Shared, clock: &Clock) -> Result<Self, Failure> {
        let lambda = aws::direct::Client::new(shared, &config.lambda, config.transport, clock.clone()).await;
        let lambda = lambda.map_err(|error| Failure::new(Exit::Configuration, error))?;
        let dispatch = &config.dispatch;
        let policies = dispatch.functions.iter().map(|(_, policy)| policy).chain([&dispatch.policy]);
        let allowed = policies.map(|policy| policy.concurrency_max).chain([dispatch.in_flight_max]).min();
        let calls_max = allowed.and_then(|allowed| usize::try_from(allowed).ok()).unwrap_or(1).clamp(1, CALLS_MAX);
        let home = config.ingest.home.clone().or_region(shared.region());
        let rules = Rules { home, redrives_max: config.dead_letter.redrives_max };
        Ok(Self { lambda, rules, clock: clock.clone(), calls_max })
    }
}

impl<I: Invoke> Direct<I> {
    async fn invoke(&self, letter: &Letter) -> Result<Acceptance, Trouble> {
        // A minted key would differ each time the message is received.
        let key = letter.key.clone().unwrap_or_else(|| letter.origin.clone());
        let event = match admit(Letter { key: Some(key), ..letter.clone() }, &self.rules, &self.clock) {
            Ok(redriven) => redriven.event,
            Err(NotAdmitted::Ceiling(why)) => return Ok(Acceptance::Ceiling(why)),
            Err(NotAdmitted::Invalid(why)) => return Ok(Acceptance::Refused(why)),
        };
        let call = Call {
            function: event.function,
            key: event.key,
            carried: event.carried,
            payload: event.payload,
            mode: Mode::Event,
        };
        let reply = self.lambda.invoke(call).await;
        let why = reply.in_words();
        Ok(match outcome_of(&reply, Mode::Event) {
            Outcome::Delivered => Acceptance::Accepted,
            Outcome::Throttled { retry_after, .. } => Acceptance::Busy { why, retry_after },
            // Without an answer, Lambda may have accepted the event. The next try is then a duplicate with the same
            // key.
            Outcome::Transient
            | Outcome::Foreign
            | Outcome::Lost
            | Outcome::NotSent
            | Outcome::Unready
            | Outcome::FunctionFailed => Acceptance::Busy { why, retry_after: None },
            Outcome::Refused | Outcome::Operator { scope: Scope::Lane } => Acceptance::Refused(why),
            Outcome::Rejected | Outcome::Operator { scope: Scope::Account | Scope::Caller } => {
                return Err(Trouble { code: "lambda".to_owned(), message: why, transient: false });
            }
        })
    }
}

impl<I: Invoke> Destination for Direct<I> {
    fn letters_max(&self) -> usize {
        self.calls_max
    }

    async fn accept(&self, letters: &[Letter]) -> Result<Vec<Acceptance>, Trouble> {
        let answers = join_all(letters.iter().map(|letter| self.invoke(letter))).await;
        if answers.iter().all(Result::is_err) {
            return answers.into_iter().collect();
        }
        // Letters that were accepted beside a trouble must still be deleted.
        let waiting = |trouble: Trouble| Acceptance::Busy { why: trouble.message, retry_after: None };
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(waiting)).collect())
    }
}

#[cfg(test)]
mod tests;
