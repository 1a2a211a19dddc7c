//! A Lambda with weather: for a while each, it throttles, fails, loses replies, is slow, cannot be reached, or is
//! misconfigured.

use std::sync::Arc;
use std::time::Duration;

use sendoff::clock::Clock;
use sendoff::dispatch::{Answer, Call, Failure, FailureKind, Invoke, Reply};
use sendoff::event::Function;

use crate::ledger::{When, serial_of};
use crate::outages::How;
use crate::sabotage::Bug;
use crate::scenario::{STEADY, Weather};
use crate::world::World;

#[derive(Clone)]
pub struct FlakyLambda {
    pub world: Arc<World>,
    pub life: u32,
    pub clock: Clock,
}

/// What Lambda does with one call.
struct Plan {
    /// Whether it takes the event.
    takes: bool,
    /// Whether it counts as an attempt.
    charged: bool,
    reply: Reply,
}

/// One call in flight, counted until it ends or is dropped.
struct Slot {
    world: Arc<World>,
    function: String,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.world.ledger().left(&self.function);
    }
}

impl Invoke for FlakyLambda {
    async fn invoke(&self, call: Call) -> Reply {
        let world = &self.world;
        world.point(self.life, "before a call").await;
        let function = call.function.name.as_str().to_owned();
        let found = {
            let when = When { life: self.life, now: world.now(), daemon_now: self.clock.now(), slack: self.slack() };
            world.ledger().called(&call, &world.scenario, when)
        };
        let slot = Slot { world: world.clone(), function: function.clone() };
        for (promise, what) in found {
            world.violated(promise, what);
        }
        let serial = serial_of(&call.payload).unwrap_or(0);
        world.note(|| format!("call {function} order {serial}"));
        world.pass(20).await;
        world.point(self.life, "a call arrives").await;

        let weather = self.weather(&function);
        if weather == Weather::Slow {
            world.pass(if world.scenario.confirm { 300_000 } else { 40_000 }).await;
        }
        let Plan { takes, charged, reply } = self.plan(&function, serial, weather);
        if takes {
            world.ledger().fate(serial).taken += 1;
        }
        world.pass(20).await;
        world.point(self.life, "a reply arrives").await;
        {
            let mut ledger = world.ledger();
            let fate = ledger.fate(serial);
            fate.replies += 1;
            fate.charged += u32::from(charged);
            fate.said = match &reply {
                Reply::Answer(answer) => answer.function_error.clone().or(answer.code.clone()),
                Reply::NotSent(failure) | Reply::Lost(failure) => Some(failure.kind.as_str().to_owned()),
            };
            if let Reply::Answer(answer) = &reply {
                let is_success = answer.status < 300 && !answer.foreign && answer.function_error.is_none();
                fate.confirmed += u32::from(is_success);
                if let Some(wait) = answer.retry_after {
                    // The lane cannot know this before it reads the reply. Leases that were requested until then still
                    // go.
                    let from = world.now().plus(self.slack());
                    ledger.pause(&function, self.life, from, world.now().plus(wait));
                }
            }
        }
        world.note(|| format!("reply {function} order {serial} {}", reply.in_words()));
        drop(slot);
        match reply {
            Reply::Answer(answer) if world.scenario.bug == Some(Bug::BelieveFunctionErrors) => {
                Reply::Answer(Answer { function_error: None, ..answer })
            }
            Reply::Answer(answer) if world.scenario.bug == Some(Bug::BelieveForeigners) => {
                Reply::Answer(Answer { foreign: false, ..answer })
            }
            reply => reply,
        }
    }

    async fn dry_run(&self, function: Function) -> Reply {
        let world = &self.world;
        world.point(self.life, "before a dry run").await;
        world.pass(40).await;
        let outage = world.outage(function.name.as_str());
        let reply = outage.map(|how| failing(how).reply);
        let reply = reply.unwrap_or_else(|| match self.weather(function.name.as_str()) {
            Weather::Fair | Weather::Slow | Weather::Throttled => uncharged(204, "").reply,
            Weather::Errors => charged(500, "ServiceException").reply,
            Weather::Lossy => Reply::Lost(failure(FailureKind::Closed)),
            Weather::Away => Reply::NotSent(failure(FailureKind::Connect)),
            Weather::Operator => uncharged(403, "AccessDeniedException").reply,
        });
        world.note(|| format!("dry run of {}: {}", function.name, reply.in_words()));
        world.point(self.life, "a dry run's reply arrives").await;
        reply
    }
}

impl FlakyLambda {
    fn weather(&self, function: &str) -> Weather {
        let world = &self.world;
        if world.scenario.account_faults && matches!(world.weather("account"), Weather::Operator | Weather::Throttled) {
            return Weather::Operator;
        }
        if function == STEADY { Weather::Fair } else { world.weather(function) }
    }

