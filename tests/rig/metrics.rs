//! Reads `/metrics`.

/// One scrape in the Prometheus text format.
#[derive(Debug)]
pub struct Scrape(pub String);

impl Scrape {
    /// The sum over all series of `name` that have all of `labels`. 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        self.0
            .lines()
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
                let fits = series_name == name && wanted.iter().all(|label| series_labels.contains(label));
                fits.then(|| value.parse::<f64>().expect("a sample is a number"))
            })
            .sum()
    }
}

#[test]
fn series_are_added_up_by_name_and_label() {
    let scrape = Scrape("# HELP a b c\na{f=\"x\",s=\"r\"} 2\na{f=\"y\",s=\"r\"} 3\na_total 7\nb 1.5\n".to_owned());
    assert_eq!(scrape.sum("a", &[]), 5.0);
    assert_eq!(scrape.sum("a", &[("f", "y"), ("s", "r")]), 3.0);
    assert_eq!(scrape.sum("b", &[]), 1.5);
    assert_eq!(scrape.sum("c", &[]), 0.0);
}
