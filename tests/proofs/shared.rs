//! Kills, freezes and cuts on a shared outbox: two daemons, each behind a wire of its own, and a PostgreSQL server that crashes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use sendoff::standin::{Script, Trouble};

use crate::load::{self, Ack, DOOMED, KEPT, Load};
use crate::rig::daemon::{Daemon, Setup};
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::postgres::Postgres;
use crate::rig::wire::Wire;
use crate::rig::{eventually, lasting_port};
use crate::{seed, size, store};

/// What may happen to a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// SIGKILL while it starts.
    Start,
    /// SIGKILL under load.
    Kill,
    /// SIGKILL after SIGTERM.
    Drain,
    /// Its answers from the database are lost for a moment, and then SIGKILL.
    Deaf,
}

const BLOWS: [Blow; 6] = [Blow::Start, Blow::Kill, Blow::Kill, Blow::Kill, Blow::Drain, Blow::Deaf];

/// One of the two daemons, which is started again and again.
struct Seat {
    setup: Setup,
    wire: Wire,
    daemon: Option<Daemon>,
}

impl Seat {
    fn new(nth: usize, server: &Postgres, lambda: &Lambda, dir: &Path, door: SocketAddr) -> Self {
        let wire = Wire::start(SocketAddr::from(([127, 0, 0, 1], server.port())));
        let name = format!("seat-{nth}");
        let setup = Setup::new(&dir.join(&name))
            .set("lambda.endpoint_url", &lambda.endpoint_url())
            .set("listen.ingest", &door.to_string())
            .set("outbox.store", "postgres")
            .set("outbox.postgres.url", &server.url_by(wire.port()))
            .set("outbox.postgres.member", &name)
            .set("outbox.postgres.lease", "6s")
            .set("outbox.postgres.accept_timeout", "1s")
            .set("outbox.sdk_retry_window", "10m")
            .set("delivery.backoff_cap", "100ms");
        Self { setup, wire, daemon: None }
    }

    /// As systemd would, again if the database does not answer yet.
    fn start(&mut self) {
        self.daemon = Some(eventually("the daemon starts", || self.setup.start_if_it_can().ok()));
    }

    fn suffer(&mut self, blow: Blow, rng: &mut fastrand::Rng) {
        let within =
            |rng: &mut fastrand::Rng, ms: u64| std::thread::sleep(Duration::from_micros(rng.u64(..ms * 1_000)));
        if blow == Blow::Start {
            self.daemon.take().unwrap().kill9();
            let mut process = self.setup.spawn();
            within(rng, 250);
            process.kill9();
            return self.start();
        }
        within(rng, 400);
        let daemon = self.daemon.take().unwrap();
        match blow {
            Blow::Start | Blow::Kill => {}
            Blow::Drain => {
                daemon.terminate();
                within(rng, 80);
            }
            Blow::Deaf => {
                self.wire.lose_answers();
                within(rng, 200);
            }
        }
        daemon.kill9();
        self.wire.mend();
        self.start();
    }
}

