//! Connections that have not passed the handshake: limited in number, the oldest of those that said least goes first.
//!
//! A member of the run says hello at once and answers a challenge within a round trip, so a flood of strangers pushes
//! out other strangers long before it reaches a member.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// How far a connection is.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU8>);

const GREETED: u8 = 1;
const PASSED: u8 = 2;

impl Progress {
    /// A whole hello came.
    pub fn greeted(&self) {
        self.0.store(GREETED, Ordering::Relaxed);
    }

    /// The peer has passed, or is gone: it is not waiting any more.
    pub fn passed(&self) {
        self.0.store(PASSED, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Connections in the middle of their handshake, each with what ends it.
#[derive(Debug)]
pub struct Waiting<T> {
    most: usize,
    /// The oldest first.
    connections: Vec<(Progress, T)>,
}

impl<T> Waiting<T> {
    /// Room for `most` connections.
    pub fn new(most: usize) -> Waiting<T> {
        Waiting { most, connections: Vec::new() }
    }

    /// Adds a connection. Where there is no room, the answer is another one, to be ended.
    pub fn add(&mut self, progress: Progress, connection: T) -> Option<T> {
        self.connections.retain(|(progress, _)| progress.get() < PASSED);
        let evicted = match self.connections.len() < self.most {
            true => None,
            false => {
                let silent = self.connections.iter().position(|(progress, _)| progress.get() == 0);
                Some(self.connections.remove(silent.unwrap_or(0)).1)
            }
        };
        self.connections.push((progress, connection));
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_one_goes_first() {
        let mut waiting = Waiting::new(3);
        let progress: Vec<Progress> = (0..8).map(|_| Progress::default()).collect();
        let mut add = |at: usize| waiting.add(progress[at].clone(), at);
        assert_eq!([add(0), add(1), add(2)], [None; 3]);
        progress[0].greeted();
        assert_eq!(add(3), Some(1), "the first one has said hello");
        progress[2].passed();
        assert_eq!(add(4), None, "who has passed does not wait");
        progress[3].greeted();
        progress[4].greeted();
        assert_eq!(add(5), Some(0), "all have said hello");
    }
}
