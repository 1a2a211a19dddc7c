//! Draws the plot of docs/delivery.md: the limit while Lambda's slots go from 10 to 100 to 5.

use std::cell::RefCell;
use std::fmt::Write as _;

use crate::controllers::{Sendoff, Vector};
use crate::model::{ATTEMPTS_MAX, Backlog, Controller, Micros, SECOND, Scenario, Weather, run};

const SECONDS: u64 = 60;
const TOP: f64 = 140.0;
const COURSE: [(u64, u32); 3] = [(20, 10), (20, 100), (20, 5)];

/// The least distance between points of a curve.
const EVERY: Micros = SECOND / 20;

/// Records the limit while another controller decides.
struct Watched<'a> {
    inner: Box<dyn Controller>,
    seen: &'a RefCell<Vec<(Micros, u32)>>,
}

impl Watched<'_> {
    fn look(&self, now: Micros) {
        let mut seen = self.seen.borrow_mut();
        if seen.last().is_none_or(|&(last, _)| now >= last + EVERY) {
            seen.push((now, self.inner.limit()));
        }
    }
}

impl Controller for Watched<'_> {
    fn limit(&self) -> u32 {
        self.inner.limit()
    }

    fn began(&mut self, in_flight: u32) {
        self.inner.began(in_flight);
    }

    fn answered(&mut self, began: Micros, now: Micros) {
        self.inner.answered(began, now);
        self.look(now);
    }

    fn throttled(&mut self, began: Micros, now: Micros) {
        self.inner.throttled(began, now);
        self.look(now);
    }
}

fn curve(inner: Box<dyn Controller>) -> String {
    let seen = RefCell::default();
    let weather = COURSE.map(|(seconds, slots)| Weather::slots(seconds, slots)).to_vec();
    let scenario = Scenario { name: "plot", weather, backlog: Backlog::Endless, lanes: 1, seed: 7 };
    run(&scenario, &mut [Box::new(Watched { inner, seen: &seen })]);
    let points = seen.into_inner();
    points.iter().fold(String::new(), |mut text, &(at, limit)| {
        write!(text, "{:.1},{:.1} ", x(at), y(limit.into())).unwrap_or_default();
        text
    })
}

fn x(at: Micros) -> f64 {
    50.0 + at as f64 / (SECONDS * SECOND) as f64 * 640.0
}

fn y(limit: f64) -> f64 {
    270.0 - limit.min(TOP) / TOP * 240.0
}

pub fn draw() -> String {
    let (limits, vector) = (curve(Box::new(Sendoff::up_to(ATTEMPTS_MAX))), curve(Box::new(Vector::new())));
    let mut slots = String::new();
    let mut at = 0;
    for (seconds, count) in COURSE {
        let (from, to) = (x(at), x(at + seconds * SECOND));
        slots += &format!("{from:.1},{0:.1} {to:.1},{0:.1} ", y(count.into()));
        at += seconds * SECOND;
    }
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 310\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"310\" fill=\"white\"/>\n",
    );
    for tick in (0..=6).map(|n| f64::from(n) * 20.0) {
        svg += &format!("<path d=\"M50 {0:.1}H690\" stroke=\"#ddd\"/>", y(tick));
        svg += &format!("<text x=\"44\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>\n", y(tick) + 4.0);
    }
    for tick in (0..=6).map(|n| n * 10) {
        svg += &format!("<text x=\"{:.0}\" y=\"288\" text-anchor=\"middle\">{tick} s</text>\n", x(tick * SECOND));
    }
    svg += &format!(
        "<polyline points=\"{vector}\" fill=\"none\" stroke=\"#d80\" stroke-width=\"1\"/>\n\
         <polyline points=\"{limits}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"1.5\"/>\n\
         <polyline points=\"{slots}\" fill=\"none\" stroke=\"#333\" stroke-dasharray=\"5 3\"/>\n\
         <text x=\"50\" y=\"16\">attempts at once: <tspan fill=\"#333\">Lambda's slots (dashed)</tspan>, \
         <tspan fill=\"#06c\">sendoff's limit</tspan>, <tspan fill=\"#d80\">Vector's limit</tspan></text>\n\
         <text x=\"50\" y=\"32\" fill=\"#555\">a call takes 50 to 150 ms, a throttle 10 ms</text>\n</svg>\n"
    );
    svg
}
