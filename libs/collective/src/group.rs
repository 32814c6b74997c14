//! The algorithms, over any transport.
//!
//! [`Group`] is what surrounds a call: its number, its checks, and what becomes of a failure. What a rank does
//! within a call is in [`algorithms`].

use std::sync::Arc;
use std::time::Duration;

use polygram_domain::Rank;
use polygram_domain::embedding::SameHost;

use crate::abort::{AbortHandle, AbortTarget};
use crate::call::{Call, Op};
use crate::collective::Collective;
use crate::element::{Element, check_edges, chunks_mut, divided_mut};
use crate::error::{CollectiveError, Place};
use crate::link::{Link, Round};
use crate::members::Members;
use crate::progress::{Progress, Stage};

mod algorithms;
mod verdict;

use algorithms::{BLOCK_BYTES, Seat, Stop};

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
