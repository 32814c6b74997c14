//! The file that a pool's queue is kept in: SQLite, one writer, durable before anybody is answered.
//!
//! It is the truth of the queue (which jobs there are, in which order, whose turn came) and of nothing else. What a run
//! has done stands in the run's own store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polygram_domain::{ConfigError, RunFile};
use polygram_proto::pool::{JobId, JobState};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, params};

use super::core::{JobRecord, Needs, Progress};
use crate::core::Time;

/// "poly": what SQLite calls the application that a file belongs to.
const APPLICATION: i32 = 0x706f_6c79;

/// One step of the schema each; a file of version n has had the first n.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE pool (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL,
        config_toml TEXT NOT NULL,
        priority INTEGER NOT NULL,
        preemptible INTEGER NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        submitted_ms INTEGER NOT NULL,
        started_ms INTEGER,
        ended_ms INTEGER,
        sessions INTEGER NOT NULL,
        workers INTEGER NOT NULL,
        patient_until_ms INTEGER NOT NULL,
        is_cancelled INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE job_events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job INTEGER NOT NULL REFERENCES jobs (id),
        at_ms INTEGER NOT NULL,
        word TEXT NOT NULL
    ) STRICT;
    CREATE INDEX job_events_of ON job_events (job);
    CREATE TRIGGER job_events_stay_as_written BEFORE UPDATE ON job_events
        BEGIN SELECT RAISE (ABORT, 'the history of jobs is not rewritten'); END;
    CREATE TRIGGER job_events_stay BEFORE DELETE ON job_events
        BEGIN SELECT RAISE (ABORT, 'the history of jobs is not rewritten'); END;
",
    "
    ALTER TABLE jobs ADD COLUMN step INTEGER;
    ALTER TABLE jobs ADD COLUMN last_commit INTEGER;
