use super::*;

fn at(second: u64) -> UnixMillis {
    UnixMillis(1_790_000_000_000 + second * 1_000)
}

/// A complete reading, in which one function has accepted and attempted so many.
fn reading(second: u64, accepted: u64) -> Reading {
    let lane = LaneCounts { accepted, attempts: accepted / 2, limit: 8.0, backlog: Some(7), ..LaneCounts::default() };
    let stored = Stored { by_place: [1, 2, 3, 4], oldest_age: 5.0, ..Stored::default() };
    Reading {
        at: at(second),
        totals: Totals { accepted, ..Totals::default() },
        commits: Vec::new(),
        full: Some(Full { lanes: [("orders".to_owned(), lane)].into(), stored: Some(stored) }),
    }
}

fn partial(second: u64, accepted: u64) -> Reading {
    Reading { full: None, ..reading(second, accepted) }
}

#[test]
fn rates_are_per_second_and_the_rings_have_a_fixed_size() {
    let mut rings = Rings::default();
    for second in 0..5_000 {
        rings.push(reading(second, second * 10));
    }
    assert_eq!((rings.fine.rows.len(), rings.coarse.rows.len()), (FINE_MAX, COARSE_MAX));
    assert_eq!((rings.fine.times.len(), rings.coarse.times.len()), (FINE_MAX, COARSE_MAX));
    assert!(rings.fine.rows.iter().chain(&rings.coarse.rows).all(|row| row[ACCEPTED] == 10.0 && row[OLDEST] == 5.0));
    let lane = &rings.lanes["orders"];
    assert_eq!((lane.fine.len(), lane.coarse.len()), (FINE_MAX, COARSE_MAX));
    assert!(lane.fine.iter().all(|row| row[LANE_ACCEPTED] == 10.0 && row[LANE_BACKLOG] == 7.0));
    assert_eq!(rings.rates["orders"].attempts_per_second, 5.0);
}

#[test]
fn what_was_not_read_is_a_gap_and_a_late_reading_keeps_its_rate() {
    let mut rings = Rings::default();
    rings.push(reading(0, 0));
    rings.push(partial(1, 10));
    // The daemon was suspended for four seconds.
    rings.push(partial(5, 50));
    let gauges: Vec<_> = rings.fine.rows.iter().map(|row| (row[ACCEPTED], row[READY].is_nan())).collect();
    assert_eq!(gauges, [(10.0, true), (10.0, true)]);
    rings.push(reading(10, 100));
    assert_eq!(rings.coarse.rows.len(), 1);
    assert_eq!((rings.coarse.rows[0][ACCEPTED], rings.coarse.rows[0][SCHEDULED]), (10.0, 3.0));
    // The clock is set back: nothing is compared over the step.
    rings.push(reading(3, 200));
    rings.push(reading(4, 230));
    assert_eq!(rings.fine.rows.back().unwrap()[ACCEPTED], 30.0);
}

#[test]
fn the_busiest_functions_have_a_series_and_keep_it_against_a_little_busier_ones() {
    let mut rings = Rings::default();
    let full = |second: u64, accepted: &dyn Fn(u64) -> u64| {
        let lane = |n: u64| (format!("f{n:03}"), LaneCounts { accepted: accepted(n), ..LaneCounts::default() });
        let lanes = (0..120).map(lane).collect();
        Reading { full: Some(Full { lanes, stored: None }), ..partial(second, 0) }
    };
    let falling = |n: u64| (120 - n) * 10;
    rings.push(full(0, &|_| 0));
    rings.push(full(10, &falling));
    let chosen: Vec<_> = rings.lanes.keys().cloned().collect();
    assert_eq!((chosen.len(), chosen[0].as_str(), chosen[49].as_str()), (LANES_MAX, "f000", "f049"));
    let alike = |n| falling(n) + 1_000;
    rings.push(full(20, &alike));
    assert_eq!(rings.lanes.keys().cloned().collect::<Vec<_>>(), chosen, "no reason to change");
    rings.push(full(30, &|n| alike(n) + n * 1_000));
    assert!(rings.lanes.contains_key("f119") && !rings.lanes.contains_key("f000"));
    assert_eq!(rings.lanes.len(), LANES_MAX);
}

#[test]
fn a_quantile_counts_only_what_is_new() {
    let before = [(0.001, 1_000), (0.01, 1_000), (0.1, 1_000), (f64::INFINITY, 1_000)];
    let now = [(0.001, 1_000), (0.01, 1_090), (0.1, 1_100), (f64::INFINITY, 1_100)];
    assert!((quantile(&before, &now, 0.5) - 0.006).abs() < 1e-6, "{}", quantile(&before, &now, 0.5));
    assert!((quantile(&before, &now, 0.99) - 0.091).abs() < 1e-6);
    assert!(quantile(&now, &now, 0.5).is_nan(), "no commit");
    assert!(quantile(&[], &[], 0.5).is_nan());
    let slow = [(0.001, 0), (f64::INFINITY, 5)];
    assert_eq!(quantile(&[], &slow, 0.5), 0.001, "beyond the last bound");
}

#[tokio::test(start_paused = true)]
async fn a_series_of_a_function_is_as_long_as_its_times_and_only_the_new_part_can_be_asked_for() {
    let series = Series::new(Clock::seeded(at(0), 1));
    let ask = |window: &str, function: Option<&str>, since: Option<u64>| {
        let query = SeriesQuery { window: Some(window.to_owned()), function: function.map(str::to_owned), since };
        show(State(series.clone()), Query(query))
    };
    assert!(series.wants_full(), "the first one is complete");
    for second in 0..5 {
        series.push(partial(second, second));
    }
    assert!(!series.wants_full(), "nobody looks");
    for second in 5..25 {
        series.push(reading(second, second));
    }
    let all = ask("5m", None, None).await.unwrap_or_else(|_| panic!("refused")).0;
    assert!(series.wants_full(), "somebody looks");
    assert_eq!((all.times.len(), all.accepted.len(), all.ready.len(), all.step_seconds), (24, 24, 24, 1));
    assert_eq!((all.ready[0], all.ready[23], all.accepted[0]), (None, Some(1.0), Some(1.0)));
    assert_eq!(all.functions, ["orders"]);
    let lane = ask("5m", Some("orders"), None).await.unwrap_or_else(|_| panic!("refused")).0;
    assert_eq!((lane.times.len(), lane.limit.len(), lane.backlog.len()), (24, 24, 24));
    assert_eq!((lane.limit[0], lane.limit[23]), (None, Some(8.0)));
    let since = all.times[21];
    for function in [None, Some("orders")] {
        let new = ask("5m", function, Some(since)).await.unwrap_or_else(|_| panic!("refused")).0;
        assert_eq!((new.times.as_slice(), new.accepted.len()), (&all.times[22..], 2), "{function:?}");
    }
    let hour = ask("1h", Some("orders"), None).await.unwrap_or_else(|_| panic!("refused")).0;
    assert_eq!((hour.times.len(), hour.accepted.len(), hour.step_seconds), (2, 2, 10));
    assert!(ask("1d", None, None).await.is_err() && ask("5m", Some("nobody"), None).await.is_err());
}
