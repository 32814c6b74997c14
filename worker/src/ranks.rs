//! The groups of ranks that a worker is in. Each has connections of its own, for they are used at the same time.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_collective::{AbortHandle, Bound, Collective, JoinError, Membership, Options, Solo, Split, Tcp};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::topology::SumGroup;

use crate::counted::Counted;
use crate::gradients::SumRanks;
use crate::observe::{Group, WorkerView};

/// A rank's seats.
pub struct Ranks {
    /// All workers: losses, agreement, evaluation.
    pub workers: Box<dyn Collective>,
    /// Those over which gradients are summed.
    pub sums: SumRanks,
    /// Those that hold all experts together; `None` where this rank holds all.
    pub experts: Option<Box<dyn Collective>>,
}

/// Where the other ranks are, and how long to wait for them.
pub struct Meeting<'a> {
    /// This rank, of which run and generation.
    pub membership: &'a Membership,
    /// All ranks' addresses.
    pub addresses: &'a [SocketAddr],
    /// For all to be connected; a rank on another host that then sends no heartbeat for so long is lost.
    pub deadline: Duration,
    /// A call in which nothing has moved for so long has failed.
    pub patience: Duration,
}

impl Ranks {
    /// Meets the other ranks of `spec`; alone, there is nobody to meet. Blocks.
    pub fn meet(spec: &RunSpec, listener: Bound, meeting: &Meeting<'_>) -> Result<Ranks, JoinError> {
        let options = |group: &str| Options::new(group, meeting.patience);
        let (topology, rank) = (&spec.topology, meeting.membership.rank);
        let mut workers: Box<dyn Split> = match topology.workers {
            1 => Box::new(Solo::new("workers")),
            _ => Box::new(Tcp::connect(
                listener,
                meeting.membership,
                meeting.addresses,
                Options { link_detection: Some(meeting.deadline), ..options("workers") },
                meeting.deadline,
            )?),
        };
        let of_workers = topology.sum_group(SumGroup::Workers, rank);
        let sums = SumRanks {
            workers: workers.split(&of_workers, options("gradients"))?,
            same_experts: match topology.expert_parallel {
                1 => None,
                _ => {
                    let same = topology.sum_group(SumGroup::SameExperts, rank);
                    Some(workers.split(&same, options("expert gradients"))?)
                }
            },
        };
        let experts = match topology.expert_parallel {
            1 => None,
            _ => Some(workers.split(&topology.expert_group(rank), options("experts"))?),
        };
        Ok(Ranks { workers, sums, experts })
    }

    /// The same, with the bytes that this rank brings to calls counted in `view`.
    pub fn counted(self, view: &WorkerView) -> Ranks {
        let count = |ranks: Box<dyn Collective>, group| -> Box<dyn Collective> {
            Box::new(Counted::new(ranks, group, view))
        };
        let Ranks { workers, sums: SumRanks { workers: sums, same_experts }, experts } = self;
        Ranks {
            workers: count(workers, Group::Workers),
            sums: SumRanks {
                workers: count(sums, Group::Gradients),
                same_experts: same_experts.map(|ranks| count(ranks, Group::ExpertGradients)),
            },
            experts: experts.map(|ranks| count(ranks, Group::Experts)),
        }
    }

    /// Handles that end the calls of every group.
    pub fn abort_handles(&self) -> Vec<AbortHandle> {
        let groups = [
            Some(&self.workers),
            Some(&self.sums.workers),
            self.sums.same_experts.as_ref(),
            self.experts.as_ref(),
        ];
        groups.into_iter().flatten().map(|group| group.abort_handle()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use polygram_domain::{Generation, Rank, RunFile};
    use polygram_handshake::LinkKey;

    use super::*;

    #[test]
    fn four_ranks_meet_in_all_their_groups() {
        let text = include_str!("../../configs/tiny.toml");
        let sets = ["topology.workers=4", "topology.expert_parallel=2"].map(str::to_owned);
        let spec = RunFile::parse(text, "tiny", &sets).and_then(|file| file.resolve()).unwrap();
        let bound: Vec<Bound> = (0..4).map(|_| Tcp::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap()).collect();
        let addresses: Vec<SocketAddr> = bound.iter().map(Bound::address).collect();
        let (spec, addresses) = (&spec, &addresses);
        std::thread::scope(|scope| {
            for (rank, listener) in (0..).map(Rank).zip(bound) {
                scope.spawn(move || {
                    let time = Duration::from_secs(20);
                    let membership =
                        Membership::new("tiny", Generation(1), rank, LinkKey::of_secret(b"secret"));
                    let membership = &membership;
                    let meeting = Meeting { membership, addresses, deadline: time, patience: time };
                    let view = WorkerView::default();
                    let mut ranks = Ranks::meet(spec, listener, &meeting).unwrap().counted(&view);
                    assert_eq!(ranks.abort_handles().len(), 4);
                    let ask = |group: &mut dyn Collective| {
                        let mut sum = [f64::from(1 << rank.0)];
                        group.all_reduce_f64(&mut sum).unwrap();
                        sum[0] as u32
                    };
                    assert_eq!(ask(ranks.workers.as_mut()), 0b1111);
                    assert_eq!(ask(ranks.sums.workers.as_mut()), 0b1111);
                    let experts = ranks.experts.as_mut().unwrap();
                    assert_eq!(ask(experts.as_mut()), if rank.0 < 2 { 0b0011 } else { 0b1100 });
                    let same = ranks.sums.same_experts.as_mut().unwrap();
                    assert_eq!(ask(same.as_mut()), if rank.0.is_multiple_of(2) { 0b0101 } else { 0b1010 });
                    // One number of eight bytes each.
                    assert_eq!(Group::ALL.map(|group| view.bytes_brought(group)), [8; 4]);
                    let sends: Vec<&[u8]> = vec![&[7; 3]; 4];
                    let received = ranks.workers.all_to_all_v(&sends).unwrap();
                    assert_eq!(received, vec![vec![7; 3]; 4]);
                    assert_eq!(view.bytes_brought(Group::Workers), 8 + 9, "what stays here is not sent");
                });
            }
        });
    }
}
