//! The subscriber: who speaks, how loudly, in which form.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::format::Labelled;
use crate::identity::Identity;
use crate::stderr::lossy_stderr;

/// Form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line, with `run`, `role` and `rank`.
    Json,
}

impl std::str::FromStr for Format {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Format, TelemetryError> {
        match text {
            "human" => Ok(Format::Human),
            "json" => Ok(Format::Json),
            other => Err(TelemetryError::Format(other.to_owned())),
        }
    }
}

/// How loudly, in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// A level (`info`) or directives (`info,polygram_worker=debug`).
    pub level: String,
    /// Form of a line.
    pub format: Format,
}

impl Default for Logging {
    fn default() -> Logging {
        Logging { level: "info".into(), format: Format::Human }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not understood.
    #[error(
        "log level {level:?}: {reason}; use error, warn, info, debug or trace, or directives as info,module=debug"
    )]
    Level {
        /// As given.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The format is not understood.
    #[error("log format {0:?} is not known; use human or json")]
    Format(String),
    /// The process has set up logging before.
    #[error("logging is already set up in this process")]
    Twice,
}

/// Sends the process's logs to stderr. Once per process, before anything is logged. Lines that cannot be written there are
/// dropped: no log ever ends or stops a process.
pub fn init(identity: &Identity, logging: &Logging) -> Result<(), TelemetryError> {
    let subscriber = subscriber(identity, logging, lossy_stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)
}

fn subscriber<W>(
    identity: &Identity,
    logging: &Logging,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = |reason: String| TelemetryError::Level { level: logging.level.clone(), reason };
    if logging.level.trim().is_empty() {
        return Err(level("empty".into()));
    }
    // A bare word that is no level would be taken for a module and silence everything else.
    let filter = EnvFilter::builder().parse(&logging.level).map_err(|e| level(e.to_string()))?;
    if !logging.level.contains('=') && logging.level.parse::<tracing::level_filters::LevelFilter>().is_err() {
        return Err(level("not a level".into()));
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        // They would be printed to standard error, by a macro that panics where that is broken.
        .log_internal_errors(false);
    Ok(match logging.format {
        Format::Human => Box::new(builder.event_format(Labelled::human(identity)).finish()),
        Format::Json => Box::new(builder.json().event_format(Labelled::json(identity)).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::identity::Role;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: &str, index: Option<u32>) -> String {
        let sink = Sink::default();
        let identity = Identity { run: "demo \"1\"".into(), role: Role::Worker, index };
        let writer = sink.clone();
        let logging = Logging { level: level.into(), format };
        let subscriber = subscriber(&identity, &logging, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("update", step = 7).entered();
            tracing::info!(loss = 2.5, "updated");
            tracing::debug!("detail");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_carry_who_speaks() {
        let text = logged(Format::Json, "info", Some(3));
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(
            (&line["run"], &line["role"], &line["rank"]),
            (&"demo \"1\"".into(), &"worker".into(), &3.into())
        );
        assert_eq!(line["fields"]["message"], "updated");
        assert_eq!(line["fields"]["loss"], 2.5);
        assert_eq!(line["span"]["step"], 7);
        let text = logged(Format::Json, "info", None);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["rank"],
            serde_json::Value::Null
        );
    }

    #[test]
    fn human_lines_begin_with_who_speaks() {
        let text = logged(Format::Human, "info", Some(3));
        assert!(text.starts_with("worker 3 "), "{text}");
        assert!(text.contains("updated") && text.contains("loss=2.5") && !text.contains("detail"), "{text}");
        assert_eq!(logged(Format::Human, "warn", None), "");
        assert_eq!(logged(Format::Human, "warn,polygram_telemetry=debug", None).lines().count(), 2);
    }

    #[test]
    fn unknown_levels_and_formats_are_refused() {
        let identity = Identity { run: "demo".into(), role: Role::Cli, index: None };
        for level in ["", "loud", "info,=x="] {
            let logging = Logging { level: level.into(), format: Format::Human };
            assert!(matches!(init(&identity, &logging), Err(TelemetryError::Level { .. })), "{level:?}");
        }
        assert!("xml".parse::<Format>().is_err());
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
    }
}
