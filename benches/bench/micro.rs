//! micro: each step of an event alone, on one thread. Time per operation is noisy here. Instructions are not: `valgrind
//! --tool=callgrind` on this program counts them (docs/performance.md).

use std::hint::black_box;

use bytes::Bytes;
use clap::Args;
use sendoff::clock::{Clock, UnixMillis};
use sendoff::event::check::check_payload;
use sendoff::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use sendoff::outbox::embedded::Settings;
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::keys;
use sendoff::outbox::embedded::kv::Kv;
use sendoff::outbox::embedded::memory::MemoryDisk;
use sendoff::outbox::embedded::record::{Record, decode_body, encode_body};
use sendoff::outbox::embedded::store;
use sendoff::outbox::{History, LaneId, LaneWant, LeaseWant, Limits, Settlement, Which};

use crate::client;
use crate::report::{Report, Sample};

#[derive(Debug, Args)]
pub struct Options {
    /// Events of one measurement
    #[arg(long, default_value_t = 20_000)]
    events: u64,
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    /// Events of one commit
    #[arg(long, default_value_t = 64)]
    batch: u64,
    /// Only steps whose name contains this
    #[arg(long, default_value = "")]
    only: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { events: 20_000, payload_bytes: 1_024, batch: 64, only: String::new() }
    }
}

pub fn run(options: &Options, rounds: usize) -> anyhow::Result<()> {
    let mut report = Report::new("micro", &["ns"]);
    let bench = Bench { options, clock: Clock::system() };
    for _ in 0..rounds {
        bench.pure(&mut report);
        bench.engines(&mut report)?;
    }
    report.finish()
}

struct Bench<'a> {
    options: &'a Options,
    clock: Clock,
}

impl Bench<'_> {
    fn step(&self, report: &mut Report, name: &str, mut step: impl FnMut(u64)) {
        if !name.contains(&self.options.only) {
            return;
        }
        let began = self.clock.instant();
        (0..self.options.events).for_each(&mut step);
        let nanos = began.elapsed().as_nanos() as f64 / self.options.events as f64;
        report.add(name, Sample::from([("ns", nanos)]));
    }

    fn event(&self) -> Event {
        let name = FunctionName::new("orders");
        let now = self.clock.now();
        let value = format!("AKIDEXAMPLE/{:036x}", self.clock.random_bits());
        Event {
            id: EventId::mint(now, self.clock.random_bits(), &name),
            function: Function { address: "orders".into(), name, qualifier: None, region: None },
            key: IdempotencyKey { value, source: KeySource::SdkInvocationId },
            carried: Carried::default(),
            payload: Bytes::from(client::payload(self.options.payload_bytes)),
            accepted_at: now,
            deliver_at: None,
            expires_at: None,
            redrives: 0,
        }
    }

    fn pure(&self, report: &mut Report) {
        let event = self.event();
        let body = encode_body(&event);
        let record = Record::new(History { due: UnixMillis(1), ..History::default() }, &body);
        let encoded = Bytes::from(record.encode());
        self.step(report, "check the payload", |_| drop(black_box(check_payload(black_box(&event.payload)))));
        self.step(report, "fingerprint the payload", |_| {
            black_box(keys::fingerprint(&event.payload));
        });
        self.step(report, "derive the key", |_| {
            drop(black_box(keys::remembered(&event.function.name, None, &event.key)))
        });
        self.step(report, "encode a record", |_| {
            let body = encode_body(black_box(&event));
            let record = Record::new(History { due: UnixMillis(1), ..History::default() }, &body);
            drop(black_box(record.encode()));
        });
        self.step(report, "decode a record", |_| {
            let record = Record::decode(black_box(&encoded));
            let event = record.map(|record| decode_body(event.id, &event.function.name, &record.inline));
            drop(black_box(event));
        });
        self.step(report, "mint an id", |_| {
            black_box(EventId::mint(self.clock.now(), self.clock.random_bits(), &event.function.name));
        });
    }

    fn engines(&self, report: &mut Report) -> anyhow::Result<()> {
        self.engine(report, "memory", MemoryDisk::default().open())?;
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        self.engine(report, "disk", store::open(directory.path(), &settings())?.store)
    }

    /// Append, lease and settle, in commits of `batch` events.
    fn engine<K: Kv>(&self, report: &mut Report, on: &str, kv: K) -> anyhow::Result<()> {
        if !on.contains(&self.options.only) {
            return Ok(());
        }
        let mut engine = Engine::open(kv, settings(), self.clock.clone(), "bench")?;
        let (events, batch) = (self.options.events, self.options.batch);
        let disk = engine.disk();
        let per_event = |nanos: u128| Sample::from([("ns", nanos as f64 / events as f64)]);
        let began = self.clock.instant();
        for _ in 0..events / batch {
            engine.append((0..batch).map(|_| self.event()).collect(), disk)?;
            engine.commit()?;
        }
        report.add(&format!("append, {on}, {batch} a commit"), per_event(began.elapsed().as_nanos()));
        let want = LaneWant {
            lane: LaneId(0),
            which: Which::Due,
            events_max: usize::try_from(batch)?,
            bytes_max: u64::MAX,
            spent: None,
        };
        let want = LeaseWant { lanes: vec![want], bytes_max: u64::MAX };
        let mut taken = Vec::new();
        let began = self.clock.instant();
        for _ in 0..events / batch {
            taken.push(engine.lease(&want)?);
        }
        report.add(&format!("lease, {on}"), per_event(began.elapsed().as_nanos()));
        let began = self.clock.instant();
        for taken in taken {
            engine.settle(taken.into_iter().map(|leased| (leased.lease, Settlement::Delivered)).collect())?;
            engine.commit()?;
        }
        report.add(&format!("settle, {on}, {batch} a commit"), per_event(began.elapsed().as_nanos()));
        Ok(())
    }
}

fn settings() -> Settings {
    Settings {
        limits: Limits {
            bytes_max: 10 << 30,
            events_max: 20_000_000,
            functions_max: 100,
            dedupe_window: std::time::Duration::from_secs(86_400),
            sdk_window: std::time::Duration::from_secs(3_600),
        },
        disk_reserve: 0,
        segment_bytes: 16 << 20,
        cache: 64 << 20,
    }
}
