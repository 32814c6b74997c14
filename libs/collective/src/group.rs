//! The algorithms, over any transport.
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

use std::sync::Arc;
use std::time::Duration;

use polygram_domain::Rank;
use polygram_domain::embedding::SameHost;

use crate::abort::{AbortHandle, AbortTarget};
use crate::call::{Call, Op};
use crate::collective::Collective;
use crate::element::{Element, Side, check_edges, chunks_mut, divided_mut, fold, front_mut};
use crate::error::{CollectiveError, Place};
use crate::link::{Broken, Cause, Incoming, Link, Outgoing, Round};
use crate::members::Members;
use crate::progress::{Progress, Stage};
use crate::sink::{Fold, Grow, Scatter, keep};

mod verdict;

/// What a group is told besides its members.
#[derive(Clone, Debug)]
pub struct Options {
    /// The group's name in errors and progress tables ("data-parallel", say); equal on all ranks.
    pub group: String,
    /// A call in which for so long not a byte moves has failed.
    pub failure_detection: Duration,
    /// Between hosts, a peer that sends no heartbeat for so long is lost, whatever it computes; `None`: nobody gives
    /// heartbeats. Equal on all ranks. A group within a group relies on the larger one's.
    pub link_detection: Option<Duration>,
    /// Vectors of up to so many bytes are summed by recursive doubling (tiny ones in one hop), longer ones by
    /// recursive halving. The bits are the same. Equal on all ranks.
    pub short_bytes: usize,
    /// Whether ranks on one host share memory instead of sending bytes through the network stack.
    pub same_host: SameHost,
    /// The longest message accepted where the sender decides the length (gather, exchange, broadcast).
    pub message_limit_bytes: u64,
}

impl Options {
    /// The usual options.
    pub fn new(group: impl Into<String>, failure_detection: Duration) -> Options {
        Options {
            group: group.into(),
            failure_detection,
            link_detection: None,
            short_bytes: 64 << 10,
            same_host: SameHost::Auto,
            message_limit_bytes: 16 << 30,
        }
    }
}

/// The most bytes of a vector, times ranks, that is summed in one hop.
const TINY_BYTES: usize = 16 << 10;
/// Bytes that are summed and sent back before the next are touched; where nothing is sent back, bytes of each chunk.
const BLOCK_BYTES: usize = 2 << 20;

/// Rounds of the halving and of the way back carry numbers of their own, so that ranks that disagree about the
/// form of a sum find out.
const HALVING: u16 = 0x100;
const GATHERING: u16 = 0x200;
const ONE_HOP: u16 = 0x300;

/// A rank's seat in a group whose ranks are joined by `L`.
pub struct Group<L: Link> {
    link: L,
    members: Members,
    name: Arc<str>,
    options: Options,
    sequence: u64,
    abort: AbortHandle,
    progress: Progress,
    /// The words of the first failure; the group is unusable from then on.
    failed: Option<String>,
}

impl<L: Link> Group<L> {
    /// A seat on top of `link`. All ranks do this with the same options.
    pub fn over(link: L, options: Options) -> Group<L> {
        let members = Members::all(link.world_size());
        Group::of_members(members, link, options)
    }

    /// [`Group::over`] for a part of the run: `members`, as many as `link` joins.
    pub(crate) fn of_members(members: Members, link: L, options: Options) -> Group<L> {
        let name: Arc<str> = options.group.as_str().into();
        let target = Named { rank: members.name(link.rank()), target: link.abort_target() };
        let abort = AbortHandle::new(Arc::new(target));
        let progress = Progress::new(Arc::clone(&name), link.rank(), members.clone());
        Group { link, members, name, options, sequence: 0, abort, progress, failed: None }
    }

    /// What joins this rank to the others.
    pub(crate) fn link(&self) -> &L {
        &self.link
    }

    /// Who sits in the group.
    pub(crate) fn seats(&self) -> &Members {
        &self.members
    }

