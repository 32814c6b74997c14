//! The algorithms of the calls, as one rank runs them.
//!
//! Sums follow the binary tree over ranks in three forms with the same bits. The first is one hop: every rank sends
//! its vector to all others, and all add up the tree. The other two go through distances 1, 2, 4, …,
//! and at distance d every rank pairs with `rank ^ d`: what the lower one holds is the sum of the left subtree,
//! what the higher one holds that of the right subtree, and both add lower + higher.
//! * tiny vectors: one hop; it costs more bytes, and one wait instead of log2 W.
//! * short vectors: recursive doubling; partners exchange everything, and both have the sum.
//! * long vectors: recursive halving, block by block, so that what is summed is still in the caches when it is sent
//!   on. A block is cut into W chunks, and a rank keeps, at distance d, those chunks whose index has its own bit d;
//!   after the last round rank r holds the sum of chunk r. The chunks then travel back through the same pairs in
//!   reverse order. Each value is still added by the same tree, only by one rank instead of all.
//!
//! (Rabenseifner's all_reduce, with the halves interleaved instead of contiguous so that the first additions are
//! between neighbours: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
//! MPICH", 2005, §4.5, halve from the far end and so add in another order.)

use polygram_domain::Rank;

use crate::element::{Element, Side, fold, front_mut};
use crate::link::{Broken, Cause, Incoming, Link, Outgoing, Round};
use crate::members::Members;
use crate::sink::{Fold, Grow, Scatter, keep};

/// Bytes that are summed and sent back before the next are touched; where nothing is sent back, bytes of each chunk.
pub(super) const BLOCK_BYTES: usize = 2 << 20;

/// Rounds of the halving and of the way back carry numbers of their own, so that ranks that disagree about the
/// form of a sum find out.
const HALVING: u16 = 0x100;
const GATHERING: u16 = 0x200;
const ONE_HOP: u16 = 0x300;

/// Why a call's body ended early.
pub(super) enum Stop {
    Broken(Broken),
    Overflow,
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Stop {
        Stop::Broken(broken)
    }
}

/// A rank inside a call.
pub(super) struct Seat<'a, L> {
    pub(super) link: &'a mut L,
    pub(super) members: &'a Members,
    pub(super) round: Round<'a>,
}

