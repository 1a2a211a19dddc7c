//! A client that may have nowhere to go: without a region the daemon starts and accepts all the same; what it accepted
//! waits, held with words that say what is missing.

use super::Error;
use crate::deadletter::message::Message;
use crate::deadletter::{QueueFacts, Ship, Shipment, Trouble};
use crate::dispatch::{Call, Failure, FailureKind, Invoke, Reply};

#[derive(Debug, Clone)]
pub enum Placed<C> {
    At(C),
    Nowhere(Error),
}

impl<C> Placed<C> {
    /// Only a missing region leaves a client without a place: it may be all that a first start lacks. A wrong one is an
    /// error.
    pub fn of(client: Result<C, Error>) -> Result<Self, Error> {
        let placed = Self::silently(client)?;
        if let Self::Nowhere(error) = &placed {
            tracing::warn!("{error}; accepting all the same, what needs it waits");
        }
        Ok(placed)
    }

    /// The same for a second client of a service, of which everything is said already.
    pub fn silently(client: Result<C, Error>) -> Result<Self, Error> {
        match client {
            Ok(client) => Ok(Self::At(client)),
            Err(error @ Error::NoRegion { .. }) => Ok(Self::Nowhere(error)),
            Err(error @ (Error::Region { .. } | Error::EndpointUrl { .. })) => Err(error),
        }
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
}

impl<C: Ship> Ship for Placed<C> {
    async fn ship(&self, queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
        match self {
            Self::At(client) => client.ship(queue_url, batch).await,
            Self::Nowhere(error) => {
                let later = Shipment::Later { code: "no-region".into(), message: error.to_string() };
                vec![later; batch.len()]
            }
        }
    }

    async fn facts(&self, queue_url: &str) -> Result<QueueFacts, Trouble> {
        match self {
            Self::At(client) => client.facts(queue_url).await,
            Self::Nowhere(error) => {
                Err(Trouble { code: "no-region".into(), message: error.to_string(), transient: false })
            }
        }
    }
}