    /// Calls made so far.
    pub(crate) fn calls(&self) -> u64 {
        self.sequence
    }

    /// The same seat over another link between the same ranks; calls go on being counted.
    #[cfg(feature = "nccl")]
    pub(crate) fn map_link<M: Link>(self, change: impl FnOnce(L) -> M) -> Group<M> {
        let Group { link, members, options, sequence, failed, .. } = self;
        Group { sequence, failed, ..Group::of_members(members, change(link), options) }
    }

    /// What the group was told.
    #[cfg(feature = "nccl")]
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Runs `body` as the next call, with everything that surrounds a call.
    fn call<R>(
        &mut self,
        call: Call,
        body: impl FnOnce(&mut Seat<'_, L>) -> Result<R, Stop>,
    ) -> Result<R, CollectiveError> {
        let call = Call { sequence: self.sequence, ..call };
        let rank = self.members.name(self.link.rank());
        if let Some(first) = &self.failed {
            return Err(CollectiveError::Failed {
                group: Arc::clone(&self.name),
                rank,
                first: first.clone(),
            });
        }
        let shown = self.members.call(call);
        let place = || Box::new(Place { group: Arc::clone(&self.name), rank, call: shown });
        if let Err(reason) = self.abort.enter() {
            let error = CollectiveError::Aborted { place: place(), reason, waiting: Vec::new() };
            self.failed = Some(error.to_string());
            return Err(error);
        }
        self.sequence += 1;
        self.progress.mark(call, Stage::Entered);
        let round = Round { call, number: 0, abort: &self.abort, progress: &self.progress };
        let mut seat = Seat { link: &mut self.link, members: &self.members, round };
        let outcome = seat.begin().and_then(|()| body(&mut seat));
        let outcome = match outcome {
            Ok(answer) => {
                self.progress.mark(call, Stage::Left);
                Ok(answer)
            }
            Err(stop) => {
                self.progress.mark(call, Stage::Failed);
                let error = verdict::reach(seat, stop, place(), self.options.failure_detection);
                self.failed = Some(error.to_string());
                Err(error)
            }
        };
        self.abort.leave();
        outcome
    }

    fn sum<T: Element>(&mut self, values: &mut [T]) -> Result<(), CollectiveError> {
        let op = T::ALL_REDUCE;
        self.check_tree(op)?;
        let (bytes, world_size) = (size_of_val(values), self.link.world_size());
        let short = bytes <= self.options.short_bytes;
        let tiny = bytes.saturating_mul(world_size as usize) <= TINY_BYTES;
        self.call(Call { length: values.len() as u64, ..Call::of(op) }, |seat| {
            if short && tiny {
                return seat.one_hop(values);
            } else if short {
                return seat.doubling(values);
            }
            for block in values.chunks_mut(BLOCK_BYTES / size_of::<T>()) {
                let mut chunks = chunks_mut(block, world_size);
                seat.halving(&mut chunks)?;
                seat.gathering(&mut chunks, bytes)?;
            }
            Ok(())
        })
    }

    fn check_tree(&self, op: Op) -> Result<(), CollectiveError> {
        let world_size = self.link.world_size();
        if world_size.is_power_of_two() { Ok(()) } else { Err(CollectiveError::WorldSize { op, world_size }) }
    }
}

impl<L: Link> Collective for Group<L> {
    fn rank(&self) -> Rank {
        self.link.rank()
    }

    fn world_size(&self) -> u32 {
        self.link.world_size()
    }

    fn members(&self) -> &[Rank] {
        self.members.ranks()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.sum(values)
    }

    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.sum(values)
    }

    fn all_reduce_u64(&mut self, values: &mut [u64]) -> Result<(), CollectiveError> {
        self.sum(values)
    }

