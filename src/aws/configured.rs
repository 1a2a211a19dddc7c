//! A client that may lack a region or CA certificates. The daemon then still starts and accepts events. They wait in
//! held lanes, whose reason says what is missing.

use super::Error;
use crate::deadletter::message::Message;
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
            Self::Incomplete(error) => {
                Err(Trouble { code: code(error).into(), message: error.to_string(), transient: false })
            }
        }
    }
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
