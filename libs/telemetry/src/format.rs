//! Lines that say who speaks: the library's formats with run, role and rank in front.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::identity::Identity;

/// A format with a fixed prefix.
pub(crate) struct Labelled<L> {
    format: Format<L>,
    prefix: String,
}

impl Labelled<Full> {
    /// `worker 3 ` and the line. The run is not repeated: a person watches one.
    pub(crate) fn human(identity: &Identity) -> Labelled<Full> {
        let index = identity.index.map_or(String::new(), |index| format!(" {index}"));
        let format = Format::default().with_target(false).with_ansi(false);
        Labelled { format, prefix: format!("{}{index} ", identity.role) }
    }
}

impl Labelled<Json> {
    /// The line's object with `run`, `role` and `rank` as its first members.
    pub(crate) fn json(identity: &Identity) -> Labelled<Json> {
        let run = serde_json::Value::from(identity.run.as_str());
        let rank = identity.index.map_or("null".into(), |index| index.to_string());
        let prefix = format!("{{\"run\":{run},\"role\":\"{}\",\"rank\":{rank},", identity.role);
        Labelled { format: Format::default().json(), prefix }
    }
}

impl<S, N> FormatEvent<S, N> for Labelled<Full>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(&self.prefix)?;
        self.format.format_event(context, writer, event)
    }
}

impl<S, N> FormatEvent<S, N> for Labelled<Json>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&self.prefix)?;
        writer.write_str(line.strip_prefix('{').unwrap_or(&line))
    }
}
