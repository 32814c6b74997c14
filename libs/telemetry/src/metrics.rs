//! Metrics of a process: sources that are asked at every scrape, and the page that they write.
//!
//! Nothing is counted here. A [`Source`] holds a snapshot that its owner renews ([`tokio::sync::watch`] or the like) and
//! turns it into samples when somebody asks; so a scrape costs the threads that work nothing.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::identity::Identity;

/// A metric's name and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name as it is asked for.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
}

/// A value with its labels; `run`, `role` and `rank` come by themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<T = f64> {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: T,
}

impl<T> Sample<T> {
    /// A value that needs no further label.
    pub fn plain(value: T) -> Sample<T> {
        Sample { labels: Vec::new(), value }
    }

    /// A value of one of several.
    pub fn of(label: &'static str, of: impl fmt::Display, value: T) -> Sample<T> {
        Sample { labels: vec![(label, of.to_string())], value }
    }

    /// The same with another label.
    pub fn and(mut self, label: &'static str, of: impl fmt::Display) -> Sample<T> {
        self.labels.push((label, of.to_string()));
        self
    }
}

/// How often values fell where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Sum of all values.
    pub sum: f64,
    /// (upper bound, values at most that and above the bound before), bounds rising, the last one infinite.
    pub buckets: Vec<(f64, u64)>,
}

/// Something that has numbers to tell.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Writes them. Called at every scrape; must not wait for anybody who works.
    ///
    /// # Errors
    /// Those of the page.
    fn write(&self, page: &mut Page<'_>) -> fmt::Result;
}

/// The answer being written.
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    /// A value that goes up and down.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn gauge(&mut self, metric: Metric, samples: impl IntoIterator<Item = Sample>) -> fmt::Result {
        let help = metric.help.trim();
        let mut encoder = self.encoder.encode_descriptor(metric.name, help, None, MetricType::Gauge)?;
        for Sample { labels, value } in samples {
            encoder.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A value that only goes up; its name ends in `_total`.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn counter(&mut self, metric: Metric, samples: impl IntoIterator<Item = Sample>) -> fmt::Result {
        // The format's own suffix.
        let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
        let help = metric.help.trim();
        let mut encoder = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for Sample { labels, value } in samples {
            encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, f64>(&value, None)?;
        }
        Ok(())
    }

    /// How values are distributed.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn histogram(
        &mut self,
        metric: Metric,
        samples: impl IntoIterator<Item = Sample<Histogram>>,
    ) -> fmt::Result {
        let help = metric.help.trim();
        let mut encoder = self.encoder.encode_descriptor(metric.name, help, None, MetricType::Histogram)?;
        for Sample { labels, value: Histogram { sum, buckets } } in samples {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// All sources of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// None yet; every sample will carry `run`, `role` and, where there is one, `rank`.
    pub fn new(identity: &Identity) -> Metrics {
        let mut labels = vec![
            ("run".into(), identity.run.clone().into()),
            ("role".into(), identity.role.to_string().into()),
        ];
        labels.extend(identity.index.map(|index| ("rank".into(), index.to_string().into())));
        Metrics { registry: Registry::with_labels(labels.into_iter()) }
    }

    /// Adds a source. No two may write the same metric.
    pub fn with(mut self, source: Arc<dyn Source>) -> Metrics {
        self.registry.register_collector(Box::new(Asked(source)));
        self
    }

    /// Everything, as text (OpenMetrics 1.0, which Prometheus reads).
    ///
    /// # Errors
    /// When a source fails to write.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct Asked(Arc<dyn Source>);

impl Collector for Asked {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.write(&mut Page { encoder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;

    #[derive(Debug)]
    struct Numbers;

    impl Source for Numbers {
        fn write(&self, page: &mut Page<'_>) -> fmt::Result {
            let rows = Metric { name: "polygram_rows", help: " Rows." };
            page.gauge(rows, [Sample::of("table", 3, 5.0), Sample::of("table", "\"odd\"", 0.5)])?;
            page.gauge(Metric { name: "polygram_ratio", help: " R." }, [Sample::plain(0.25)])?;
            let updates = Metric { name: "polygram_updates_total", help: " Updates." };
            page.counter(updates, [Sample::plain(7.0)])?;
            let buckets = vec![(1.0, 2), (2.0, 0), (f64::INFINITY, 3)];
            page.histogram(
                Metric { name: "polygram_norm", help: " Norm." },
                [Sample::plain(Histogram { sum: 12.5, buckets }).and("lane", 1)],
            )
        }
    }

    #[test]
    fn samples_carry_who_says_them() {
        let identity = Identity { run: "demo".into(), role: Role::Shard, index: Some(2) };
        let text = Metrics::new(&identity).with(Arc::new(Numbers)).text().unwrap();
        let who = "run=\"demo\",role=\"shard\",rank=\"2\"";
        for line in [
            "# HELP polygram_rows Rows.".to_owned(),
            "# TYPE polygram_rows gauge".to_owned(),
            format!("polygram_rows{{{who},table=\"3\"}} 5.0"),
            format!("polygram_rows{{{who},table=\"\\\"odd\\\"\"}} 0.5"),
            format!("polygram_ratio{{{who}}} 0.25"),
            "# TYPE polygram_updates counter".to_owned(),
            format!("polygram_updates_total{{{who}}} 7.0"),
            format!("polygram_norm_count{{{who},lane=\"1\"}} 5"),
            format!("polygram_norm_bucket{{{who},lane=\"1\",le=\"2.0\"}} 2"),
            format!("polygram_norm_bucket{{{who},lane=\"1\",le=\"+Inf\"}} 5"),
        ] {
            let sorted = |line: &str| {
                let mut chars: Vec<char> = line.chars().collect();
                chars.sort_unstable();
                chars
            };
            // Labels may come in any order.
            assert!(text.lines().any(|have| sorted(have) == sorted(&line)), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(!text.contains(",}") && !text.contains("{,") && !text.contains("{}"), "{text}");
    }
}
