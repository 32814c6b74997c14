//! Standard error as a place for lines that nobody must wait for, and that no error ends anything for.
//!
//! What reads it may be gone (`| head`), may have stopped to read (a paused pager), or may be a full disk. A line that
//! cannot be written within [`LONGEST_WAIT`] is dropped; once lines can be written again, one says how many were.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The first line that finds no room waits so long for a reader; those after it do not wait until one got through.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// A pipe that is said to have room has room for so many bytes (POSIX: PIPE_BUF is at least 512, Linux has 4096).
const CHUNK: usize = 4096;

/// What became of the lines so far.
#[derive(Debug, Default)]
struct Losses {
    lines: u64,
    /// The last one was cut in its middle.
    is_torn: bool,
}

static LOSSES: Mutex<Losses> = Mutex::new(Losses { lines: 0, is_torn: false });

/// Standard error. Every call of `write` takes a whole line, or drops it; it never fails.
pub fn lossy_stderr() -> impl Write {
    Lossy { output: io::stderr(), losses: &LOSSES }
}

struct Lossy<'a, W> {
    output: W,
    losses: &'a Mutex<Losses>,
}

impl<W: Write + AsFd> Write for Lossy<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A panic while it was held has left a number that is right or one too small.
        let mut losses = self.losses.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let patience = if losses.lines == 0 { LONGEST_WAIT } else { Duration::ZERO };
        let deadline = Instant::now() + patience;
        let mut notice = String::new();
        if losses.lines > 0 {
            let start = if losses.is_torn { "\n" } else { "" };
            // Writing to a string cannot fail.
            let _infallible = writeln!(
                notice,
                "{start}{} lines were lost here: standard error could not be written",
                losses.lines
            );
        }
        if !notice.is_empty() && put(&mut self.output, notice.as_bytes(), deadline).is_ok() {
            *losses = Losses::default();
            notice.clear();
        }
        if !notice.is_empty() {
            losses.lines += 1;
        } else if let Err(written) = put(&mut self.output, line, deadline) {
            *losses = Losses { lines: 1, is_torn: written > 0 };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `bytes` without waiting beyond `deadline`; the error is how many were written before that failed.
fn put<W: Write + AsFd>(output: &mut W, bytes: &[u8], deadline: Instant) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        if !has_room(output, deadline) {
            return Err(written);
        }
        let end = bytes.len().min(written + CHUNK);
        match output.write(&bytes[written..end]) {
            Ok(0) => return Err(written),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_nobody_reads) => return Err(written),
        }
    }
    Ok(())
}

/// Whether a write will not block. A file of a disk never does; a pipe or terminal does while nobody reads it.
fn has_room(output: &impl AsFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis() as i32;
    let mut asked = libc::pollfd { fd: output.as_fd().as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: `asked` is one pollfd that lives through the call, and one is what is said.
    let answered = unsafe { libc::poll(&raw mut asked, 1, left) };
    // Where the reader is gone the write itself says so, at once.
    answered > 0 && asked.revents & (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) != 0
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Read;

    use super::*;

    fn lossy<W: Write + AsFd>(output: W, losses: &Mutex<Losses>) -> Lossy<'_, W> {
        Lossy { output, losses }
    }

    #[test]
    fn a_full_disk_and_a_reader_that_is_gone_cost_lines_and_nothing_else() {
        let losses = Mutex::default();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (mut full, mut gone) = (lossy(full, &losses), lossy(writer, &losses));
        for _ in 0..3 {
            full.write_all(b"a line\n").unwrap();
            gone.write_all(b"a line\n").unwrap();
        }
        assert_eq!(losses.lock().unwrap().lines, 6);
    }

    #[test]
    fn a_reader_that_pauses_holds_nobody_up_and_is_told_what_it_missed() {
        let losses = Mutex::default();
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = lossy(writer, &losses);
        let line = format!("{}\n", "x".repeat(999));
        // A pipe holds 64 KiB, or a little more.
        let start = Instant::now();
        for _ in 0..1000 {
            output.write_all(line.as_bytes()).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "a thousand lines waited for a reader");
        let lost = losses.lock().unwrap().lines;
        assert!((1..1000).contains(&lost), "{lost}");
        let whole = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text).unwrap()
        });
        // Once there is room, the next line goes through, and before it what was lost.
        let deadline = Instant::now() + Duration::from_secs(30);
        while losses.lock().unwrap().lines > 0 {
            assert!(Instant::now() < deadline, "no line got through");
            output.write_all(b"again\n").unwrap();
        }
        drop(output);
        let text = whole.join().unwrap();
        assert!(text.contains("lines were lost here") && text.ends_with("again\n"), "{text:.200}");
        let told = text.lines().find_map(|line| line.split_once(" lines were lost")).unwrap().0;
        assert!(told.parse::<u64>().unwrap() >= lost);
    }
}
