//! An SQS with weather: it throttles, accepts a part of a batch, loses replies, or cannot be reached.

use std::sync::Arc;

use sendoff::deadletter::message::Message;
use sendoff::deadletter::{Ship, Shipment};

use crate::scenario::Weather;
use crate::world::World;

/// In scenarios with refused messages, no queue accepts one of this many messages.
const REFUSED_EVERY: u64 = 7;

#[derive(Clone)]
pub struct FlakyQueue {
    pub world: Arc<World>,
    pub life: u32,
}

impl Ship for FlakyQueue {
    async fn ship(&self, queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
        let world = &self.world;
        world.point(self.life, "before a shipment").await;
        world.note(|| format!("ship {} letters to {queue_url}", batch.len()));
        world.pass(20).await;
        world.point(self.life, "a shipment arrives").await;
        let weather = world.weather("queue");
        let shipments: Vec<_> = batch.iter().map(|message| self.take(message, weather)).collect();
        world.pass(if weather == Weather::Slow { 20_000 } else { 20 }).await;
        world.point(self.life, "a confirmation arrives").await;
        if weather == Weather::Lossy && world.fault(60) {
            return batch.iter().map(|_| later("closed")).collect();
        }
        for (message, shipment) in batch.iter().zip(&shipments) {
            match shipment {
                Shipment::Confirmed { .. } => world.ledger().confirmed(message.id),
                Shipment::Refused { .. } => drop(world.ledger().unshippable.insert(message.id)),
                Shipment::Later { .. } => {}
            }
        }
        shipments
    }
}

impl FlakyQueue {
    fn take(&self, message: &Message, weather: Weather) -> Shipment {
        let world = &self.world;
        let serial = crate::ledger::serial_of(message.body.as_bytes()).unwrap_or(0);
        if world.scenario.refusals && serial.is_multiple_of(REFUSED_EVERY) {
            return Shipment::Refused { code: "InvalidMessageContents".into(), message: "no".into() };
        }
        match weather {
            Weather::Away => later("connect"),
            Weather::Operator => later("QueueDoesNotExist"),
            Weather::Throttled | Weather::Errors if world.fault(50) => later("ThrottlingException"),
            Weather::Fair | Weather::Throttled | Weather::Errors | Weather::Lossy | Weather::Slow => {
                let found = world.ledger().queued(message);
                if let Some((promise, what)) = found {
                    world.violated(promise, what);
                }
                Shipment::Confirmed { message_id: "m".into() }
            }
        }
    }
}

fn later(code: &str) -> Shipment {
    Shipment::Later { code: code.into(), message: "the weather".into() }
}
