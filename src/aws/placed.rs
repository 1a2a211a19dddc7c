//! A client that may lack a region or CA certificates. The daemon then still starts and accepts events. They wait in
//! held lanes, whose reason says what is missing.

use super::Error;
use crate::deadletter::message::Message;
use crate::deadletter::{QueueFacts, Ship, Shipment, Trouble};
use crate::dispatch::{Call, Failure, FailureKind, Invoke, Reply};
use crate::event::Function;

#[derive(Debug, Clone)]
pub enum Placed<C> {
    At(C),
    Nowhere(Error),
}

impl<C> Placed<C> {
    /// Only a missing setting leads to a client without a place, because a first start may lack just that. A wrong region
    /// or endpoint is an error.
    pub fn of(client: Result<C, Error>) -> Result<Self, Error> {
        match client {
            Ok(client) => Ok(Self::At(client)),
            Err(error @ (Error::NoRegion { .. } | Error::NoCertificates { .. })) => Ok(Self::Nowhere(error)),
            Err(
                error @ (Error::Region { .. }
                | Error::EndpointUrl { .. }
                | Error::OwnAddress { .. }
                | Error::Endpoint { .. }
                | Error::CaBundle { .. }),
            ) => Err(error),
        }
    }

    /// Describes what is missing. `None` if nothing is.
    pub fn missing(&self) -> Option<String> {
        match self {
            Self::At(_) => None,
            Self::Nowhere(error) => Some(error.to_string()),
        }
    }

    /// Like `new`, but logs a warning if something is missing, once for each service.
    pub fn warned(self) -> Self {
        if let Self::Nowhere(error) = &self {
            tracing::warn!("{error}; accepting all the same, what needs it waits");
        }
        self
    }
}

impl<C: Invoke> Invoke for Placed<C> {
    async fn invoke(&self, call: Call) -> Reply {
        match self {
            Self::At(client) => client.invoke(call).await,
            Self::Nowhere(error) => {
                Reply::NotSent(Failure { kind: FailureKind::Unbuildable, message: error.to_string() })
            }
        }
    }

    async fn dry_run(&self, function: Function) -> Reply {
        match self {
            Self::At(client) => client.dry_run(function).await,
            Self::Nowhere(error) => {
                Reply::NotSent(Failure { kind: FailureKind::Unbuildable, message: error.to_string() })
            }
        }
    }
}

impl<C: Ship> Ship for Placed<C> {
    async fn ship(&self, queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
        match self {
            Self::At(client) => client.ship(queue_url, batch).await,
            Self::Nowhere(error) => {
                let later = Shipment::Later { code: code(error).into(), message: error.to_string() };
                vec![later; batch.len()]
            }
        }
    }

    async fn facts(&self, queue_url: &str) -> Result<QueueFacts, Trouble> {
        match self {
            Self::At(client) => client.facts(queue_url).await,
            Self::Nowhere(error) => {
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
        | Error::CaBundle { .. } => "misconfigured",
    }
}
