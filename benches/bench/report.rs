//! Tables for people and JSON for machines, from samples gathered in rounds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

use crate::process;

/// One measurement of one system: figures by column.
pub type Sample = BTreeMap<&'static str, f64>;

/// The samples of one bench, by system.
pub struct Report {
    name: &'static str,
    columns: &'static [&'static str],
    systems: Vec<(String, Vec<Sample>)>,
    ratios: Vec<Ratio>,
}

/// One figure divided by another of the same round.
struct Ratio {
    label: String,
    over: (String, &'static str),
    under: (String, &'static str),
    target: String,
}

impl Report {
    pub fn new(name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { name, columns, systems: Vec::new(), ratios: Vec::new() }
    }

    pub fn add(&mut self, system: &str, sample: Sample) {
        eprintln!("  {system}: {}", in_line(&sample));
        match self.systems.iter_mut().find(|(name, _)| name == system) {
            Some((_, samples)) => samples.push(sample),
            None => self.systems.push((system.to_owned(), vec![sample])),
        }
    }

    /// Adds a ratio of two columns of two systems, computed within each round. `target` is only printed.
    pub fn ratio(&mut self, over: (&str, &'static str), under: (&str, &'static str), target: &str) {
        let label = format!("{} {} / {} {}", over.0, over.1, under.0, under.1);
        if self.ratios.iter().any(|ratio| ratio.label == label) {
            return;
        }
        let own = |(system, column): (&str, &'static str)| (system.to_owned(), column);
        self.ratios.push(Ratio { label, over: own(over), under: own(under), target: target.to_owned() });
    }

    /// Prints the medians and writes everything to `target/bench/NAME.json`.
    pub fn finish(&self) -> anyhow::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([&[self.name][..], self.columns].concat());
        for (system, samples) in &self.systems {
            let medians = self.columns.iter().map(|column| shown(median(&values(samples, column))));
            table.add_row(std::iter::once(system.clone()).chain(medians));
        }
        align(&mut table);
        println!("\n{table}");

        let mut ratios = Table::new();
        ratios.load_style(presets::ASCII_MARKDOWN).set_header(["ratio within a round", "median", "range", "target"]);
        let mut found = BTreeMap::new();
        for ratio in &self.ratios {
            let of_rounds = self.of_rounds(ratio);
            let range = format!("{} to {}", shown(least(&of_rounds)), shown(most(&of_rounds)));
            ratios.add_row([&ratio.label, &shown(median(&of_rounds)), &range, &ratio.target]);
            found.insert(ratio.label.clone(), json!({ "rounds": of_rounds, "target": ratio.target }));
        }
        if !self.ratios.is_empty() {
            align(&mut ratios);
            println!("\n{ratios}\n");
        }

        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        fs::create_dir_all(&directory).context("making the directory of results")?;
        let systems: BTreeMap<_, _> = self.systems.iter().map(|(name, samples)| (name, samples)).collect();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let json = json!({
            "bench": self.name,
            "cores": cores,
            "load_average_at_the_end": process::load_average(),
            "systems": systems,
            "ratios": found,
        });
        let path = directory.join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_string_pretty(&json)?).context("writing the results")
    }

    fn of_rounds(&self, ratio: &Ratio) -> Vec<f64> {
        let column = |(system, column): &(String, &'static str)| {
            let samples =
                self.systems.iter().find(|(name, _)| name == system).map(|(_, samples)| values(samples, column));
            samples.unwrap_or_default()
        };
        column(&ratio.over).into_iter().zip(column(&ratio.under)).map(|(over, under)| over / under).collect()
    }
}

fn values(samples: &[Sample], column: &str) -> Vec<f64> {
    samples.iter().map(|sample| sample.get(column).copied().unwrap_or(f64::NAN)).collect()
}

fn align(table: &mut Table) {
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
}

fn in_line(sample: &Sample) -> String {
    sample.iter().map(|(column, value)| format!("{column} {}", shown(*value))).collect::<Vec<_>>().join(", ")
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<_> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

fn shown(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => String::new(),
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
