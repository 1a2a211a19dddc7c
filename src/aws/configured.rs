//! A client that may lack a region or CA certificates. The daemon then still starts and accepts events. They wait in
//! held lanes, whose reason says what is missing.

use super::Error;
use crate::deadletter::letter::Received;
use crate::deadletter::message::Message;
use crate::deadletter::redrive::Queue;
use crate::deadletter::{QueueFacts, Ship, Shipment, Trouble};
use crate::dispatch::{Call, Failure, FailureKind, Invoke, Reply};
use crate::event::Function;

/// A client, or what it lacks.
#[derive(Debug, Clone)]
pub enum Configured<C> {
    Ready(C),
    Incomplete(Error),
}

impl<C> Configured<C> {
    /// Only a missing setting makes a client incomplete, because a first start may lack just that. A wrong region or endpoint
    /// is an error.
    pub fn of(client: Result<C, Error>) -> Result<Self, Error> {
        match client {
            Ok(client) => Ok(Self::Ready(client)),
            Err(error @ (Error::NoRegion { .. } | Error::NoCertificates { .. })) => Ok(Self::Incomplete(error)),
            Err(
                error @ (Error::Region { .. }
                | Error::EndpointUrl { .. }
                | Error::OwnAddress { .. }
                | Error::Endpoint { .. }
                | Error::CaBundle { .. }
                | Error::File { .. }),
            ) => Err(error),
        }
    }

    /// Describes what is missing. `None` if nothing is.
    pub fn missing(&self) -> Option<String> {
        match self {
            Self::Ready(_) => None,
            Self::Incomplete(error) => Some(error.to_string()),
        }
    }

    /// Makes another client of this one.
    pub fn and_then<D>(self, make: impl FnOnce(C) -> Result<D, Error>) -> Result<Configured<D>, Error> {
        match self {
            Self::Ready(client) => Configured::of(make(client)),
            Self::Incomplete(error) => Ok(Configured::Incomplete(error)),
        }
    }

    /// Logs a warning if something is missing, once for each service.
    pub fn warned(self) -> Self {
        if let Self::Incomplete(error) = &self {
            tracing::warn!("{error}; accepting all the same, what needs it waits");
        }
        self
    }
}

impl<C: Invoke> Invoke for Configured<C> {
    async fn invoke(&self, call: Call) -> Reply {
        match self {
            Self::Ready(client) => client.invoke(call).await,
            Self::Incomplete(error) => {
                Reply::NotSent(Failure { kind: FailureKind::Unbuildable, message: error.to_string() })
            }
        }
    }

    async fn dry_run(&self, function: Function) -> Reply {
        match self {
            Self::Ready(client) => client.dry_run(function).await,
            Self::Incomplete(error) => {
                Reply::NotSent(Failure { kind: FailureKind::Unbuildable, message: error.to_string() })
            }
        }
    }
}

impl<C: Ship> Ship for Configured<C> {
    async fn ship(&self, queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
        match self {
            Self::Ready(client) => client.ship(queue_url, batch).await,
            Self::Incomplete(error) => {
                let later = Shipment::Later { code: code(error).into(), message: error.to_string() };
                vec![later; batch.len()]
            }
        }
    }

    async fn facts(&self, queue_url: &str) -> Result<QueueFacts, Trouble> {
        match self {
            Self::Ready(client) => client.facts(queue_url).await,
            Self::Incomplete(error) => Err(trouble(error)),
        }
    }
}

impl<Q: Queue> Queue for Configured<Q> {
    async fn receive(&self, messages_max: usize) -> Result<Vec<Received>, Trouble> {
        match self {
            Self::Ready(queue) => queue.receive(messages_max).await,
            Self::Incomplete(error) => Err(trouble(error)),
        }
    }

    async fn delete(&self, receipts: &[String]) -> Vec<Result<(), Trouble>> {
        match self {
            Self::Ready(queue) => queue.delete(receipts).await,
            Self::Incomplete(error) => vec![Err(trouble(error)); receipts.len()],
        }
    }

    async fn release(&self, receipts: &[String]) {
        match self {
            Self::Ready(queue) => queue.release(receipts).await,
            // Nothing was received.
            Self::Incomplete(_) => {}
        }
    }
}

fn trouble(error: &Error) -> Trouble {
    Trouble { code: code(error).into(), message: error.to_string(), transient: false }
}

fn code(error: &Error) -> &'static str {
    match error {
        Error::NoRegion { .. } => "no-region",
        Error::NoCertificates { .. } => "no-certificates",
        Error::Region { .. }
        | Error::EndpointUrl { .. }
        | Error::OwnAddress { .. }
        | Error::Endpoint { .. }
        | Error::CaBundle { .. }
        | Error::File { .. } => "misconfigured",
    }
}