impl<L: Link> Seat<'_, L> {
    pub(super) fn begin(&mut self) -> Result<(), Stop> {
        if self.round.abort.is_aborted() {
            return Err(Broken { cause: Cause::Aborted, waiting: Vec::new() }.into());
        }
        Ok(self.link.begin(&self.round)?)
    }

    fn exchange(
        &mut self,
        number: u16,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), Stop> {
        Ok(self.link.exchange(&Round { number, ..self.round }, sends, receives)?)
    }

    /// The partner at distance `2^bit`, and the side this rank's sums are of.
    fn partner(&self, bit: u16) -> (Rank, Side) {
        let rank = self.link.rank().0;
        let partner = rank ^ (1 << bit);
        (Rank(partner), if rank < partner { Side::Lower } else { Side::Higher })
    }

    fn bits(&self) -> u16 {
        self.link.world_size().trailing_zeros() as u16
    }

    /// Everything to everybody: `values` becomes the sum over all ranks.
    pub(super) fn one_hop<T: Element>(&mut self, values: &mut [T]) -> Result<(), Stop> {
        let (rank, world_size) = (self.link.rank(), self.link.world_size());
        if world_size == 1 {
            return Ok(());
        }
        let length = values.len();
        let mut all = vec![T::zeroed(); length * world_size as usize];
        let mut by_rank: Vec<&mut [T]> = (0..world_size).map(|_| &mut [][..]).collect();
        let mut rest = all.as_mut_slice();
        for place in &mut by_rank {
            (*place, rest) = rest.split_at_mut(length);
        }
        by_rank[rank.index()].copy_from_slice(values);
        let peers = || (0..world_size).map(Rank).filter(|peer| *peer != rank);
        let send = |to| Outgoing { to, parts: vec![bytemuck::cast_slice(values)] };
        let sends: Vec<_> = peers().map(send).collect();
        let others = by_rank.iter_mut().zip(0..).filter(|(_, from)| *from != rank.0);
        let mut sinks: Vec<_> = others
            .map(|(place, from)| (Rank(from), Scatter::new(vec![bytemuck::cast_slice_mut(place)])))
            .collect();
        let mut receives: Vec<_> =
            sinks.iter_mut().map(|(from, sink)| Incoming { from: *from, sink }).collect();
        self.exchange(ONE_HOP, &sends, &mut receives)?;
        let mut distance = 1;
        while distance < by_rank.len() {
            for pair in by_rank.chunks_mut(2 * distance) {
                let (lower, higher) = pair.split_at_mut(distance);
                if fold(lower[0], bytemuck::cast_slice(higher[0]).into(), Side::Lower) {
                    return Err(Stop::Overflow);
                }
            }
            distance *= 2;
        }
        values.copy_from_slice(by_rank[0]);
        Ok(())
    }

    /// Recursive doubling: `values` becomes the sum over all ranks.
    pub(super) fn doubling<T: Element>(&mut self, values: &mut [T]) -> Result<(), Stop> {
        let mut theirs = vec![T::zeroed(); values.len()];
        for bit in 0..self.bits() {
            let (partner, side) = self.partner(bit);
            let mut sink = Scatter::new(vec![bytemuck::cast_slice_mut(&mut theirs)]);
            let send = Outgoing { to: partner, parts: vec![bytemuck::cast_slice(values)] };
            self.exchange(bit, &[send], &mut [Incoming { from: partner, sink: &mut sink }])?;
            if fold(values, bytemuck::cast_slice(&theirs).into(), side) {
                return Err(Stop::Overflow);
            }
        }
        Ok(())
    }

    /// Recursive halving: this rank's chunk becomes its sum over all ranks; the others are unspecified.
    pub(super) fn halving<T: Element>(&mut self, chunks: &mut [&mut [T]]) -> Result<(), Stop> {
        let rank = self.link.rank().0;
        for bit in 0..self.bits() {
            let (partner, side) = self.partner(bit);
            let (mut keep, mut give) = (Vec::new(), Vec::new());
            for (index, chunk) in (0_u32..).zip(chunks.iter_mut()) {
                let shared_bits = (1 << bit) - 1;
                if index & shared_bits != rank & shared_bits {
                    continue;
                }
                if (index >> bit) & 1 == (rank >> bit) & 1 {
                    keep.push(&mut **chunk);
                } else {
                    give.push(bytemuck::cast_slice(chunk));
                }
            }
            let mut sink = Fold::new(keep, side);
            let send = Outgoing { to: partner, parts: give };
            self.exchange(HALVING + bit, &[send], &mut [Incoming { from: partner, sink: &mut sink }])?;
            if sink.overflowed() {
                return Err(Stop::Overflow);
            }
        }
        Ok(())
    }

    /// [`Seat::halving`] of chunks that may be of any lengths, a block of each at a time.
    pub(super) fn halving_blocks<T: Element>(&mut self, mut chunks: Vec<&mut [T]>) -> Result<(), Stop> {
        let block = BLOCK_BYTES / size_of::<T>();
        loop {
            let mut blocks: Vec<_> = chunks.iter_mut().map(|chunk| front_mut(chunk, block)).collect();
            self.halving(&mut blocks)?;
            if chunks.iter().all(|chunk| chunk.is_empty()) {
                return Ok(());
            }
        }
    }

    /// The way back of [`Seat::halving`]: from every rank's chunk to all chunks on every rank, in a block of a vector
    /// of `vector_bytes`.
    pub(super) fn gathering<T: Element>(
        &mut self,
        chunks: &mut [&mut [T]],
        vector_bytes: usize,
    ) -> Result<(), Stop> {
        let rank = self.link.rank().0;
        for bit in (0..self.bits()).rev() {
            let (partner, _) = self.partner(bit);
            let (mut take, mut give) = (Vec::new(), Vec::new());
            for (index, chunk) in (0_u32..).zip(chunks.iter_mut()) {
                let known_bits = (2 << bit) - 1;
                if index & known_bits == rank & known_bits {
                    give.push(bytemuck::cast_slice(chunk));
                } else if index & known_bits == partner.0 & known_bits {
                    take.push(bytemuck::cast_slice_mut(chunk));
                }
            }
            let mut sink = Scatter::part_of(if bit == 0 { vector_bytes } else { 0 }, take);
            let send = Outgoing { to: partner, parts: give };
            self.exchange(GATHERING + bit, &[send], &mut [Incoming { from: partner, sink: &mut sink }])?;
        }
        Ok(())
    }

    /// Every rank's chunk, of values of `whole_bytes`, to everybody, at once.
    pub(super) fn share<T: Element>(
        &mut self,
        mut chunks: Vec<&mut [T]>,
        whole_bytes: usize,
    ) -> Result<(), Stop> {
        let rank = self.link.rank();
        let (lower, rest) = chunks.split_at_mut(rank.index());
        let Some((own, higher)) = rest.split_first_mut() else { return Ok(()) };
        let own: &[T] = own;
        let others = (0..).zip(lower).chain((rank.0 + 1..).zip(higher));
        let mut sinks: Vec<_> = others
            .map(|(from, chunk)| {
                (Rank(from), Scatter::part_of(whole_bytes, vec![bytemuck::cast_slice_mut(chunk)]))
            })
            .collect();
        let send = |(to, _): &(Rank, _)| Outgoing { to: *to, parts: vec![bytemuck::cast_slice(own)] };
        let sends: Vec<_> = sinks.iter().map(send).collect();
        let mut receives: Vec<_> =
            sinks.iter_mut().map(|(from, sink)| Incoming { from: *from, sink }).collect();
        self.exchange(0, &sends, &mut receives)
    }

    /// Sends `sends[r]` to each rank r, everything at once; `received` becomes what came, by rank.
    pub(super) fn swap(
        &mut self,
        sends: &[&[u8]],
        received: &mut Vec<Vec<u8>>,
        limit: u64,
    ) -> Result<(), Stop> {
        let rank = self.link.rank();
        received.resize_with(sends.len(), Vec::new);
        keep(sends[rank.index()], &mut received[rank.index()]);
        let peers = || (0..self.link.world_size()).map(Rank).filter(|peer| *peer != rank);
        let outgoing: Vec<_> = peers().map(|to| Outgoing { to, parts: vec![sends[to.index()]] }).collect();
        let mut sinks: Vec<_> = received
            .iter_mut()
            .zip(0..)
            .filter(|(_, from)| *from != rank.0)
            .map(|(buffer, from)| (Rank(from), Grow::new(buffer, limit)))
            .collect();
        let mut incoming: Vec<_> =
            sinks.iter_mut().map(|(from, sink)| Incoming { from: *from, sink }).collect();
        self.exchange(0, &outgoing, &mut incoming)
    }

    /// Down a binomial tree from `root`. Every rank speaks to its parent at once, so that ranks in other calls, or
    /// with another root in mind, meet somebody who notices.
    pub(super) fn broadcast(&mut self, root: Rank, bytes: &mut Vec<u8>, limit: u64) -> Result<(), Stop> {
        let world_size = u64::from(self.link.world_size());
        let at = |place: u64| Rank(((place + u64::from(root.0)) % world_size) as u32);
        let place = (u64::from(self.link.rank().0) + world_size - u64::from(root.0)) % world_size;
        // A place's parent lacks its highest bit; its children have one higher bit more.
        let parent = (place > 0).then(|| at(place - (1 << place.ilog2())));
        let first = if place == 0 { 0 } else { place.ilog2() + 1 };
        let children = (first..32).map(|bit| place + (1 << bit)).take_while(|child| *child < world_size);
        let children: Vec<Rank> = children.map(at).collect();

        let mut entered: Vec<_> = children.iter().map(|from| (*from, Scatter::new(Vec::new()))).collect();
        let mut incoming: Vec<_> =
            entered.iter_mut().map(|(from, sink)| Incoming { from: *from, sink }).collect();
        let Some(from) = parent else {
            return self.exchange(0, &to_each(&children, bytes), &mut incoming);
        };
        let mut sink = Grow::new(bytes, limit);
        incoming.push(Incoming { from, sink: &mut sink });
        self.exchange(0, &[Outgoing { to: from, parts: Vec::new() }], &mut incoming)?;
        self.exchange(0, &to_each(&children, bytes), &mut [])
    }

    /// Dissemination: after the round of distance d a rank knows of 2·d ranks before it.
    pub(super) fn barrier(&mut self) -> Result<(), Stop> {
        let (rank, world_size) = (u64::from(self.link.rank().0), u64::from(self.link.world_size()));
        let mut number = 0;
        while 1 << number < world_size {
            let distance = 1 << number;
            let to = Rank(((rank + distance) % world_size) as u32);
            let from = Rank(((rank + world_size - distance) % world_size) as u32);
            let mut sink = Scatter::new(Vec::new());
            let send = Outgoing { to, parts: Vec::new() };
            self.exchange(number, &[send], &mut [Incoming { from, sink: &mut sink }])?;
            number += 1;
        }
        Ok(())
    }
}

/// The same bytes to each of `ranks`.
fn to_each<'a>(ranks: &[Rank], bytes: &'a [u8]) -> Vec<Outgoing<'a>> {
    ranks.iter().map(|to| Outgoing { to: *to, parts: vec![bytes] }).collect()
}
