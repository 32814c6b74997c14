//! How long a store is asked again, and what is worth asking again.
//!
//! Only requests that change nothing when repeated come here: reads, lists, deletions, writes of an object under a name
//! of its own content, and Creates, which answer a repetition with "exists" and are then compared with what is there.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use object_store::Error;
use tokio::time::Instant;

use crate::problem::{LOCAL, StoreProblem, caused_by, is_full_kind, is_stale_signature, status};
use crate::threads::STOPPED;
use crate::waits::{Wait, Waits};

/// Names the seconds for which a failing store is asked again, for every process that inherits it.
pub const RETRY_SECONDS_VARIABLE: &str = "POLYGRAM_STORE_RETRY_SECONDS";
/// What it may say.
const RETRY_SECONDS: RangeInclusive<u64> = 1..=86_400;

/// Bytes a second that even a slow store moves; longer transfers get more time.
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 20;

/// How long a store is asked again before its last error counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With a store that has never answered: most likely its address is wrong.
    pub before_first_answer: Duration,
    /// With a store that has answered before.
    pub in_all: Duration,
    /// One attempt, beside a second per MiB that it moves.
    pub attempt: Duration,
    /// Pause after the first failure; it doubles from there, and varies by half.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            before_first_answer: Duration::from_secs(20),
            in_all: Duration::from_secs(300),
            attempt: Duration::from_secs(30),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
        }
    }
}

/// A wait that is shorter is not told, unless a person has to end it.
const UNTOLD: Duration = Duration::from_secs(3);

/// What is known of a store before a request, and who hears of the request's wait.
pub(crate) struct Asked<'a> {
    /// Whether the store ever answered; learns it.
    pub(crate) answered: &'a AtomicBool,
    /// About how many bytes are moved.
    pub(crate) bytes: u64,
    pub(crate) telling: Option<Telling<'a>>,
}

/// How a wait is told.
pub(crate) struct Telling<'a> {
    pub(crate) waits: &'a Waits,
    /// Whether a wait that a person has to end is worth it.
    pub(crate) operator: Operator,
    /// The sentence about an error of which so long is waited.
    pub(crate) sentence: &'a (dyn Fn(&Error, Duration) -> String + Sync),
}

/// What a request does where a person has to change something before it can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    /// It waits: the same has been possible before.
    Awaited,
    /// It fails.
    NotAwaited,
}

/// The error that counts, and what came before it.
#[derive(Debug)]
pub(crate) struct GaveUp {
    pub(crate) source: Error,
    pub(crate) tries: u32,
    pub(crate) waited: Duration,
}

impl Patience {
    /// The usual one; `seconds`, if it is given, is the text of [`RETRY_SECONDS_VARIABLE`]. The error is one sentence.
    pub(crate) fn from_text(seconds: Option<&str>) -> Result<Patience, String> {
        let usual = Patience::default();
        let Some(text) = seconds else { return Ok(usual) };
        let seconds = text.parse().ok().filter(|seconds| RETRY_SECONDS.contains(seconds));
        let in_all = Duration::from_secs(seconds.ok_or_else(|| {
            let (least, most) = (RETRY_SECONDS.start(), RETRY_SECONDS.end());
            format!("{RETRY_SECONDS_VARIABLE}={text:?} is no number of seconds from {least} to {most}")
        })?);
        Ok(Patience { in_all, before_first_answer: usual.before_first_answer.min(in_all), ..usual })
    }

    /// The same for what can wait: nothing is asked again for longer than `limit`.
    pub fn limited_to(self, limit: Duration) -> Patience {
        Patience {
            before_first_answer: self.before_first_answer.min(limit),
            in_all: self.in_all.min(limit),
            attempt: self.attempt.min(2 * limit),
            ..self
        }
    }

