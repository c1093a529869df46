//! The text format of Prometheus: a family is a name with `# HELP` and `# TYPE`, then its samples.

use std::fmt::Write as _;

use crate::pool::Times;

/// What every name begins with.
const PREFIX: &str = "mendfs_";

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A text in the making.
#[derive(Debug, Default)]
pub(super) struct Text {
    text: String,
    family: String,
    /// On every sample, so that the texts of several pools can be put together.
    pool: String,
}

// Writing to a string does not fail.
impl Text {
    /// A text about this pool.
    pub(super) fn new(pool: &str) -> Text {
        Text {
            pool: pool.to_owned(),
            ..Text::default()
        }
    }

    /// Begins a family.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.family = format!("{PREFIX}{name}");
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let name = &self.family;
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A family of one counter.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help);
        self.sample(&[], value);
    }

    /// A family of one gauge.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, Kind::Gauge, help);
        self.sample(&[], value);
    }

    /// A sample of the family.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.line("", labels, &value.to_string());
    }

    /// A sample that is not whole.
    pub(super) fn real(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, &value.to_string());
    }

    /// The samples of a histogram.
    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], times: &Times) {
        let bounds = times.buckets.iter();
        let buckets = bounds.map(|(bound, count)| (bound.to_string(), *count));
        for (bound, count) in buckets.chain([("+Inf".to_owned(), times.count)]) {
            let mut labels = labels.to_vec();
            labels.push(("le", &bound));
            self.line("_bucket", &labels, &count.to_string());
        }
        self.line("_sum", labels, &times.sum.to_string());
        self.line("_count", labels, &times.count.to_string());
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: &str) {
        let pool = ("pool", self.pool.as_str());
        let labels = [pool].into_iter().chain(labels.iter().copied());
        let labels: Vec<String> = labels
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = labels.join(",");
        let _ = writeln!(self.text, "{}{suffix}{{{labels}}} {value}", self.family);
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_help_type_and_escaped_labels() {
        let mut text = Text::new("p");
        text.family("mirror_size_bytes", Kind::Gauge, "Size.");
        text.sample(&[("mirror", "/a\"b\\c\nd")], 7);
        let expected = "# HELP mendfs_mirror_size_bytes Size.\n\
                        # TYPE mendfs_mirror_size_bytes gauge\n\
                        mendfs_mirror_size_bytes{pool=\"p\",mirror=\"/a\\\"b\\\\c\\nd\"} 7\n";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn a_histogram_ends_with_all() {
        let mut text = Text::new("p");
        text.family("x_seconds", Kind::Histogram, "X.");
        let times = Times {
            buckets: vec![(0.001, 1), (0.1, 2)],
            count: 3,
            sum: 1.5,
        };
        text.histogram(&[("class", "read")], &times);
        let text = text.finish();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let expected = [
            "mendfs_x_seconds_bucket{pool=\"p\",class=\"read\",le=\"0.001\"} 1",
            "mendfs_x_seconds_bucket{pool=\"p\",class=\"read\",le=\"0.1\"} 2",
            "mendfs_x_seconds_bucket{pool=\"p\",class=\"read\",le=\"+Inf\"} 3",
            "mendfs_x_seconds_sum{pool=\"p\",class=\"read\"} 1.5",
            "mendfs_x_seconds_count{pool=\"p\",class=\"read\"} 3",
        ];
        assert_eq!(lines, expected);
    }
}