",
];

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{path} is in use by another coordinator; stop that one first, or give this one another --state")]
    InUse {
        /// The file.
        path: String,
    },
    /// It is no database, or one of another program.
    #[error("{path} is not the state of a pool ({what}); give another --state")]
    Foreign {
        /// The file.
        path: String,
        /// What it is instead.
        what: String,
    },
    /// A newer build has written it.
    #[error(
        "{path} has schema version {found}, this build knows versions up to {known}; use the newer build"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// Its contents are damaged.
    #[error(
        "{path} is damaged: {what}; put a copy in its place, or move it away to begin with an empty queue"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Where.
        what: String,
    },
    /// It belongs to a pool of another root.
    #[error(
        "{path} is the state of a pool with root {kept}, not {given}; give that --root, or another --state"
    )]
    OtherRoot {
        /// The file.
        path: String,
        /// The root in it.
        kept: String,
        /// The root given.
        given: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Sql {
        /// The file.
        path: String,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The runtime ended while the queue was written.
    #[error("the queue was not written: {0}")]
    Ended(tokio::task::JoinError),
    /// A kept run file is not legal for this build.
    #[error("{path}: the run file of job {job} is not legal any more: {source}")]
    Config {
        /// The file.
        path: String,
        /// The job.
        job: JobId,
        /// What is wrong.
        source: ConfigError,
    },
}

impl StoreError {
    /// Whether the file or the root that was given is what has to be changed.
    pub fn is_of_flags(&self) -> bool {
        matches!(self, StoreError::InUse { .. } | StoreError::Foreign { .. } | StoreError::OtherRoot { .. })
    }
}

/// A job as it is kept, with what follows from its run file.
pub type KeptJob = (JobRecord, Needs, Arc<str>);

/// The open file; no other process can open it meanwhile.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens the state of a pool whose runs are under `root`, making it if it is not there.
    pub fn open(path: &Path, root: &str) -> Result<Store, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let connection = Connection::open_with_flags(path, flags).map_err(|e| told(path, e))?;
        let mut store = Store { path: path.to_owned(), connection };
        store.lock().map_err(|e| told(path, e))?;
        store.migrate()?;
        store.check_root(root)?;
        Ok(store)
    }

    /// Takes the file for this process, durable writes only.
    fn lock(&self) -> rusqlite::Result<()> {
        self.connection.busy_timeout(std::time::Duration::ZERO)?;
        // Before anything is read: the first read takes the lock for good.
        self.connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        self.connection.query_row("PRAGMA journal_mode = WAL", [], |_row| Ok(()))?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.pragma_update(None, "foreign_keys", true)?;
        self.connection.execute_batch("BEGIN EXCLUSIVE; COMMIT;")
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let name = self.name();
        let path = self.path.clone();
        let sql = |e| told(&path, e);
        let integer =
            |pragma: &str| self.connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let (application, version) =
            (integer("application_id").map_err(sql)?, integer("user_version").map_err(sql)?);
        let tables: i64 = self
            .connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(sql)?;
        if tables > 0 && application != i64::from(APPLICATION) {
            let what = "it is a database of another program".to_owned();
            return Err(StoreError::Foreign { path: name, what });
        }
        let known = MIGRATIONS.len();
        let Some(had) = usize::try_from(version).ok().filter(|had| *had <= known) else {
            return Err(StoreError::Newer { path: name, found: version, known });
        };
        let sound: String =
            self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sql)?;
        if sound != "ok" {
            return Err(StoreError::Damaged { path: name, what: sound });
        }
        for (index, step) in MIGRATIONS.iter().enumerate().skip(had) {
            let change = self.connection.transaction().map_err(sql)?;
            change.execute_batch(step).map_err(sql)?;
            change.pragma_update(None, "application_id", APPLICATION).map_err(sql)?;
            change.pragma_update(None, "user_version", (index + 1) as i64).map_err(sql)?;
            change.commit().map_err(sql)?;
        }
        Ok(())
    }

    fn check_root(&self, root: &str) -> Result<(), StoreError> {
        let kept: Option<String> = self
            .connection
            .query_row("SELECT value FROM pool WHERE key = 'root'", [], |row| row.get(0))
            .optional()
            .map_err(|e| self.told(e))?;
        match kept {
            Some(kept) if kept != root => {
                Err(StoreError::OtherRoot { path: self.name(), kept, given: root.to_owned() })
            }
            Some(_) => Ok(()),
            None => {
                let insert = "INSERT INTO pool (key, value) VALUES ('root', ?1)";
                self.connection.execute(insert, [root]).map(|_rows| ()).map_err(|e| self.told(e))
            }
        }
    }

    /// Every job, oldest first.
    pub fn jobs(&self) -> Result<Vec<KeptJob>, StoreError> {
        let query = "SELECT id, run, priority, preemptible, state, reason, submitted_ms, started_ms, ended_ms, sessions, \
                     workers, patient_until_ms, is_cancelled, config_toml, step, last_commit FROM jobs ORDER BY id";
        let mut statement = self.connection.prepare(query).map_err(|e| self.told(e))?;
        let rows = statement.query_map([], read).map_err(|e| self.told(e))?;
        let mut jobs = Vec::new();
        for row in rows {
            let (record, state, config_toml) = row.map_err(|e| self.told(e))?;
            let job = record.job;
            let Some(state) = JobState::named(&state) else {
                let what = format!("job {job} is in state {state:?}, which there is not");
                return Err(StoreError::Damaged { path: self.name(), what });
            };
            let config = |source| StoreError::Config { path: self.name(), job, source };
            let file =
                RunFile::parse(&config_toml, &format!("run file of job {job}"), &[]).map_err(config)?;
            let needs = Needs::of(&file.resolve().map_err(config)?);
            jobs.push((JobRecord { state, ..record }, needs, Arc::from(config_toml)));
        }
        Ok(jobs)
    }

    /// What happened to a job, oldest first: when, and in words.
    pub fn history(&self, job: JobId) -> Result<Vec<(Time, String)>, StoreError> {
        let query = "SELECT at_ms, word FROM job_events WHERE job = ?1 ORDER BY id";
        let mut statement = self.connection.prepare(query).map_err(|e| self.told(e))?;
        let rows = statement.query_map([number(job.0)], |row| Ok((time(row.get(0)?), row.get(1)?)));
        rows.and_then(Iterator::collect).map_err(|e| self.told(e))
    }

    /// Keeps a new job.
    pub fn admit(&mut self, record: &JobRecord, config_toml: &str, now: Time) -> Result<(), StoreError> {
        self.change(|change| {
            change.execute(
                "INSERT INTO jobs (id, run, config_toml, priority, preemptible, state, reason, submitted_ms, sessions, \
                 workers, patient_until_ms, is_cancelled) VALUES (?1, ?2, ?3, ?4, ?5, '', '', ?6, 0, 0, 0, 0)",
                params![
                    number(record.job.0),
                    record.run,
                    config_toml,
                    record.priority,
                    record.preemptible,
                    number(record.submitted.0)
                ],
            )?;
            update(change, record, "submitted", now)
        })
    }

    /// Keeps a job that has changed, and one sentence of its history.
    pub fn save(&mut self, record: &JobRecord, word: &str, now: Time) -> Result<(), StoreError> {
        self.change(|change| update(change, record, word, now))
    }

    fn change(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let path = self.path.clone();
        let told = |e| told(&path, e);
        let transaction = self.connection.transaction().map_err(told)?;
        change(&transaction).map_err(told)?;
        transaction.commit().map_err(told)
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn told(&self, error: rusqlite::Error) -> StoreError {
        told(&self.path, error)
    }
}