    /// Calls `attempt` until it succeeds, fails for good or time is up.
    pub(crate) async fn persist<T, F>(
        &self,
        asked: Asked<'_>,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, GaveUp>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let Asked { answered, bytes, telling } = asked;
        let mut told: Option<Wait> = None;
        let limit = self.attempt + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
        let (start, mut pause, mut tries) = (Instant::now(), self.first_pause, 0);
        loop {
            tries += 1;
            let result =
                tokio::time::timeout(limit, attempt()).await.unwrap_or_else(|_| Err(too_slow(limit)));
            let source = match result {
                Ok(value) => {
                    answered.store(true, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(source) => source,
            };
            // A store that has never taken a signature most likely never will: its answer is not the first one.
            if is_answer(&source) && !is_stale_signature(&source) {
                answered.store(true, Ordering::Relaxed);
            }
            let needs_operator = StoreProblem::of(&source).needs_operator();
            let is_awaited = needs_operator
                && telling.as_ref().is_some_and(|telling| telling.operator == Operator::Awaited);
            // A disk that cannot be read or written seldom gets better.
            let is_hopeful = answered.load(Ordering::Relaxed) && !is_broken(&source) || is_awaited;
            let deadline = if is_hopeful { self.in_all } else { self.before_first_answer };
            let wait = varied(pause);
            if !(is_passing(&source) || is_awaited) || start.elapsed() + wait > deadline {
                return Err(GaveUp { source, tries, waited: start.elapsed() });
            }
            if let Some(Telling { waits, sentence, .. }) = &telling
                && told.is_none()
                && (needs_operator || start.elapsed() >= UNTOLD)
            {
                told = Some(waits.begin(sentence(&source, deadline)));
            }
            let seconds = deadline.as_secs();
            match tries {
                // A caller that waits for seconds only reports it itself.
                1 if seconds >= 60 => {
                    tracing::warn!(%source, seconds, "the store failed; it is asked again for so long")
                }
                _ => tracing::debug!(tries, %source, ?wait, "the store failed; asking again"),
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(self.longest_pause);
        }
    }
}

fn too_slow(limit: Duration) -> Error {
    let text = format!("no answer within {} s", limit.as_secs());
    Error::Generic { store: "store", source: text.into() }
}

/// Between half and all of `pause`, so that many processes do not come back at once.
fn varied(pause: Duration) -> Duration {
    let share = RandomState::new().build_hasher().finish() % 512;
    pause.mul_f64(0.5 + share as f64 / 1024.0)
}

/// Whether the store itself spoke, however rudely. A disk always does.
fn is_answer(error: &Error) -> bool {
    match error {
        Error::Generic { store, .. } => *store == LOCAL || status(error).is_some(),
        Error::JoinError { .. } => false,
        _ => true,
    }
}

/// Whether the same request may succeed later.
fn is_passing(error: &Error) -> bool {
    match (error, status(error)) {
        // 408: the request took too long to arrive. 429: too many of them.
        (Error::Generic { .. }, Some(status)) => {
            status >= 500 || status == 408 || status == 429 || is_stale_signature(error)
        }
        (Error::Generic { store: STOPPED, .. }, None) => false,
        (Error::Generic { store: LOCAL, .. }, None) => {
            caused_by::<io::Error>(error).is_some_and(is_of_the_moment)
        }
        (Error::Generic { .. }, None) => true,
        _ => is_stale_signature(error),
    }
}

/// Whether an error of a disk is about what the machine has just now: room, descriptors, memory, the way to a server. What
/// is not there, not allowed or not legal stays so.
fn is_of_the_moment(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::IO,
        Errno::AGAIN,
        Errno::INTR,
        Errno::BUSY,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::STALE,
        Errno::TIMEDOUT,
        Errno::CONNRESET,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::REMOTEIO,
        Errno::NOTCONN,
        Errno::SHUTDOWN,
    ];
    is_full_kind(error.kind()) || codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// Whether the medium itself failed.
fn is_broken(error: &Error) -> bool {
    let io = caused_by::<io::Error>(error);
    io.is_some_and(|io| io.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn storm() -> Error {
        Error::Generic { store: "test", source: "503 Slow Down".into() }
    }

    fn local(code: rustix::io::Errno) -> Error {
        Error::Generic { store: LOCAL, source: io::Error::from(code).into() }
    }

    #[test]
    fn the_environment_says_how_long() {
        assert_eq!(Patience::from_text(None).unwrap(), Patience::default());
        let short = Patience::from_text(Some("5")).unwrap();
        assert_eq!(
            (short.in_all, short.before_first_answer),
            (Duration::from_secs(5), Duration::from_secs(5))
        );
        for text in ["0", "-1", "5s", "", "86401", "99999999999999999999999"] {
            let error = Patience::from_text(Some(text)).unwrap_err();
            assert!(error.contains("1 to 86400"), "{error}");
        }
    }

    /// A second here is a millisecond.
    fn hurried() -> Patience {
        let Patience { before_first_answer, in_all, attempt, first_pause, longest_pause } =
            Patience::default();
        Patience {
            before_first_answer: before_first_answer / 1000,
            in_all: in_all / 1000,
            attempt: attempt / 100,
            first_pause: first_pause / 1000,
            longest_pause: longest_pause / 1000,
        }
    }

    async fn run(answered: bool, failures: u32, error: fn() -> Error) -> Result<u32, GaveUp> {
        let (answered, calls) = (AtomicBool::new(answered), AtomicU32::new(0));
        let attempt = || async {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            if call < failures { Err(error()) } else { Ok(call) }
        };
        let asked = Asked { answered: &answered, bytes: 0, telling: None };
        hurried().persist(asked, attempt).await
    }

    #[tokio::test]
    async fn a_storm_is_outlasted() {
        assert_eq!(run(true, 8, storm).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn the_last_error_says_how_often_and_how_long() {
        let given_up = run(true, u32::MAX, storm).await.unwrap_err();
        assert!(given_up.tries > 5, "{given_up:?}");
        assert!(given_up.waited > Duration::from_millis(200), "{given_up:?}");
        let never_answered = run(false, u32::MAX, storm).await.unwrap_err();
        assert!(never_answered.tries < given_up.tries, "{never_answered:?} {given_up:?}");
    }

    #[tokio::test]
    async fn what_will_not_pass_is_not_asked_again() {
        for error in [
            || Error::PermissionDenied { path: "k".into(), source: "no".into() },
            || Error::NotFound { path: "k".into(), source: "no".into() },
            || Error::from(crate::threads::Stopped),
            || local(rustix::io::Errno::ROFS),
            || local(rustix::io::Errno::NOTDIR),
            || local(rustix::io::Errno::NAMETOOLONG),
            || Error::Generic { store: "S3", source: "non-2xx status code: 400 Bad Request: x".into() },
        ] as [fn() -> Error; 7]
        {
            assert_eq!(run(true, u32::MAX, error).await.unwrap_err().tries, 1);
        }
        for error in [
            || local(rustix::io::Errno::NOSPC),
            || local(rustix::io::Errno::DQUOT),
            || local(rustix::io::Errno::IO),
            || local(rustix::io::Errno::MFILE),
            || local(rustix::io::Errno::STALE),
        ] as [fn() -> Error; 5]
        {
            assert_eq!(run(true, 2, error).await.unwrap(), 2);
        }
        // A disk has answered with its first error: a full one is waited for as long as a store that is known.
        assert!(run(false, 9, || local(rustix::io::Errno::NOSPC)).await.is_ok());
        let busy = || Error::Generic { store: "S3", source: "non-2xx status code: 503 Slow Down: x".into() };
        assert!(run(true, u32::MAX, busy).await.unwrap_err().tries > 1);
    }

    fn denied(code: &str) -> Error {
        let text = format!("non-2xx status code: 403 Forbidden: <Error><Code>{code}</Code></Error>");
        Error::PermissionDenied { path: "k".into(), source: text.into() }
    }

    #[tokio::test]
    async fn a_stale_signature_is_made_anew_and_a_refusal_is_taken() {
        for error in [
            || denied("RequestTimeTooSkewed"),
            || Error::Generic { store: "S3", source: "status code: 400 Bad Request: ExpiredToken".into() },
            || Error::Unauthenticated { path: "k".into(), source: "ExpiredAuthenticationToken".into() },
        ] as [fn() -> Error; 3]
        {
            assert_eq!(run(true, 3, error).await.unwrap(), 3);
            // With a store that has never taken one it is not worth minutes.
            let (before, after) = (run(false, u32::MAX, error).await, run(true, u32::MAX, error).await);
            assert!(before.unwrap_err().tries < after.unwrap_err().tries);
        }
        for code in ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"] {
            let (answered, calls) = (AtomicBool::new(true), AtomicU32::new(0));
            let attempt = || async {
                calls.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>(denied(code))
            };
            let asked = Asked { answered: &answered, bytes: 0, telling: None };
            hurried().persist(asked, attempt).await.unwrap_err();
            assert_eq!(calls.load(Ordering::Relaxed), 1, "{code}");
        }
    }

    #[tokio::test]
    async fn an_attempt_without_an_answer_ends() {
        let answered = AtomicBool::new(true);
        let asked = Asked { answered: &answered, bytes: 0, telling: None };
        let given_up = Patience { in_all: Duration::from_millis(700), ..hurried() }
            .persist::<(), _>(asked, std::future::pending)
            .await
            .unwrap_err();
        assert!((2..=3).contains(&given_up.tries), "{given_up:?}");
        assert!(given_up.source.to_string().contains("no answer within"), "{given_up:?}");
    }

    /// Fails so often with `error` for a request whose waits are told; answers the result and all that was told.
    async fn run_told(
        operator: Operator,
        failures: u32,
        error: fn() -> Error,
    ) -> (Result<u32, GaveUp>, Vec<Option<String>>) {
        let (sender, mut receiver) = tokio::sync::watch::channel(None);
        let (waits, answered, calls) = (Waits::told_to(sender), AtomicBool::new(false), AtomicU32::new(0));
        let mut told = Vec::new();
        let attempt = || {
            told.push(receiver.borrow_and_update().clone());
            let call = calls.fetch_add(1, Ordering::Relaxed);
            async move { if call < failures { Err(error()) } else { Ok(call) } }
        };
        let sentence = |error: &Error, _: Duration| StoreProblem::of(error).headline().to_owned();
        let telling = Some(Telling { waits: &waits, operator, sentence: &sentence });
        let result = hurried().persist(Asked { answered: &answered, bytes: 0, telling }, attempt).await;
        told.push(receiver.borrow_and_update().clone());
        (result, told)
    }

    #[tokio::test]
    async fn what_a_person_has_to_mend_is_waited_for_and_told() {
        let denied = || Error::PermissionDenied { path: "k".into(), source: "no".into() };
        let gone = || Error::NotFound { path: "k".into(), source: "<Code>NoSuchBucket</Code>".into() };
        for (error, words) in [
            ((|| local(rustix::io::Errno::NOSPC)) as fn() -> Error, "the store has no room"),
            (|| local(rustix::io::Errno::ROFS), "the store is read-only"),
            (denied, "the store denies permission"),
            (gone, "the bucket is gone"),
        ] {
            let (result, told) = run_told(Operator::Awaited, 4, error).await;
            assert_eq!(result.unwrap(), 4, "{words}");
            let words = Some(words.to_owned());
            let waiting = [None, words.clone(), words.clone(), words.clone(), words.clone(), None];
            assert_eq!(told, waiting, "told from the first failure to the end, and then no more");
            let (result, told) = run_told(Operator::Awaited, u32::MAX, error).await;
            assert!(result.unwrap_err().waited > Duration::from_millis(200));
            assert_eq!(told.last(), Some(&None));
        }
        let (result, told) = run_told(Operator::NotAwaited, u32::MAX, denied).await;
        assert_eq!((result.unwrap_err().tries, told), (1, vec![None, None]));
    }
}
