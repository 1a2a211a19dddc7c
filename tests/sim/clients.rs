//! Realistic clients: they retry when no answer comes, give up early, repeat keys, and use keys with other payloads.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use sendoff::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use sendoff::ingest::door::{DUPLICATE, KEY_SOURCE};
use sendoff::ingest::refusal::EVENT_ID;
use sendoff::outbox::{Appended, Outbox};
use tokio::sync::oneshot;

use crate::ledger::{Answered, Fate, Order};
use crate::outages::POISONED;
use crate::scenario::STEADY;
use crate::world::{Front, World};

/// The most times that an SDK sends one call.
const TRIES: u32 = 5;

/// In scenarios with refused events, Lambda refuses one of this many orders for good.
const REFUSED_EVERY: u64 = 9;

/// Runs one client, from its first order to its last.
pub async fn client(world: Arc<World>, number: u64) {
    let scenario = &world.scenario;
    let mut keyed: Vec<Order> = Vec::new();
    for n in 0..scenario.orders_per_client {
        world.pass(scenario.client_gap_ms).await;
        if world.draw(|rng| rng.u8(0..12)) == 0 {
            schedule(&world, number * 10_000 + n).await;
            continue;
        }
        let again = world.draw(|rng| (rng.u8(0..6) == 0 && !keyed.is_empty()).then(|| rng.usize(0..keyed.len())));
        let order = match again.map(|at| keyed[at].clone()) {
            Some(old) if world.draw(|rng| rng.bool()) => Order { sdk_id: fresh(&world), ..old },
            // Another payload with a known key.
            Some(old) => Order { key: old.key, function: old.function, ..order(&world, number * 10_000 + n) },
            None => order(&world, number * 10_000 + n),
        };
        world.ledger().orders.entry(order.serial).or_insert_with(|| order.clone());
        if again.is_none() && order.key.is_some() {
            keyed.push(order.clone());
        }
        send(&world, &order).await;
    }
}

fn fresh(world: &World) -> String {
    world.draw(|rng| format!("{:032x}", rng.u128(..)))
}

fn order(world: &World, serial: u64) -> Order {
    let scenario = &world.scenario;
    let function = world.draw(|rng| scenario.functions[rng.usize(0..scenario.functions.len())].clone());
    let poison = scenario.poison == Some(serial);
    let function = if poison { POISONED.to_owned() } else { function };
    let padding = world.draw(|rng| [10, 10, 10, 1_500, 5_000, 30_000][rng.usize(0..6)]);
    let context = world.draw(|rng| rng.u8(0..4) == 0).then(|| "e30=".to_owned()); // {}
    Order {
        serial,
        function,
        payload: format!("{{\"n\":{serial},\"p\":\"{}\"}}", "x".repeat(padding)).into(),
        carried: Carried {
            trace_header: Some(format!("Root=1-5759e988-{serial:024x};Lineage=1:2:3")),
            client_context: context,
            ..Carried::default()
        },
        key: world.draw(|rng| rng.u8(0..3) == 0).then(|| format!("key-{serial}")),
        sdk_id: fresh(world),
        not_before: None,
        expires_at: None,
        refused: scenario.refusals && serial.is_multiple_of(REFUSED_EVERY),
        poison,
        fate: Fate::default(),
    }
}

/// Makes one call of an SDK, with the same invocation id for every try.
async fn send(world: &Arc<World>, order: &Order) {
    for _ in 0..TRIES {
        if let Some(front) = world.front()
            && let Some(202 | 400..=428) = try_once(world, front, order).await
        {
            return;
        }
        world.pass(2_000).await;
    }
}