/// Two daemons on a Lambda that misbehaves, and clients of both.
fn under_load(server: &Postgres) -> (tempfile::TempDir, Lambda, [Seat; 2], Load) {
    let (scratch, lambda) = (store::scratch(), Lambda::start());
    misbehave(&lambda);
    let doors = [lasting_port(), lasting_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut seats = [0, 1].map(|nth| Seat::new(nth, server, &lambda, scratch.path(), doors[nth]));
    seats.iter_mut().for_each(Seat::start);
    let load = Load::start_at(0, doors.to_vec(), 6, Duration::from_millis(8), |_| {});
    (scratch, lambda, seats, load)
}

#[test]
fn no_kill_of_daemons_or_of_the_server_loses_an_accepted_event_or_forgets_its_key() {
    let (kills, crashes) = (size("SHARED_KILLS", 5), size("SERVER_KILLS", 1));
    let Some(mut server) = Postgres::start() else { return };
    server.migrate();
    let mut rng = fastrand::Rng::with_seed(seed());
    let (_scratch, lambda, mut seats, load) = under_load(&server);
    let mut counts = BTreeMap::<Blow, u64>::new();
    let mut crashed = 0;
    for kill in 0..kills {
        let blow = BLOWS[rng.usize(..BLOWS.len())];
        *counts.entry(blow).or_default() += 1;
        seats[rng.usize(..2)].suffer(blow, &mut rng);
        // Spread over the run.
        if crashed < crashes && crashed * kills <= kill * crashes {
            crashed += 1;
            server.crash();
            server.begin();
        }
        if kill % 16 == 15 {
            accepted_is_somewhere(&server, &lambda, &load.acks());
        }
    }
    let acks = load.stop();
    all_is_accounted_for(&server, &lambda, &seats, &acks);
    let duplicates: u64 = lambda.taken().values().map(|times| times - 1).sum();
    eprintln!(
        "{kills} kills of daemons ({counts:?}), {crashed} crashes of the server, {} events accepted, none lost, {duplicates} \
         delivered again",
        acks.len()
    );
    seats.into_iter().for_each(|seat| drop(seat.daemon));
}

#[test]
fn no_freeze_and_no_cut_gives_a_function_two_owners_or_loses_an_accepted_event() {
    let rounds = size("SHARED_FREEZES", 1);
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let mut rng = fastrand::Rng::with_seed(seed());
    let (_scratch, lambda, seats, load) = under_load(&server);
    eventually("some are accepted", || (load.acks().len() > 50).then_some(()));
    let owner = || server.sql("orders", "SELECT daemon FROM sendoff.functions WHERE function = 'orders'");
    for round in 0..rounds {
        let before = owner();
        let seat = &seats[usize::from(before == "seat-1")];
        let is_cut = (round + rng.u64(..2)).is_multiple_of(2);
        let daemon = seat.daemon.as_ref().unwrap();
        if is_cut {
            seat.wire.fall_silent();
        } else {
            daemon.signal(Signal::STOP);
        }
        eventually("the other one has taken over", || {
            let now = owner();
            (!now.is_empty() && now != before).then_some(())
        });
        if is_cut {
            seat.wire.mend();
        } else {
            daemon.signal(Signal::CONT);
        }
        eventually("both are members again", || {
            (server.sql("orders", "SELECT count(*) FROM sendoff.daemons WHERE alive") == "2").then_some(())
        });
        accepted_is_somewhere(&server, &lambda, &load.acks());
    }
    let acks = load.stop();
    all_is_accounted_for(&server, &lambda, &seats, &acks);
    eprintln!("{rounds} freezes and cuts of the owner, {} events accepted, none lost", acks.len());
}

/// Throttles, errors and lost replies. One function never gets through, one refuses its events.
fn misbehave(lambda: &Lambda) {
    lambda.default_script(
        Script::default()
            .chance(0.10, throttle())
            .chance(0.05, Trouble::error(500, "ServiceException", "trouble"))
            .latency(Duration::from_millis(1), Duration::from_millis(10)),
    );
    lambda.script(KEPT, Script::always(throttle()));
    lambda.script(DOOMED, Script::always(Trouble::error(400, "InvalidRequestContentException", "no")));
}

/// What the database has, as events or as dead letters.
fn stored(server: &Postgres, table: &str) -> std::collections::BTreeSet<String> {
    let rows = server.sql("orders", &format!("SELECT id FROM sendoff.{table}"));
    rows.lines().map(str::to_owned).collect()
}

/// Each accepted event is in the database, or Lambda has taken it. An event moves only in this direction, so the database is
/// asked first.
fn accepted_is_somewhere(server: &Postgres, lambda: &Lambda, acks: &[Ack]) {
    let (events, dead) = (stored(server, "event"), stored(server, "dead"));
    // Between these two questions an event may have been buried.
    let dead = &dead | &stored(server, "dead");
    let taken = lambda.taken();
    for ack in acks {
        let id = ack.id.to_string();
        let is_there = events.contains(&id) || dead.contains(&id) || taken.contains_key(&load::payload_id(ack.n));
        assert!(is_there, "{ack:?} for {} is lost", load::function(ack.n));
    }
}

/// Waits until Lambda has taken all of these, as long as it takes further ones.
fn until_taken(lambda: &Lambda, ids: &[String]) {
    let missing = || {
        let taken = lambda.taken();
        ids.iter().filter(|id| !taken.contains_key(*id)).count()
    };
    let mut left = missing();
    while left > 0 {
        left = eventually("Lambda takes a further event", || Some(missing()).filter(|now| *now < left));
    }
}

fn all_is_accounted_for(server: &Postgres, lambda: &Lambda, seats: &[Seat; 2], acks: &[Ack]) {
    lambda.default_script(Script::default());
    lambda.script(KEPT, Script::default());
    let (dead, delivered): (Vec<_>, Vec<_>) = acks.iter().partition(|ack| load::function(ack.n) == DOOMED);
    until_taken(lambda, &delivered.iter().map(|ack| load::payload_id(ack.n)).collect::<Vec<_>>());
    // Those of which no client was told, too.
    eventually("the rest is buried", || stored(server, "event").is_empty().then_some(()));
    let buried = stored(server, "dead");
    for ack in dead {
        assert!(buried.contains(&ack.id.to_string()), "{ack:?} is lost");
    }
    // Keys are known, at either door. The clients have asked for some as well.
    let doors = seats.each_ref().map(|seat| seat.daemon.as_ref().unwrap());
    let asked = usize::try_from(size("SHARED_KEYS", 150)).unwrap().min(acks.len());
    for (ack, daemon) in acks[acks.len() - asked..].iter().zip(doors.iter().cycle()) {
        let key = load::key(ack.n);
        let again = eventually("the repeat is answered", || {
            let again = daemon.invoke(load::function(ack.n), &[("idempotency-key", &key)], &load::payload(ack.n));
            Some(again).filter(|again| again.status != 503)
        });
        let id = ack.id.to_string();
        assert_eq!((again.status, again.header("x-amzn-requestid")), (202, Some(id.as_str())), "{ack:?}: {again:?}");
    }
    let owners = "SELECT count(*) FROM sendoff.functions f WHERE NOT EXISTS (SELECT FROM sendoff.daemons d WHERE d.name = f.daemon AND d.alive)";
    eventually("every function has a living owner", || (server.sql("orders", owners) == "0").then_some(()));
}
