use super::*;
use crate::clock::Clock;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

const READY: Held =
    Held { place: Place::Ready, due: None, expires_at: None, bytes: 0, key: None, settling: false, doubtful: false };

/// A lane in which the database has this many Ready and Waiting events.
fn row(ready: u64, waiting: u64) -> LaneRow {
    let mut counts = [Count::default(); 4];
    counts[Place::Ready as usize].events = ready;
    counts[Place::Waiting as usize].events = waiting;
    LaneRow {
        id: 7,
        function: FunctionName::new("orders"),
        paused: false,
        proven: false,
        retired: false,
        spent: Spent::default(),
        counts,
        next_due: None,
        next_ship: None,
        next_expiry: None,
        first: None,
        seen: Position::default(),
    }
}

/// Two Ready events, one of them leased, whose settlement was not answered.
fn unanswered() -> (Lanes, Lease) {
    let mut lanes = Lanes::new(100);
    lanes.read(row(2, 0), NOW);
    let lane = lanes.of_number(7).unwrap();
    let clock = Clock::seeded(NOW, 1);
    let event = EventId::mint(NOW, clock.random_bits(), &FunctionName::new("orders"));
    assert!(lanes.take(lane, event, READY));
    let lease = Lease { lane, id: event };
    assert!(lanes.begin_settling(lease).is_some());
    lanes.not_settled(lease);
    (lanes, lease)
}

#[test]
fn a_lane_that_was_read_between_a_settlement_and_its_repetition_is_read_again() {
    // The database has carried the delivery out, and a reading has counted that.
    let (mut lanes, lease) = unanswered();
    lanes.read(row(1, 0), NOW);
    assert!(lanes.doubted().is_empty(), "a reading now would still come before the repetition");
    assert!(lanes.begin_settling(lease).is_some());
    lanes.left(lease, NOW);
    assert_eq!(lanes.doubted().iter().copied().collect::<Vec<_>>(), [7]);
    lanes.read(row(1, 0), NOW);
    lanes.counted(&[7]);
    assert_eq!(lanes.view(lease.lane).unwrap().ready, 1, "the other event is to be leased");
    assert!(lanes.doubted().is_empty());
    assert_eq!(lanes.totals().events, 1);
}

#[test]
fn what_is_settled_at_once_or_goes_away_leaves_no_doubt() {
    let (mut lanes, lease) = unanswered();
    lanes.waits(lease, Place::Waiting, NOW);
    assert!(!lanes.doubted().is_empty());
    lanes.lose(lease.lane);
    assert!(lanes.doubted().is_empty());

    lanes.read(row(1, 0), NOW);
    let lane = lanes.of_number(7).unwrap();
    let lease = Lease { lane, ..lease };
    assert!(lanes.take(lane, lease.id, READY) && lanes.begin_settling(lease).is_some());
    lanes.left(lease, NOW);
    assert!(lanes.doubted().is_empty());
}

#[test]
fn a_time_that_comes_in_while_the_database_is_asked_is_not_lost_to_the_older_answer() {
    let mut lanes = Lanes::new(100);
    lanes.read(row(1, 0), NOW);
    let lane = lanes.of_number(7).unwrap();
    let event = EventId::mint(NOW, Clock::seeded(NOW, 1).random_bits(), &FunctionName::new("orders"));
    assert!(lanes.take(lane, event, READY));
    // A reading while an event is leased leaves the times unknown.
    lanes.read(row(1, 1), NOW);
    let (asked, asked_at) = (lanes.unknown(&[lane]).0, lanes.change());
    let lease = Lease { lane, id: event };
    assert!(lanes.begin_settling(lease).is_some());
    lanes.waits(lease, Place::Waiting, NOW);
    let (number, unknown) = asked[0];
    let later = UnixMillis(NOW.0 + 60_000);
    lanes.answered(number, unknown, Peek { due: Some(later), ..Peek::default() }, asked_at);
    assert_eq!(lanes.view(lane).unwrap().next_due, Some(NOW), "the event that began to wait meanwhile");
}
