//! Credit: how many payload bytes of rows or gradients may be on their way. The receiver of each direction grants a
//! window in its greeting and gives back by CREDIT what it has taken.
//!
//! What always holds: both sides count a frame alike ([`cost`]), so that what one spends the other gives back; and
//! what is not given back yet is always less than what the costliest frame leaves of the window, so nobody waits for
//! ever.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::frame::WireError;

/// What a frame of `payload_bytes` takes of a window: its bytes, but half of the window at most.
pub fn cost(payload_bytes: usize, window_bytes: u32) -> u32 {
    let most = (window_bytes / 2).max(1);
    u32::try_from(payload_bytes).map_or(most, |bytes| bytes.min(most))
}

/// The receiver's account of one peer. All connections of the peer share it.
#[derive(Debug)]
pub struct Inflow {
    window_bytes: u32,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// Arrived and not given back.
    spent: u64,
    /// Taken and not given back.
    owed: u32,
}

impl Inflow {
    /// An account with a window of `window_bytes`.
    pub fn new(window_bytes: u32) -> Inflow {
        Inflow { window_bytes, account: Mutex::default() }
    }

    /// The window that the peer was granted.
    pub fn window_bytes(&self) -> u32 {
        self.window_bytes
    }

    /// The lock is held for additions only.
    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// A peer that sends more than it was granted.
    pub fn arrived(&self, payload_bytes: usize) -> Result<(), WireError> {
        let mut account = self.lock();
        account.spent += u64::from(cost(payload_bytes, self.window_bytes));
        if account.spent > u64::from(self.window_bytes) {
            return Err(WireError::Malformed {
                message: "rows",
                rule: format!(
                    "{} bytes are on their way, only {} were granted",
                    account.spent, self.window_bytes
                ),
            });
        }
        Ok(())
    }

    /// A frame that arrived was taken. Returns what is to be given back now: not every frame is worth a message.
    pub fn taken(&self, payload_bytes: usize) -> Option<u32> {
        let mut account = self.lock();
        account.owed += cost(payload_bytes, self.window_bytes);
        if account.owed < (self.window_bytes / 4).max(1) {
            return None;
        }
        account.spent = account.spent.saturating_sub(u64::from(account.owed));
        Some(std::mem::take(&mut account.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With every window and frame size, a sender that spends what it has and a receiver that takes what arrives
    /// never wait for each other.
    #[test]
    fn nobody_waits_for_ever() {
        for window in [1, 2, 3, 4, 5, 7, 100, 4096] {
            for sizes in [[1, 1, 1], [window as usize, 1, 3], [9999, 2, 9999], [4, 50, 60]] {
                let inflow = Inflow::new(window);
                let mut credit = window;
                for &bytes in sizes.iter().cycle().take(300) {
                    let cost = cost(bytes, window);
                    assert!(cost <= credit, "window {window}, {bytes} bytes: {credit} left");
                    credit -= cost;
                    inflow.arrived(bytes).unwrap();
                    credit += inflow.taken(bytes).unwrap_or(0);
                }
                assert!(credit <= window);
            }
        }
    }

    #[test]
    fn more_than_was_granted_is_refused() {
        let inflow = Inflow::new(1000);
        inflow.arrived(500).unwrap();
        inflow.arrived(500).unwrap();
        let error = inflow.arrived(1).unwrap_err().to_string();
        assert!(error.contains("1001") && error.contains("1000"), "{error}");
    }
}