fn update(change: &Transaction<'_>, record: &JobRecord, word: &str, now: Time) -> rusqlite::Result<()> {
    let changed = change.execute(
        "UPDATE jobs SET state = ?2, reason = ?3, started_ms = ?4, ended_ms = ?5, sessions = ?6, workers = ?7, \
         patient_until_ms = ?8, is_cancelled = ?9, step = ?10, last_commit = ?11 WHERE id = ?1",
        params![
            number(record.job.0),
            record.state.as_str(),
            record.reason,
            record.started.map(|at| number(at.0)),
            record.ended.map(|at| number(at.0)),
            record.sessions,
            record.workers,
            number(record.patient_until.0),
            record.is_cancelled,
            record.progress.map(|progress| number(progress.step)),
            record.progress.and_then(|progress| progress.last_commit).map(number)
        ],
    )?;
    if changed != 1 {
        return Err(rusqlite::Error::StatementChangedRows(changed));
    }
    let event = "INSERT INTO job_events (job, at_ms, word) VALUES (?1, ?2, ?3)";
    change.execute(event, params![number(record.job.0), number(now.0), word]).map(|_rows| ())
}

/// SQLite has signed numbers only.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn time(value: i64) -> Time {
    Time(u64::try_from(value).unwrap_or(0))
}

fn read(row: &Row<'_>) -> rusqlite::Result<(JobRecord, String, String)> {
    let optional = |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(index)?.map(time));
    let record = JobRecord {
        job: JobId(time(row.get(0)?).0),
        run: row.get(1)?,
        priority: row.get(2)?,
        preemptible: row.get(3)?,
        state: JobState::Queued,
        reason: row.get(5)?,
        submitted: time(row.get(6)?),
        started: optional(7)?,
        ended: optional(8)?,
        sessions: row.get(9)?,
        workers: row.get(10)?,
        patient_until: time(row.get(11)?),
        is_cancelled: row.get(12)?,
        progress: optional(14)?
            .map(|step| {
                Ok::<_, rusqlite::Error>(Progress { step: step.0, last_commit: optional(15)?.map(|at| at.0) })
            })
            .transpose()?,
    };
    Ok((record, row.get(4)?, row.get(13)?))
}

