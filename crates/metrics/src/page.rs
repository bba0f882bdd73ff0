//! The text format of Prometheus.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// A page under construction.
#[derive(Clone, Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// What the samples that follow are.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample, with labels as they stand between the braces.
    pub fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    /// A number without labels.
    pub fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.value(name, "", value);
    }

    /// A histogram's samples.
    pub fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            below += count;
            self.value(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), below);
        }
        self.value(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), histogram.count());
        self.value(&format!("{name}_sum"), labels, histogram.sum);
        self.value(&format!("{name}_count"), labels, histogram.count());
    }

    /// The page.
    pub fn text(self) -> String {
        self.text
    }
}

/// A Prometheus histogram.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is above all of them.
    pub counts: Vec<u64>,
    /// The sum of all observations in seconds.
    pub sum: f64,
    /// The bounds.
    pub bounds: &'static [f64],
}

impl Histogram {
    /// Counts a value. The bounds are the same each time.
    pub fn observe(&mut self, bounds: &'static [f64], value: Duration) {
        let seconds = value.as_secs_f64();
        self.bounds = bounds;
        self.counts.resize(bounds.len() + 1, 0);
        self.counts[bounds.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += seconds;
    }

    /// Both together; of the same bounds.
    pub fn with(&self, other: &Histogram) -> Histogram {
        let mut sum = self.clone();
        if other.counts.len() > sum.counts.len() {
            sum.bounds = other.bounds;
            sum.counts.resize(other.counts.len(), 0);
        }
        sum.counts.iter_mut().zip(&other.counts).for_each(|(mine, others)| *mine += others);
        sum.sum += other.sum;
        sum
    }

    /// How many observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A label's value as it stands between quotes.
pub(crate) fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Labels as they stand between the braces.
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value))).collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_is_at_most_each_bound() {
        let mut histogram = Histogram::default();
        for milliseconds in [1, 5, 6, 2000] {
            histogram.observe(&[0.005, 1.0], Duration::from_millis(milliseconds));
        }
        let mut page = Page::default();
        page.histogram("h", &labels(&[("verb", "GET"), ("odd", "a\"b\\")]), &histogram);
        let labels = "verb=\"GET\",odd=\"a\\\"b\\\\\"";
        let expected = format!(
            "h_bucket{{{labels},le=\"0.005\"}} 2\nh_bucket{{{labels},le=\"1\"}} 3\nh_bucket{{{labels},le=\"+Inf\"}} 4\n\
             h_sum{{{labels}}} 2.012\nh_count{{{labels}}} 4\n"
        );
        assert_eq!(page.text(), expected);
    }
}
