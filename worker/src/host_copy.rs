//! The copy of this rank's dense state that a checkpoint is written from while training goes on: one buffer, made before
//! it is first needed and used again for every checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use polygram_checkpoint::{NamedTensor, Values};
use polygram_domain::layout::StateView;
use polygram_process::JoinedThread;

use crate::error::WorkerError;

/// Bytes below which a second thread costs more than it brings.
const BYTES_PER_THREAD: usize = 1 << 22;

/// Threads that a copy may take of a machine where fewer compute: while it lasts, nobody computes.
const THREADS: usize = 4;

/// How often a wait for the buffer looks whether the session is alive.
const LOOK: Duration = Duration::from_millis(100);

/// The buffer, at home or lent to a checkpoint that is being written.
pub struct HostCopy {
    values: usize,
    threads: usize,
    /// Comes home through here: first from the thread that made it, then from whoever drops the last value of a copy.
    home: mpsc::Receiver<Vec<f32>>,
    way_home: mpsc::Sender<Vec<f32>>,
    touching: Touching,
}

/// The thread that touches the buffer's memory first. It ends early when this is dropped.
struct Touching {
    is_cancelled: Arc<AtomicBool>,
    thread: JoinedThread,
}

impl Drop for Touching {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }
}

/// A lent buffer. The last one to drop it sends it home.
struct Lent {
    values: Vec<f32>,
    home: mpsc::Sender<Vec<f32>>,
}

impl AsRef<[f32]> for Lent {
    fn as_ref(&self) -> &[f32] {
        &self.values
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Nobody is at home any more where training has ended first.
        self.home.send(std::mem::take(&mut self.values)).ok();
    }
}

impl HostCopy {
    /// A buffer for so many values, of a worker that computes with so many threads. Its memory is touched by a thread of its
    /// own meanwhile: the first touch of memory is many times slower than a copy.
    pub fn prepare(values: usize, computing: usize) -> Result<HostCopy, WorkerError> {
        let (way_home, home) = mpsc::channel();
        let first = way_home.clone();
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let cancelled = Arc::clone(&is_cancelled);
        let touch = move || {
            let mut buffer = vec![0.0f32; values];
            // Zeros of a new allocation are not memory yet; one value a page makes them so.
            for value in buffer.iter_mut().step_by(1024) {
                if cancelled.load(Ordering::Relaxed) {
                    return;
                }
                *std::hint::black_box(value) = 0.0;
            }
            // The session may be over already.
            first.send(buffer).ok();
        };
        let thread = JoinedThread::spawn("host-copy", touch).map_err(|source| WorkerError::Io {
            what: "cannot start the thread that prepares snapshots".into(),
            source,
        })?;
        let touching = Touching { is_cancelled, thread };
        let processors = std::thread::available_parallelism().map_or(1, |processors| processors.get());
        let threads = computing.max(processors.min(THREADS));
        Ok(HostCopy { values, threads, home, way_home, touching })
    }

    /// Bytes of the buffer.
    pub fn bytes(&self) -> u64 {
        4 * self.values as u64
    }

    /// Copies `state`, once the copy before is written; `alive` ends the wait where nobody writes any more.
    pub fn take(
        &mut self,
        state: Vec<StateView<'_>>,
        alive: impl Fn() -> bool,
    ) -> Result<Vec<NamedTensor>, WorkerError> {
        let mut buffer = loop {
            match self.home.recv_timeout(LOOK) {
                Ok(buffer) => break buffer,
                Err(_) if !alive() => return Err(WorkerError::OtherSide("upload")),
                // A thread that panicked sends no buffer.
                Err(_) if self.touching.thread.has_ended() => self.touching.thread.join()?,
                Err(_) => {}
            }
        };
        // A state of another size than was prepared for would be a mistake of ours; it costs time, not bits.
        buffer.resize(state.iter().map(|view| view.values.len()).sum(), 0.0);
        copy(&state, &mut buffer, self.threads);
        let all = Values::of_owner(Lent { values: buffer, home: self.way_home.clone() });
        let mut start = 0;
        let tensor = |view: StateView<'_>| {
            let range = start..start + view.values.len();
            start = range.end;
            NamedTensor {
                name: view.name,
                shape: view.shape.to_vec(),
                elements: view.elements.start as u64..view.elements.end as u64,
                data: all.slice(range),
            }
        };
        Ok(state.into_iter().map(tensor).collect())
    }
}

