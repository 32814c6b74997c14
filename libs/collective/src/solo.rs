//! A group of one.

use std::sync::Arc;

use polygram_domain::Rank;

use crate::abort::{AbortHandle, AbortTarget};
use crate::call::{Call, Op};
use crate::collective::Collective;
use crate::element::check_edges;
use crate::error::{CollectiveError, JoinError, Place};
use crate::group::Options;
use crate::members::Members;
use crate::progress::{Progress, Stage};
use crate::sink::keep;
use crate::split::{self, Split};

/// The only rank of its group: sums are the values themselves, and nothing waits.
pub struct Solo {
    name: Arc<str>,
    members: Members,
    sequence: u64,
    abort: AbortHandle,
    progress: Progress,
}

struct Nobody;

impl AbortTarget for Nobody {
    fn interrupt(&self) {}

    fn announce(&self, _reason: &str) {}
}

impl Solo {
    /// A group of one, called `group` in errors and progress tables.
    pub fn new(group: &str) -> Solo {
        let name: Arc<str> = group.into();
        let members = Members::all(1);
        let progress = Progress::new(Arc::clone(&name), Rank(0), members.clone());
        Solo { name, members, sequence: 0, abort: AbortHandle::new(Arc::new(Nobody)), progress }
    }

    fn call(&mut self, op: Op, length: usize) -> Result<(), CollectiveError> {
        self.divided(op, length, 0)
    }

    fn divided(&mut self, op: Op, length: usize, division: u64) -> Result<(), CollectiveError> {
        let call = Call { sequence: self.sequence, length: length as u64, division, ..Call::of(op) };
        if let Some(reason) = self.abort.reason() {
            let place = Box::new(Place { group: Arc::clone(&self.name), rank: Rank(0), call });
            return Err(CollectiveError::Aborted { place, reason, waiting: Vec::new() });
        }
        self.sequence += 1;
        self.progress.mark(call, Stage::Left);
        Ok(())
    }
}

impl Collective for Solo {
    fn rank(&self) -> Rank {
        Rank(0)
    }

    fn world_size(&self) -> u32 {
        1
    }

    fn members(&self) -> &[Rank] {
        self.members.ranks()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.call(Op::AllReduceF32, values.len())
    }

    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.call(Op::AllReduceF64, values.len())
    }

    fn all_reduce_u64(&mut self, values: &mut [u64]) -> Result<(), CollectiveError> {
        self.call(Op::AllReduceU64, values.len())
    }

    fn reduce_scatter(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError> {
        let op = Op::ReduceScatterF32;
        let division = check_edges(op, edges, values.len(), 1)?;
        self.divided(op, values.len(), division)
    }

    fn all_gather_chunks(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError> {
        let op = Op::AllGatherChunksF32;
        let division = check_edges(op, edges, values.len(), 1)?;
        self.divided(op, values.len(), division)
    }

    fn all_gather_into(&mut self, bytes: &[u8], received: &mut Vec<Vec<u8>>) -> Result<(), CollectiveError> {
        self.call(Op::AllGather, 0)?;
        received.resize_with(1, Vec::new);
        keep(bytes, &mut received[0]);
        Ok(())
    }

    fn all_to_all_v_into(
        &mut self,
        sends: &[&[u8]],
        received: &mut Vec<Vec<u8>>,
    ) -> Result<(), CollectiveError> {
        let [own] = sends else {
            let detail = format!("{} buffers to send in a group of 1 ranks", sends.len());
            return Err(CollectiveError::Argument { op: Op::AllToAllV, detail });
        };
        self.call(Op::AllToAllV, 0)?;
        received.resize_with(1, Vec::new);
        keep(own, &mut received[0]);
        Ok(())
    }

    fn broadcast(&mut self, root: Rank, _bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        if root != Rank(0) {
            let detail = format!("root {root} is not in a group of 1 ranks");
            return Err(CollectiveError::Argument { op: Op::Broadcast, detail });
        }
        self.call(Op::Broadcast, 0)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.call(Op::Barrier, 0)
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Split for Solo {
    fn split(&mut self, members: &[Rank], options: Options) -> Result<Box<dyn Collective>, JoinError> {
        split::agree(self, members, &options, None)?;
        Ok(Box::new(Solo::new(&options.group)))
    }
}