    fn reduce_scatter(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError> {
        let op = Op::ReduceScatterF32;
        self.check_tree(op)?;
        let division = check_edges(op, edges, values.len(), self.world_size())?;
        let call = Call { length: values.len() as u64, division, ..Call::of(op) };
        self.call(call, |seat| seat.halving_blocks(divided_mut(values, edges)))
    }

    fn all_gather_chunks(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError> {
        let op = Op::AllGatherChunksF32;
        let division = check_edges(op, edges, values.len(), self.world_size())?;
        let call = Call { length: values.len() as u64, division, ..Call::of(op) };
        let bytes = size_of_val(values);
        self.call(call, |seat| seat.share(divided_mut(values, edges), bytes))
    }

    fn all_gather_into(&mut self, bytes: &[u8], received: &mut Vec<Vec<u8>>) -> Result<(), CollectiveError> {
        let limit = self.options.message_limit_bytes;
        let sends = vec![bytes; self.world_size() as usize];
        self.call(Call::of(Op::AllGather), |seat| seat.swap(&sends, received, limit))
    }

    fn all_to_all_v_into(
        &mut self,
        sends: &[&[u8]],
        received: &mut Vec<Vec<u8>>,
    ) -> Result<(), CollectiveError> {
        let (op, world_size) = (Op::AllToAllV, self.world_size());
        if sends.len() != world_size as usize {
            let detail = format!("{} buffers to send in a group of {world_size} ranks", sends.len());
            return Err(CollectiveError::Argument { op, detail });
        }
        let limit = self.options.message_limit_bytes;
        self.call(Call::of(op), |seat| seat.swap(sends, received, limit))
    }

    fn broadcast(&mut self, root: Rank, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        let (op, world_size) = (Op::Broadcast, self.world_size());
        if root.0 >= world_size {
            let detail = format!("root {root} is not in a group of {world_size} ranks");
            return Err(CollectiveError::Argument { op, detail });
        }
        let limit = self.options.message_limit_bytes;
        self.call(Call { root, ..Call::of(op) }, |seat| seat.broadcast(root, bytes, limit))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.call(Call::of(Op::Barrier), |seat| seat.barrier())
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

/// Why a call's body ended early.
enum Stop {
    Broken(Broken),
    Overflow,
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Stop {
        Stop::Broken(broken)
    }
}

/// What an abort acts on, with the name that the other ranks hear.
struct Named {
    rank: Rank,
    target: Arc<dyn AbortTarget>,
}

impl AbortTarget for Named {
    fn interrupt(&self) {
        self.target.interrupt();
    }

    fn announce(&self, reason: &str) {
        self.target.announce(&format!("rank {} was aborted: {reason}", self.rank));
    }
}

/// A rank inside a call.
struct Seat<'a, L> {
    link: &'a mut L,
    members: &'a Members,
    round: Round<'a>,
}

impl<L: Link> Seat<'_, L> {
    fn begin(&mut self) -> Result<(), Stop> {
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
    fn one_hop<T: Element>(&mut self, values: &mut [T]) -> Result<(), Stop> {
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
    fn doubling<T: Element>(&mut self, values: &mut [T]) -> Result<(), Stop> {
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
    fn halving<T: Element>(&mut self, chunks: &mut [&mut [T]]) -> Result<(), Stop> {
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
    fn halving_blocks<T: Element>(&mut self, mut chunks: Vec<&mut [T]>) -> Result<(), Stop> {
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
    fn gathering<T: Element>(&mut self, chunks: &mut [&mut [T]], vector_bytes: usize) -> Result<(), Stop> {
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
    fn share<T: Element>(&mut self, mut chunks: Vec<&mut [T]>, whole_bytes: usize) -> Result<(), Stop> {
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
    fn swap(&mut self, sends: &[&[u8]], received: &mut Vec<Vec<u8>>, limit: u64) -> Result<(), Stop> {
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
    fn broadcast(&mut self, root: Rank, bytes: &mut Vec<u8>, limit: u64) -> Result<(), Stop> {
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
    fn barrier(&mut self) -> Result<(), Stop> {
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
