//! Panics keep their message: text and place of a panic reach whoever joins the thread or task.
//!
//! The payload of a panic holds its text, and only the panic hook knows its place. [`record`] adds a hook that
//! remembers the places of the latest panics. [`catch`], [`JoinedThread`] and [`Panicked::of_task`] look them up.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::{fmt, io};

use tokio::task::JoinError;

/// Panics that are remembered. A panic is looked up soon after it happened.
const REMEMBERED: usize = 32;

/// (text, place) of the latest panics, oldest first.
static LATEST: Mutex<VecDeque<(String, String)>> = Mutex::new(VecDeque::new());

fn latest() -> MutexGuard<'static, VecDeque<(String, String)>> {
    LATEST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread or task that panicked. A panic is a bug of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked {
    /// Name of the thread or task.
    pub name: String,
    /// The panic's text.
    pub message: String,
    /// File, line and column, where they are known.
    pub place: Option<String>,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Panicked { name, message, place } = self;
        match place {
            Some(place) => write!(f, "{name} panicked at {place}: {message}"),
            None => write!(f, "{name} panicked: {message}"),
        }
    }
}

impl std::error::Error for Panicked {}

impl Panicked {
    /// Of the thread `name`, from what its join returned.
    pub fn of_thread(name: &str, payload: &(dyn Any + Send)) -> Panicked {
        let message = text_of(payload).unwrap_or("no message").to_owned();
        let place = latest().iter().rev().find(|(text, _)| *text == message).map(|(_, place)| place.clone());
        Panicked { name: name.to_owned(), message, place }
    }

    /// Of the task `name`, from what its join returned. A task that was cancelled says so.
    pub fn of_task(name: &str, error: JoinError) -> Panicked {
        match error.try_into_panic() {
            Ok(payload) => Panicked::of_thread(name, payload.as_ref()),
            Err(error) => Panicked { name: name.to_owned(), message: error.to_string(), place: None },
        }
    }
}

fn text_of(payload: &(dyn Any + Send)) -> Option<&str> {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied())
}

/// Remembers the places of panics from now on. Later calls change nothing.
pub fn record() {
    static RECORDED: Once = Once::new();
    RECORDED.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = text_of(panic.payload()).unwrap_or("no message").to_owned();
            let place = panic.location().map_or("an unknown place".to_owned(), ToString::to_string);
            {
                let mut latest = latest();
                if latest.len() == REMEMBERED {
                    latest.pop_front();
                }
                latest.push_back((text, place));
            }
            others(panic);
        }));
    });
}

/// Runs `body` on this thread, which is called `name`; a panic becomes an error.
pub fn catch<T>(name: &str, body: impl FnOnce() -> T) -> Result<T, Panicked> {
    record();
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| Panicked::of_thread(name, payload.as_ref()))
}

/// A thread that is joined at the latest when this is dropped. Whoever drops it makes the thread end first: closes its
/// queue, and ends the call that it may wait in.
#[derive(Debug)]
pub struct JoinedThread {
    name: String,
    handle: Option<JoinHandle<()>>,
}

impl JoinedThread {
    /// Starts a thread.
    ///
    /// # Errors
    /// Where the system refuses another thread.
    pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinedThread> {
        record();
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(JoinedThread { name: name.to_owned(), handle: Some(handle) })
    }

    /// Whether it has ended, so that [`JoinedThread::join`] does not wait.
    pub fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end. A second call finds nothing to join.
    ///
    /// # Errors
    /// Where it panicked.
    pub fn join(&mut self) -> Result<(), Panicked> {
        let Some(handle) = self.handle.take() else { return Ok(()) };
        let name = format!("thread {:?}", self.name);
        handle.join().map_err(|payload| Panicked::of_thread(&name, payload.as_ref()))
    }
}

impl Drop for JoinedThread {
    fn drop(&mut self) {
        // The hook has printed a panic; whoever needs it as an error has called `join`.
        let _reported = self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_keeps_its_text_and_place() {
        let line = line!() + 1;
        let error = catch("compute", || panic!("bucket {} is missing", 3)).map(|(): ()| ()).unwrap_err();
        assert_eq!((error.name.as_str(), error.message.as_str()), ("compute", "bucket 3 is missing"));
        let place = error.place.clone().unwrap();
        assert!(place.contains(file!()) && place.contains(&format!(":{line}:")), "{place}");
        let text = error.to_string();
        assert!(
            text.starts_with("compute panicked at ") && text.ends_with(": bucket 3 is missing"),
            "{text}"
        );
    }

    #[test]
    fn a_joined_thread_reports_its_panic_once() {
        let mut thread = JoinedThread::spawn("lane-1", || panic!("a plain text")).unwrap();
        let error = thread.join().unwrap_err();
        assert_eq!((error.name.as_str(), error.message.as_str()), ("thread \"lane-1\"", "a plain text"));
        assert!(error.place.is_some());
        assert_eq!(thread.join(), Ok(()));
        assert!(thread.has_ended());
    }

    #[test]
    fn a_dropped_thread_has_ended() {
        let (ended, end) = std::sync::mpsc::channel();
        drop(JoinedThread::spawn("short", move || ended.send(7).unwrap()).unwrap());
        assert_eq!(end.try_recv(), Ok(7));
    }

    #[test]
    fn a_task_reports_panic_or_cancellation() {
        record();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let joined = runtime.block_on(async { tokio::spawn(async { panic!("of a task") }).await });
        let error = Panicked::of_task("upload", joined.map(|(): ()| ()).unwrap_err());
        assert!(error.message == "of a task" && error.place.is_some(), "{error}");
        let joined = runtime.block_on(async {
            let task = tokio::spawn(std::future::pending::<()>());
            task.abort();
            task.await
        });
        let error = Panicked::of_task("upload", joined.unwrap_err());
        assert!(error.message.contains("cancelled") && error.place.is_none(), "{error}");
    }
}