/// Returns the status, if an answer came.
async fn try_once(world: &Arc<World>, front: Front, order: &Order) -> Option<u16> {
    let (answer, answered) = oneshot::channel();
    let request = request(order);
    let (serial, tasks) = (order.serial, front.tasks.clone());
    let serving = tasks.spawn({
        let world = world.clone();
        async move {
            world.pass(5).await;
            world.point(front.life, "a request arrives").await;
            let response = front.door.handle(request).await;
            note_answer(&world, serial, &response);
            world.point(front.life, "an answer leaves").await;
            world.pass(5).await;
            if !world.fault(3) {
                // A client that has gone receives nothing.
                answer.send(response.status().as_u16()).unwrap_or_default();
            }
        }
    });
    world.powers(serving.abort_handle());
    let patience = world.draw(|rng| if rng.u8(0..10) == 0 { rng.u64(1..80) } else { 30_000 });
    if let Ok(Ok(status)) = tokio::time::timeout(Duration::from_millis(patience), answered).await {
        return Some(status);
    }
    if world.draw(|rng| rng.bool()) {
        serving.abort(); // an HTTP/2 reset: the request is dropped wherever it is
    }
    None
}

fn request(order: &Order) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("/2015-03-31/functions/{}/invocations", order.function))
        .header("x-amz-invocation-type", "Event")
        .header("amz-sdk-invocation-id", &order.sdk_id);
    if let Some(trace_header) = &order.carried.trace_header {
        request = request.header("x-amzn-trace-id", trace_header);
    }
    if let Some(context) = &order.carried.client_context {
        request = request.header("x-amz-client-context", context);
    }
    if let Some(key) = &order.key {
        request = request.header("idempotency-key", key);
    }
    request.body(Full::new(order.payload.clone())).unwrap()
}

/// Records an answer that goes out, whether or not anybody receives it.
fn note_answer<B>(world: &World, serial: u64, response: &Response<B>) {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    world.note(|| format!("answer order {serial}: {} {}", response.status(), header(EVENT_ID).unwrap_or("-")));
    if response.status() != 202 {
        return;
    }
    let id: EventId = header(EVENT_ID).unwrap().parse().unwrap();
    let source = if header(KEY_SOURCE) == Some("header") {
        KeySource::Header
    } else if header(KEY_SOURCE) == Some("sdk-invocation-id") {
        KeySource::SdkInvocationId
    } else {
        KeySource::Minted
    };
    let window =
        if source == KeySource::SdkInvocationId { world.scenario.sdk_window } else { world.scenario.dedupe_window };
    let answered = Answered { id, source, duplicate: header(DUPLICATE).is_some() };
    {
        let mut ledger = world.ledger();
        // If whole accounts fail, everybody waits.
        if ledger.orders[&serial].function == STEADY && !world.scenario.account_faults {
            ledger.waits(id, world.now());
        }
    }
    let found = world.ledger().answered(serial, &answered, window, world.now());
    if let Some((promise, what)) = found {
        world.violated(promise, what);
    }
}

/// Appends an event with a delivery time or an expiry directly to the outbox.
async fn schedule(world: &Arc<World>, serial: u64) {
    let Some(front) = world.front() else { return };
    let now = front.clock.now();
    let ahead = world.draw(|rng| Duration::from_millis(rng.u64(0..90_000)));
    let expires_at = world.draw(|rng| rng.u8(0..3) == 0).then(|| now.plus(ahead * 2));
    let order = Order {
        key: None,
        not_before: Some((now.plus(ahead), world.now().plus(ahead))),
        expires_at,
        ..order(world, serial)
    };
    world.ledger().orders.insert(serial, order.clone());
    let name = FunctionName::new(&order.function);
    let event = Event {
        id: EventId::mint(now, world.draw(|rng| rng.u128(..)), &name),
        function: Function { name, address: order.function.clone(), qualifier: None, region: None },
        key: IdempotencyKey { value: fresh(world), source: KeySource::Minted },
        carried: order.carried,
        payload: order.payload,
        accepted_at: now,
        deliver_at: order.not_before.map(|(at, _)| at),
        expires_at,
        redrives: 0,
    };
    let id = event.id;
    let tasks = front.tasks.clone();
    let appending = tasks.spawn({
        let world = world.clone();
        async move {
            if let Ok([Appended::Stored]) = front.outbox.append(vec![event]).await.as_deref() {
                world.note(|| format!("answer order {serial}: scheduled {id}"));
                world.ledger().accepted.insert(id, serial);
            }
        }
    });
    world.powers(appending.abort_handle());
    // Cut off by a crash. It then counts as a request without an answer.
    drop(appending.await);
}