fn told(path: &Path, source: rusqlite::Error) -> StoreError {
    let name = path.display().to_string();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse { path: name },
        Some(ErrorCode::NotADatabase) => {
            StoreError::Foreign { path: name, what: "it is no SQLite database".into() }
        }
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Damaged { path: name, what: source.to_string() },
        _ => StoreError::Sql { path: name, source },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    const TINY: &str = include_str!("../../../configs/tiny.toml");

    fn record(job: u64) -> JobRecord {
        JobRecord {
            job: JobId(job),
            run: format!("run-{job}"),
            priority: -3,
            preemptible: true,
            state: JobState::Queued,
            reason: "submitted".into(),
            submitted: Time(1_700_000_000_000),
            started: None,
            ended: None,
            sessions: 0,
            workers: 0,
            patient_until: Time(5),
            is_cancelled: false,
            progress: None,
        }
    }

    fn open(path: &Path) -> Result<Store, StoreError> {
        Store::open(path, "/root-of-runs")
    }

    #[test]
    fn what_is_kept_is_read_by_the_next_coordinator() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let (first, second) = (record(1), record(2));
        let changed = JobRecord {
            state: JobState::Running,
            reason: "at work".into(),
            started: Some(Time(7)),
            sessions: 2,
            workers: 4,
            is_cancelled: true,
            progress: Some(Progress { step: 127, last_commit: Some(120) }),
            ..second.clone()
        };
        {
            let mut store = open(&path).unwrap();
            store.admit(&first, TINY, Time(1)).unwrap();
            store.admit(&second, TINY, Time(2)).unwrap();
            store.save(&changed, "its run is at work", Time(3)).unwrap();
            let twice = store.admit(&first, TINY, Time(4));
            assert!(matches!(twice, Err(StoreError::Sql { .. })), "{twice:?}");
            let unknown = store.save(&record(9), "never admitted", Time(4));
            assert!(matches!(unknown, Err(StoreError::Sql { .. })), "{unknown:?}");
            // What a process that is killed now leaves behind: the file and its log, nothing closed in order.
            let left = folder.path().join("left");
            std::fs::create_dir(&left).unwrap();
            for name in ["state.sqlite", "state.sqlite-wal"] {
                std::fs::copy(folder.path().join(name), left.join(name)).unwrap();
            }
        }
        let store = open(&folder.path().join("left/state.sqlite")).unwrap();
        let kept = store.jobs().unwrap();
        let records: Vec<&JobRecord> = kept.iter().map(|(record, ..)| record).collect();
        assert_eq!(records, [&first, &changed]);
        assert_eq!(&*kept[0].2, TINY);
        assert_eq!((kept[0].1.workers, kept[0].1.shards), (1, 2));
        let history = store.history(JobId(2)).unwrap();
        assert_eq!(history, [(Time(2), "submitted".into()), (Time(3), "its run is at work".into())]);
        for statement in ["DELETE FROM job_events", "UPDATE job_events SET word = 'else'"] {
            assert!(store.connection.execute(statement, []).is_err(), "{statement}");
        }
    }

    /// The file of an older build has its jobs afterwards, and can keep what it could not before.
    #[test]
    fn an_older_file_is_brought_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(MIGRATIONS[0]).unwrap();
        connection.pragma_update(None, "application_id", APPLICATION).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        let insert = "INSERT INTO jobs VALUES (1, 'run-1', ?1, -3, 1, 'queued', 'submitted', 1700000000000, NULL, NULL, 0, \
                      0, 5, 0)";
        connection.execute(insert, [TINY]).unwrap();
        drop(connection);
        let mut store = open(&path).unwrap();
        assert_eq!(store.jobs().unwrap()[0].0, record(1));
        let ended = JobRecord { progress: Some(Progress { step: 3, last_commit: None }), ..record(1) };
        store.save(&ended, "ended", Time(9)).unwrap();
        assert_eq!(store.jobs().unwrap()[0].0, ended);
    }

    #[test]
    fn one_coordinator_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let first = open(&path).unwrap();
        let refused = open(&path).unwrap_err();
        assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains("state.sqlite"), "{refused}");
        drop(first);
        open(&path).unwrap();
    }

    #[test]
    fn another_root_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        drop(open(&path).unwrap());
        let refused = Store::open(&path, "s3://elsewhere").unwrap_err();
        assert!(matches!(&refused, StoreError::OtherRoot { .. }), "{refused}");
        assert!(refused.to_string().contains("/root-of-runs"), "{refused}");
    }

    #[test]
    fn files_of_others_are_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("notes.txt");
        std::fs::write(
            &text,
            "these are notes, and they are longer than the header of a database file\n".repeat(20),
        )
        .unwrap();
        let before = std::fs::read(&text).unwrap();
        let refused = open(&text).unwrap_err();
        assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");
        assert_eq!(std::fs::read(&text).unwrap(), before);

        let other = folder.path().join("other.sqlite");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE songs (title TEXT)").unwrap();
        let refused = open(&other).unwrap_err();
        assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");

        let nowhere = open(&folder.path().join("no/such/folder/state.sqlite")).unwrap_err();
        assert!(nowhere.to_string().contains("no/such/folder"), "{nowhere}");
    }

    #[test]
    fn a_newer_version_is_refused_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let store = open(&path).unwrap();
        store.connection.pragma_update(None, "user_version", 99).unwrap();
        drop(store);
        let refused = open(&path).unwrap_err();
        assert!(matches!(refused, StoreError::Newer { found: 99, .. }), "{refused}");
        assert!(refused.to_string().contains("99"), "{refused}");
    }

    #[test]
    fn damage_is_an_error_never_an_empty_queue() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let mut store = open(&path).unwrap();
        for job in 1..20 {
            store.admit(&record(job), TINY, Time(1)).unwrap();
        }
        drop(store);
        // Every page but the first loses its header.
        let mut file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() > 8192, "the log was not folded into the file");
        for page in (4096..bytes.len()).step_by(4096) {
            file.seek(SeekFrom::Start(page as u64)).unwrap();
            file.write_all(&[0xff; 64]).unwrap();
        }
        drop(file);
        let refused = open(&path).and_then(|store| store.jobs().map(|jobs| jobs.len())).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
        // A file that is cut in the middle is damaged too.
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let refused = open(&path).and_then(|store| store.jobs().map(|jobs| jobs.len())).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    }

    #[test]
    fn a_state_that_there_is_not_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let mut store = open(&path).unwrap();
        store.admit(&record(1), TINY, Time(1)).unwrap();
        store.connection.execute("UPDATE jobs SET state = 'asleep'", []).unwrap();
        let refused = store.jobs().unwrap_err();
        assert!(refused.to_string().contains("asleep"), "{refused}");
    }
}
