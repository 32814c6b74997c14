//! Waits for a store, told while they last. A request that waits is announced by one sentence, and its end by none.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Where a store's waits are told: one sentence while any request waits, nothing otherwise. Clones share the waits.
#[derive(Clone, Debug)]
pub struct Waits {
    told: watch::Sender<Option<String>>,
    open: Arc<Mutex<Open>>,
}

/// The waits that last, each by its number.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    sentences: Vec<(u64, String)>,
}

impl Waits {
    /// Waits that are told to `told`.
    pub fn told_to(told: watch::Sender<Option<String>>) -> Waits {
        Waits { told, open: Arc::default() }
    }

    /// A wait begins. It lasts until what is answered is dropped.
    pub fn begin(&self, sentence: String) -> Wait {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let number = open.next;
        open.next += 1;
        open.sentences.push((number, sentence));
        self.tell(&open);
        Wait { waits: self.clone(), number }
    }

    /// Tells the oldest wait that lasts.
    fn tell(&self, open: &Open) {
        let oldest = open.sentences.first().map(|(_, sentence)| sentence.clone());
        self.told.send_if_modified(|told| {
            let is_new = *told != oldest;
            *told = oldest;
            is_new
        });
    }
}

/// A wait that lasts.
#[derive(Debug)]
pub struct Wait {
    waits: Waits,
    number: u64,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut open = self.waits.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.sentences.retain(|(number, _)| *number != self.number);
        self.waits.tell(&open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_wait_is_told_until_the_last_one_ends() {
        let (sender, mut told) = watch::channel(None);
        let waits = Waits::told_to(sender);
        let first = waits.begin("no room".into());
        assert_eq!(told.borrow_and_update().as_deref(), Some("no room"));
        let second = waits.clone().begin("no room".into());
        assert!(!told.has_changed().unwrap(), "the same sentence is told once");
        drop(first);
        assert!(!told.has_changed().unwrap(), "another request waits still");
        let third = waits.begin("read-only".into());
        drop(second);
        assert_eq!(told.borrow_and_update().as_deref(), Some("read-only"));
        drop(third);
        assert_eq!(*told.borrow_and_update(), None);
    }
}