/// Copies the views one after the other into `target`, which has just their length, by so many threads.
fn copy(state: &[StateView<'_>], target: &mut [f32], threads: usize) {
    let threads = threads.min(4 * target.len() / BYTES_PER_THREAD + 1);
    let quota = target.len().div_ceil(threads).max(1);
    let mut views = state.iter().map(|view| view.values);
    let mut source: &[f32] = &[];
    std::thread::scope(|scope| {
        for share in target.chunks_mut(quota) {
            let mut pieces = Vec::new();
            let mut rest = share;
            while !rest.is_empty() {
                while source.is_empty() {
                    let Some(next) = views.next() else { return };
                    source = next;
                }
                let (to, later) = rest.split_at_mut(rest.len().min(source.len()));
                let from;
                (from, source) = source.split_at(to.len());
                pieces.push((from, to));
                rest = later;
            }
            let work = move || pieces.into_iter().for_each(|(from, to)| to.copy_from_slice(from));
            if threads == 1 {
                work();
            } else {
                scope.spawn(work);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use polygram_member::MemberError;

    use super::*;

    fn view<'a>(name: &str, shape: &'a [u64], values: &'a [f32]) -> StateView<'a> {
        StateView { name: name.into(), shape, elements: 0..values.len(), values }
    }

    #[test]
    fn a_copy_stands_apart_and_its_memory_is_used_again() {
        let (mut a, b) = (vec![1.0f32, 2.0, 3.0], vec![4.0f32; 2]);
        let mut host = HostCopy::prepare(5, 2).unwrap();
        assert_eq!(host.bytes(), 20);
        let tensors = host.take(vec![view("a", &[3], &a), view("b", &[2], &b)], || true).unwrap();
        a.fill(9.0);
        assert_eq!((&tensors[0].data[..], &tensors[1].data[..]), (&[1.0, 2.0, 3.0][..], &[4.0, 4.0][..]));
        assert_eq!((tensors[1].name.as_str(), tensors[1].elements.clone()), ("b", 0..2));
        let place = tensors[0].data.as_ptr();
        let waits = host.take(vec![view("a", &[3], &a)], || false);
        assert!(waits.is_err(), "a copy that is being written was overwritten");
        drop(tensors);
        let tensors = host.take(vec![view("a", &[3], &a), view("b", &[2], &b)], || true).unwrap();
        assert_eq!((&tensors[0].data[..], tensors[0].data.as_ptr()), (&[9.0, 9.0, 9.0][..], place));
    }

    #[test]
    fn a_buffer_that_cannot_be_made_is_an_error_and_no_endless_wait() {
        let mut host = HostCopy::prepare(usize::MAX / 2, 1).unwrap();
        let error = host.take(vec![view("a", &[1], &[1.0])], || true).map(drop).unwrap_err();
        assert!(matches!(error, WorkerError::Member(MemberError::Panicked(_))), "{error}");
        assert!(error.to_string().contains("capacity overflow"), "{error}");
    }

    #[test]
    fn threads_share_views_of_any_length() {
        let lengths = [0usize, 1, 700_001, 3, 0, 2_500_000, 1_000_003];
        let sources: Vec<Vec<f32>> = (0u32..)
            .zip(lengths)
            .map(|(seed, length)| (0..length).map(|i| (i as u32 * 7 + seed) as f32).collect())
            .collect();
        let state: Vec<_> = sources.iter().map(|values| view("x", &[], values)).collect();
        for threads in [1, 2, 3, 7] {
            let mut target = vec![-1.0; lengths.iter().sum()];
            copy(&state, &mut target, threads);
            assert_eq!(target, sources.concat(), "{threads} threads");
        }
    }
}
