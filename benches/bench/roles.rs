//! The parts that run in their own processes, so that their cost is separate from the bench's.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Subcommand;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sendoff::clock::Clock;
use sendoff::event::name::Home;
use sendoff::event::{Event, EventId};
use sendoff::http::{Limits, Server};
use sendoff::ingest::{Settings, door::Door};
use sendoff::metrics::Metrics;
use sendoff::outbox::handoff::{Adopted, Handed};
use sendoff::outbox::{
    Appended, Census, Changes, Error, Found, Health, LaneNews, Lease, LeaseWant, Leases, Outbox, Settlement, Unsettled,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{call, process};

#[derive(Debug, Subcommand)]
pub enum Role {
    /// The ingest listener in front of a store that does nothing. Prints its address
    Door,
    /// An SQS that confirms every message and keeps none. Prints its address
    Queue {
        /// How long a call takes, in milliseconds
        #[arg(long)]
        call_ms: u64,
    },
    /// Calls a stand-in as a service without sendoff does. Prints what it cost
    Call(call::Options),
}

pub fn run(role: Role) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::Door => door().await,
            Role::Queue { call_ms } => queue(Duration::from_millis(call_ms)).await,
            Role::Call(options) => {
                let called = call::run(&options).await?;
                let cpu = process::cpu(std::process::id())?;
                let seconds = called.took.as_secs_f64();
                say(&json!({ "seconds": seconds, "cpu_seconds": (cpu - called.cpu_before).as_secs_f64() }).to_string())
            }
        }
    })
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

async fn door() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&listener.local_addr()?.to_string())?;
    let settings = Settings {
        connections_max: 1_024,
        request_bytes_max: 64 << 20,
        headers_max: 100,
        header_bytes_max: 64 << 10,
        header_timeout: Duration::from_secs(30),
        body_timeout: Duration::from_secs(30),
        home: Home::default(),
    };
    let limits = Limits {
        connections_max: settings.connections_max,
        headers_max: settings.headers_max,
        header_bytes_max: settings.header_bytes_max,
        header_timeout: settings.header_timeout,
    };
    let (clock, metrics) = (Clock::system(), Arc::new(Metrics::new()?));
    let server = Server::new(limits, None, clock.clone(), CancellationToken::new(), TaskTracker::new());
    server.serve(listener, Door::new(Nothing, clock, metrics, settings).service()).await;
    Ok(())
}

async fn queue(call: Duration) -> anyhow::Result<()> {
    let (listener, clock, mut connections) = (TcpListener::bind("127.0.0.1:0").await?, Clock::system(), JoinSet::new());
    say(&listener.local_addr()?.to_string())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let clock = clock.clone();
        connections.spawn(async move {
            let service = service_fn(|request| confirm(request, call, &clock));
            // A client that goes away ends its connection.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// The answer of SQS to a batch, and to a question about the queue.
async fn confirm(request: Request<Incoming>, call: Duration, clock: &Clock) -> anyhow::Result<Response<Full<Bytes>>> {
    let body = request.into_body().collect().await?.to_bytes();
    let batch: serde_json::Value = serde_json::from_slice(&body)?;
    clock.sleep(call).await;
    let entries = batch["Entries"].as_array().into_iter().flatten();
    let confirmed = entries.map(|entry| json!({ "Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": "" }));
    let answer = json!({ "Successful": confirmed.collect::<Vec<_>>(), "Failed": [], "Attributes": {} });
    Ok(Response::new(Full::from(answer.to_string())))
}

/// A store that accepts everything and keeps nothing.
#[derive(Clone)]
struct Nothing;

impl Outbox for Nothing {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        Ok(batch.into_iter().map(|_| Appended::Stored).collect())
    }

    async fn lease(&self, _: LeaseWant, _: Option<u64>) -> Result<Leases, Error> {
        Ok(Leases::default())
    }

    async fn settle(&self, _: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        Ok(Vec::new())
    }

    async fn adopt(&self, _: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        Err(Error::Closed)
    }

    async fn lanes(&self, _: u64) -> Result<LaneNews, Error> {
        Ok(LaneNews::default())
    }

    async fn find(&self, _: EventId) -> Result<Option<Found>, Error> {
        Ok(None)
    }

    async fn census(&self) -> Result<Census, Error> {
        Ok(Census::default())
    }

    async fn changed(&self, _: u64, _: Changes) {
        std::future::pending().await
    }

    fn health(&self) -> Health {
        Health::Well
    }

    async fn failed(&self) -> String {
        std::future::pending().await
    }
}
