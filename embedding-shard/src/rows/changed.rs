//! Which rows of a lane have changed since a moment: a bit a row, so that recovery points need not hold the others.

/// A bit for every index entry of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangedRows {
    bits: Vec<u64>,
    count: u64,
}

impl ChangedRows {
    /// No row of so many. Memory is touched as rows change.
    pub(super) fn none_of(entries: usize) -> ChangedRows {
        ChangedRows { bits: vec![0; entries.div_ceil(64)], count: 0 }
    }

    /// Rows that changed.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Notes that the row of an index entry has changed.
    #[inline(always)]
    pub(super) fn mark(&mut self, entry: usize) {
        let (word, bit) = (&mut self.bits[entry / 64], 1 << (entry % 64));
        self.count += u64::from(*word & bit == 0);
        *word |= bit;
    }

    /// Whether the row of an index entry has changed.
    #[inline(always)]
    pub(super) fn has(&self, entry: usize) -> bool {
        self.bits[entry / 64] & (1 << (entry % 64)) != 0
    }

    /// The first entry at or after `from` and before `end` whose row has changed.
    pub(super) fn next(&self, from: usize, end: usize) -> Option<usize> {
        if from >= end {
            return None;
        }
        let mut word = self.bits[from / 64] & (u64::MAX << (from % 64));
        for at in from / 64..end.div_ceil(64) {
            if at > from / 64 {
                word = self.bits[at];
            }
            if word != 0 {
                let entry = at * 64 + word.trailing_zeros() as usize;
                return (entry < end).then_some(entry);
            }
        }
        None
    }

    /// Forgets all of them, and gives them away.
    pub(super) fn take(&mut self) -> ChangedRows {
        let anew = ChangedRows { bits: vec![0; self.bits.len()], count: 0 };
        std::mem::replace(self, anew)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use polygram_domain::philox::{Purpose, Stream};

    use super::*;

    #[test]
    fn marked_entries_are_found_in_order_and_counted_once() {
        for seed in 0..20u64 {
            let random = Stream::new(seed, Purpose::SyntheticData);
            let entries = 1 + random.words(0, 0)[0] as usize % 500;
            let mut changed = ChangedRows::none_of(entries);
            let mut expected = BTreeSet::new();
            for i in 0..u64::from(random.words(0, 0)[1] % 200) {
                let entry = random.words(1, i)[0] as usize % entries;
                changed.mark(entry);
                expected.insert(entry);
            }
            assert_eq!(changed.count(), expected.len() as u64, "seed {seed}");
            for i in 0..100 {
                let [from, end, ..] = random.words(2, i).map(|word| word as usize % (entries + 1));
                let first = expected.range(from..).next().copied().filter(|entry| *entry < end);
                assert_eq!(changed.next(from, end), first, "seed {seed}: {from}..{end} of {entries}");
            }
            assert!((0..entries).all(|entry| changed.has(entry) == expected.contains(&entry)));
            let before = changed.take();
            assert_eq!((before.count(), changed.count()), (expected.len() as u64, 0));
            assert_eq!(changed.next(0, entries), None);
        }
    }
}
