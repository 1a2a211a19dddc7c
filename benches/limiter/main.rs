//! Compares sendoff's limiter with a fixed concurrency and Vector's adaptive one, in virtual time: `make limiter`.
//!
//! Prints the tables of docs/delivery.md, and writes them as JSON to `target/bench/limiter.json` and the plot to
//! `docs/limiter.svg`. It reads no clock, so every run gives the same figures.

use std::fs;
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use controllers::{Account, Fixed, InAccount, Sendoff, Vector};
use model::{ATTEMPTS_MAX, Controller, Outcome, Scenario, run};
use serde_json::{Value, json};

mod controllers;

mod model;

mod plot;

mod scenarios;

/// Attempts in flight over a whole account, as by default.
const IN_FLIGHT_MAX: u32 = 256;

#[derive(Debug, Clone, Copy)]
enum System {
    Sendoff,
    Fixed(u32),
    Vector,
}

const SYSTEMS: [System; 4] = [System::Sendoff, System::Vector, System::Fixed(10), System::Fixed(64)];

impl System {
    fn name(self) -> String {
        match self {
            Self::Sendoff => "sendoff".to_owned(),
            Self::Vector => "Vector's".to_owned(),
            Self::Fixed(limit) => format!("fixed {limit}"),
        }
    }

    fn controllers(self, lanes: usize) -> Vec<Box<dyn Controller>> {
        let account = Account::new(IN_FLIGHT_MAX);
        let controller = |_| -> Box<dyn Controller> {
            match self {
                Self::Sendoff if lanes > 1 => Box::new(InAccount::new(&account)),
                Self::Sendoff => Box::new(Sendoff::up_to(ATTEMPTS_MAX)),
                Self::Fixed(limit) => Box::new(Fixed(limit)),
                Self::Vector => Box::new(Vector::new()),
            }
        };
        (0..lanes).map(controller).collect()
    }

    fn outcome(self, scenario: &Scenario) -> Outcome {
        Outcome::sum(&run(scenario, &mut self.controllers(scenario.lanes)))
    }
}

fn main() -> anyhow::Result<()> {
    let json = json!({ "known": known(), "hold_out": hold_out() });
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = root.join("target/bench");
    fs::create_dir_all(&directory).context("making the directory of results")?;
    fs::write(directory.join("limiter.json"), serde_json::to_string_pretty(&json)?).context("writing the results")?;
    fs::write(root.join("docs/limiter.svg"), plot::draw()).context("writing the plot")
}

fn known() -> Value {
    let mut table = table(&["scenario", "system", "used", "wasted", "a call takes", "note"]);
    let mut json = Vec::new();
    for scenario in scenarios::known() {
        for system in SYSTEMS {
            let outcome = system.outcome(&scenario);
            let note = match (scenario.lanes, scenario.backlog) {
                (1, model::Backlog::Endless) => String::new(),
                (1, model::Backlog::Bursts { .. }) => format!("an event waits {:.0} ms", outcome.wait_millis()),
                _ => format!("the lanes' parts: 1 to {:.2}", 1.0 / outcome.fairness()),
            };
            table.add_row([
                scenario.name.to_owned(),
                system.name(),
                percent(outcome.used()),
                percent(outcome.wasted()),
                format!("{:.0} ms", outcome.call_millis()),
                note,
            ]);
            json.push(json!({
                "scenario": scenario.name, "system": system.name(), "used": outcome.used(), "wasted": outcome.wasted(),
                "call_millis": outcome.call_millis(), "wait_millis": outcome.wait_millis(), "fairness": outcome.fairness(),
            }));
        }
    }
    println!("{table}\n");
    json.into()
}

fn hold_out() -> Value {
    let mut table =
        table(&["hold-out", "used: median", "worst tenth", "worst", "wasted: median", "worst tenth", "worst"]);
    let mut json = Vec::new();
    for system in SYSTEMS {
        let outcomes: Vec<_> = scenarios::HOLD_OUT.map(|seed| system.outcome(&scenarios::drawn(seed))).collect();
        let mut used: Vec<f64> = outcomes.iter().map(Outcome::used).collect();
        let mut wasted: Vec<f64> = outcomes.iter().map(Outcome::wasted).collect();
        used.sort_by(|a, b| b.total_cmp(a));
        wasted.sort_by(f64::total_cmp);
        let cells = [&used, &wasted].map(|sorted| [part(sorted, 0.5), part(sorted, 0.9), part(sorted, 1.0)]);
        table.add_row(std::iter::once(system.name()).chain(cells.as_flattened().iter().copied().map(percent)));
        json.push(json!({ "system": system.name(), "used": used, "wasted": wasted }));
    }
    println!("{table}\n");
    json.into()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table.column_iter_mut().skip(2).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// The value at this part of a sorted row.
fn part(sorted: &[f64], part: f64) -> f64 {
    let at = ((sorted.len() - 1) as f64 * part) as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