    /// How long a lease may take.
    fn slack(&self) -> Duration {
        Duration::from_millis(3 * self.world.scenario.commit_ms_max + 50)
    }

    fn plan(&self, function: &str, serial: u64, weather: Weather) -> Plan {
        let world = &self.world;
        let steady = function == STEADY;
        let often = !steady && world.fault(60);
        let rarely = !steady && world.fault(3);
        if world.ledger().orders[&serial].refused {
            return charged(400, "InvalidRequestContentException");
        }
        let outage = world.outage(function);
        world.ledger().failed_in_outages += u64::from(outage.is_some());
        if let Some(how) = outage {
            return failing(how);
        }
        if world.ledger().orders[&serial].poison {
            return failing(world.any_failure());
        }
        let capacity = world.scenario.policy.concurrency_max / 2 + 1;
        if !steady && !world.is_calm() && world.ledger().in_flight(function) > capacity {
            return self.throttle("ReservedFunctionConcurrentInvocationLimitExceeded", false);
        }
        match weather {
            Weather::Throttled if often => self.throttle("ReservedFunctionConcurrentInvocationLimitExceeded", true),
            Weather::Errors | Weather::Slow if often && world.scenario.confirm => Plan {
                takes: false,
                charged: true,
                reply: Reply::Answer(Answer {
                    status: 200,
                    function_error: Some("Unhandled".into()),
                    message: "the function's own words".into(),
                    ..Answer::default()
                }),
            },
            Weather::Errors if often && world.fault(50) => charged(500, "ServiceException"),
            Weather::Errors if often => charged(502, ""),
            Weather::Lossy if often => {
                let takes = world.fault(50);
                let kind = if takes { FailureKind::ReadTimeout } else { FailureKind::Closed };
                Plan { takes, charged: true, reply: Reply::Lost(failure(kind)) }
            }
            Weather::Away => {
                Plan { takes: false, charged: false, reply: Reply::NotSent(failure(FailureKind::Connect)) }
            }
            Weather::Operator if world.scenario.account_faults => {
                if world.fault(50) {
                    self.throttle("CallerRateLimitExceeded", true)
                } else {
                    uncharged(403, "ExpiredTokenException")
                }
            }
            Weather::Operator => uncharged(403, "AccessDeniedException"),
            Weather::Fair | Weather::Throttled | Weather::Errors | Weather::Lossy | Weather::Slow if rarely => {
                Plan { takes: true, charged: true, reply: Reply::Lost(failure(FailureKind::Closed)) }
            }
            Weather::Fair | Weather::Throttled | Weather::Errors | Weather::Lossy | Weather::Slow => {
                let status = if !steady && world.scenario.confirm { 200 } else { 202 };
                let answer = Answer { status, ..Answer::default() };
                Plan { takes: true, charged: false, reply: Reply::Answer(answer) }
            }
        }
    }

    fn throttle(&self, reason: &str, may_say_when: bool) -> Plan {
        let says_when = may_say_when && self.world.fault(50);
        let seconds = self.world.draw(|rng| if rng.u8(0..10) == 0 { rng.u64(1..300) } else { rng.u64(1..20) });
        let retry_after = says_when.then(|| Duration::from_secs(seconds));
        let answer = Answer {
            status: 429,
            code: Some("TooManyRequestsException".into()),
            throttle_reason: Some(reason.into()),
            retry_after,
            ..Answer::default()
        };
        Plan { takes: false, charged: false, reply: Reply::Answer(answer) }
    }
}

fn charged(status: u16, code: &str) -> Plan {
    Plan { charged: true, ..uncharged(status, code) }
}

fn uncharged(status: u16, code: &str) -> Plan {
    let code = (!code.is_empty()).then(|| code.to_owned());
    let answer = Answer { status, code, message: "no".into(), request_id: Some("r".into()), ..Answer::default() };
    Plan { takes: false, charged: false, reply: Reply::Answer(answer) }
}

/// A failure that may be an outage's fault or the event's own.
fn failing(how: How) -> Plan {
    let lost = |kind| Plan { takes: false, charged: true, reply: Reply::Lost(failure(kind)) };
    match how {
        How::Answers => charged(500, "ServiceException"),
        How::ProxyAnswers => charged(503, ""),
        How::TimesOut => lost(FailureKind::ReadTimeout),
        How::Closes => lost(FailureKind::Closed),
        How::ForeignSuccess => {
            let answer = Answer { status: 200, foreign: true, ..Answer::default() };
            Plan { takes: false, charged: true, reply: Reply::Answer(answer) }
        }
    }
}

fn failure(kind: FailureKind) -> Failure {
    Failure { kind, message: "the weather".into() }
}
