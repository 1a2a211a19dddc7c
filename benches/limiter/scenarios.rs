//! The scenarios that the limiter's constants were tuned on, and others that were not used for tuning.

use crate::model::{Backlog, SECOND, Scenario, Weather};

/// The seeds of the hold-out. Tune the limiter on other seeds.
pub const HOLD_OUT: std::ops::Range<u64> = 1_000..1_100;

/// One scenario of each kind.
pub fn known() -> Vec<Scenario> {
    let endless =
        |name, weather: Vec<Weather>| Scenario { name, weather, backlog: Backlog::Endless, lanes: 1, seed: 7 };
    vec![
        endless("steady, 50 slots", vec![Weather::slots(60, 50)]),
        endless(
            "10, then 100, then 5 slots",
            vec![Weather::slots(30, 10), Weather::slots(30, 100), Weather::slots(30, 5)],
        ),
        endless("one slot", vec![Weather::slots(60, 1)]),
        endless("100 a second, no slots", vec![Weather { per_second: 100.0, ..Weather::slots(60, u32::MAX) }]),
        endless("a tenth throttled by chance", vec![Weather { noise: 0.1, ..Weather::slots(60, 64) }]),
        endless("beyond 40 at once all slow down", vec![Weather { knee: 40, ..Weather::slots(60, u32::MAX) }]),
        Scenario {
            backlog: Backlog::Bursts { events: 300, every: 10 * SECOND },
            ..endless("300 events every 10 s, 50 slots", vec![Weather::slots(60, 50)])
        },
        Scenario { lanes: 2, ..endless("two lanes share an account's 60", vec![Weather::slots(60, 60)]) },
    ]
}

/// A scenario drawn from a seed: four to seven stretches of 5 to 25 s. Each has 1 to 250 slots (evenly on a logarithmic
/// scale) or, one in four, a rate of 10 to 2,000 a second. Calls take 20 to 400 ms.
pub fn drawn(seed: u64) -> Scenario {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut between = |from: f64, to: f64| from * (to / from).powf(random.f64());
    let (latency, throttle_latency) = (between(20e3, 400e3) as u64, between(5e3, 40e3) as u64);
    let stretches = between(4.0, 8.0) as u64;
    let weather = (0..stretches).map(|_| {
        let slots = Weather { latency, throttle_latency, ..Weather::slots(between(5.0, 25.0) as u64, 0) };
        if between(1.0, 16.0) < 2.0 {
            Weather { slots: u32::MAX, per_second: between(10.0, 2e3), ..slots }
        } else {
            Weather { slots: between(1.0, 250.0) as u32, ..slots }
        }
    });
    Scenario { name: "drawn", weather: weather.collect(), backlog: Backlog::Endless, lanes: 1, seed }
}
