//! Prometheus's text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

/// What is asked for it is one of `text/plain`.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics of which each has its samples. One that doesn't fit drops itself, never the page.
#[derive(Default)]
pub(super) struct Page {
    families: BTreeMap<&'static str, Family>,
    seen: HashSet<String>,
}

struct Family {
    help: &'static str,
    kind: &'static str,
    samples: String,
}

impl Page {
    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: impl Into<f64>) {
        self.add(name, help, "gauge", labels, value.into());
    }

    /// A value that only goes up, until its server starts anew.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: impl Into<f64>) {
        self.add(name, help, "counter", labels, value.into());
    }

    fn add(&mut self, name: &'static str, help: &'static str, kind: &'static str, labels: &[(&str, &str)], value: f64) {
        let mut series = name.to_owned();
        for (number, (label, text)) in labels.iter().enumerate() {
            let _ = write!(series, "{}{label}=\"{}\"", if number == 0 { '{' } else { ',' }, escaped(text));
        }
        if !labels.is_empty() {
            series.push('}');
        }
        // Prometheus refuses a whole page for one sample that comes twice.
        if !value.is_finite() || !self.seen.insert(series.clone()) {
            return;
        }
        let family = self.families.entry(name).or_insert_with(|| Family { help, kind, samples: String::new() });
        let _ = writeln!(family.samples, "{series} {value}");
    }

    /// The page as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, Family { help, kind, samples }) in &self.families {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }
}

fn escaped(text: &str) -> String {
    // Prometheus takes no other control characters.
    let text: String = text.chars().filter(|character| *character == '\n' || !character.is_control()).collect();
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_labels_are_escaped_and_nothing_comes_twice() {
        let mut page = Page::default();
        for value in [1.0, 2.0] {
            page.gauge("a", "What it is", &[("name", "x\"y\\z\n\0ü")], value);
        }
        page.gauge("b", "Nothing", &[], f64::NAN);
        assert_eq!(page.render(), "# HELP a What it is\n# TYPE a gauge\na{name=\"x\\\"y\\\\z\\nü\"} 1\n");
    }
}
