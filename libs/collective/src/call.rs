//! One collective call, as every rank of the group must make it.

use std::fmt;

use polygram_domain::Rank;

/// What is called. Ranks that call different ones at the same sequence number disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sum of f32 vectors.
    AllReduceF32,
    /// Sum of f64 vectors.
    AllReduceF64,
    /// Sum of u64 vectors.
    AllReduceU64,
    /// Sum of f32 vectors, each rank keeping its chunk.
    ReduceScatterF32,
    /// Every rank's bytes to every rank.
    AllGather,
    /// Bytes from every rank to every rank.
    AllToAllV,
    /// One rank's bytes to all.
    Broadcast,
    /// Nobody leaves before all have entered.
    Barrier,
    /// Every rank's chunk of an f32 vector to every rank.
    AllGatherChunksF32,
}

impl Op {
    const ALL: [Op; 9] = [
        Op::AllReduceF32,
        Op::AllReduceF64,
        Op::AllReduceU64,
        Op::ReduceScatterF32,
        Op::AllGather,
        Op::AllToAllV,
        Op::Broadcast,
        Op::Barrier,
        Op::AllGatherChunksF32,
    ];

    /// The byte that stands for it on the wire, from 1.
    pub(crate) fn code(self) -> u8 {
        self as u8 + 1
    }

    pub(crate) fn from_code(code: u8) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.code() == code)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::AllReduceF32 => "all_reduce",
            Op::AllReduceF64 => "all_reduce_f64",
            Op::AllReduceU64 => "all_reduce_u64",
            Op::ReduceScatterF32 => "reduce_scatter",
            Op::AllGather => "all_gather",
            Op::AllToAllV => "all_to_all_v",
            Op::Broadcast => "broadcast",
            Op::Barrier => "barrier",
            Op::AllGatherChunksF32 => "all_gather_chunks",
        })
    }
}

/// A call's identity. Two ranks are in the same call when all of it is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is called.
    pub op: Op,
    /// Calls of this group before this one.
    pub sequence: u64,
    /// Values to sum or gather; 0 where ranks may bring different lengths (gather, exchange, broadcast, barrier).
    pub length: u64,
    /// Who sends, in a broadcast; rank 0 in every other call.
    pub root: Rank,
    /// A digest of where the chunks of divided values begin and end; 0 in calls that divide nothing.
    pub division: u64,
}

impl Call {
    /// A call of nothing yet; whoever makes it fills in what it is about, and its group counts it.
    pub(crate) fn of(op: Op) -> Call {
        Call { op, sequence: 0, length: 0, root: Rank(0), division: 0 }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.op, self.sequence)?;
        match self.op {
            Op::AllReduceF32 | Op::AllReduceF64 | Op::AllReduceU64 => {
                write!(f, " of {} values", self.length)
            }
            Op::ReduceScatterF32 | Op::AllGatherChunksF32 => {
                write!(f, " of {} values in chunks {:016x}", self.length, self.division)
            }
            Op::Broadcast => write!(f, " from rank {}", self.root),
            Op::AllGather | Op::AllToAllV | Op::Barrier => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back() {
        for op in Op::ALL {
            assert_eq!(Op::from_code(op.code()), Some(op));
        }
        assert_eq!(Op::from_code(0), None);
        assert_eq!(Op::from_code(10), None);
    }

    #[test]
    fn a_call_reads_as_a_sentence() {
        let call = |op| Call { op, sequence: 7, length: 12, root: Rank(3), division: 10 };
        assert_eq!(call(Op::AllReduceF32).to_string(), "all_reduce #7 of 12 values");
        assert_eq!(call(Op::Broadcast).to_string(), "broadcast #7 from rank 3");
        assert_eq!(call(Op::Barrier).to_string(), "barrier #7");
        let chunks = "reduce_scatter #7 of 12 values in chunks 000000000000000a";
        assert_eq!(call(Op::ReduceScatterF32).to_string(), chunks);
    }
}
