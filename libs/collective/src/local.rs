//! Ranks that are threads of one process, with mailboxes instead of sockets.
//!
//! For tests and for running several ranks without a network. Faults can be ordered at (rank, sequence), so that
//! what a group does when a rank fails, dawdles, hangs or dies is tested without processes and without luck.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polygram_domain::Rank;

use crate::abort::AbortTarget;
use crate::call::Call;
use crate::collective::Collective;
use crate::error::JoinError;
use crate::group::{Group, Options};
use crate::link::{
    Broken, Cause, Incoming, Link, Notice, Outgoing, Round, Wanted, abort_notice, check_message,
};
use crate::split::{self, Split};

/// A rank of a group of threads.
pub type Local = Group<LocalLink>;

/// What an injected fault does to its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails, as it would by an error of its own; the peers are told.
    Fail,
    /// The rank comes so much later.
    Delay(Duration),
    /// The rank never enters, as a stuck process: it returns when it is aborted or a peer has given up,
    /// and tells nobody.
    Hang,
    /// The rank is gone, as after `kill -9`: it tells nobody.
    Vanish,
}

/// A fault and where it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InjectedFault {
    /// The rank it strikes.
    pub rank: Rank,
    /// The call it strikes, counted from 0.
    pub sequence: u64,
    /// What it does.
    pub fault: Fault,
}

impl Group<LocalLink> {
    /// A group of `world_size` ranks, by rank: give one to each thread.
    pub fn ranks(world_size: u32, options: &Options) -> Vec<Local> {
        Local::ranks_with_faults(world_size, options, &[])
    }

    /// [`Local::ranks`] in which `faults` happen.
    pub fn ranks_with_faults(world_size: u32, options: &Options, faults: &[InjectedFault]) -> Vec<Local> {
        let post = Post::of(world_size);
        let seat = |rank| {
            let faults = faults.iter().copied().filter(|fault| fault.rank == rank).collect();
            let patience = options.failure_detection;
            let link = LocalLink { rank, post: Arc::clone(&post), faults, patience, vanished: false };
            Group::over(link, options.clone())
        };
        (0..world_size).map(Rank).map(seat).collect()
    }

    /// [`Split::split`] into a group of this kind. No faults happen in it. A rank that is lost while groups are formed
    /// is missed in the first call of its group.
    ///
    /// # Errors
    /// Those of [`Split::split`].
    pub fn split(&mut self, members: &[Rank], options: Options) -> Result<Local, JoinError> {
        let call = self.calls();
        split::agree(self, members, &options, None)?;
        let link = self.link().split(call, members, options.failure_detection);
        Ok(Group::of_members(self.seats().pick(members), link, options))
    }
}

impl Split for Local {
    fn split(&mut self, members: &[Rank], options: Options) -> Result<Box<dyn Collective>, JoinError> {
        Ok(Box::new(Local::split(self, members, options)?))
    }
}

enum Letter {
    Message { call: Call, number: u16, payload: Vec<u8> },
    Notice(Notice),
}

struct Board {
    /// Letters in order, at index sender · W + receiver.
    mail: Vec<VecDeque<Letter>>,
    /// Ranks that will send nothing more.
    gone: Vec<bool>,
    /// Groups within this one whose ranks are just sitting down, by the call that agreed on them and their first member:
    /// their mailboxes, and how many sit.
    forming: BTreeMap<(u64, Option<Rank>), (Arc<Post>, usize)>,
}

/// The mailboxes of all ranks.
struct Post {
    world_size: u32,
    board: Mutex<Board>,
    changed: Condvar,
}

impl Post {
    fn of(world_size: u32) -> Arc<Post> {
        let ranks = world_size as usize;
        let mail = (0..ranks * ranks).map(|_| VecDeque::new()).collect();
        let board = Mutex::new(Board { mail, gone: vec![false; ranks], forming: BTreeMap::new() });
        Arc::new(Post { world_size, board, changed: Condvar::new() })
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, board: MutexGuard<'a, Board>, time: Duration) -> MutexGuard<'a, Board> {
        self.changed.wait_timeout(board, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn slot(&self, from: Rank, to: Rank) -> usize {
        from.index() * self.world_size as usize + to.index()
    }

    fn peers(&self, rank: Rank) -> impl Iterator<Item = Rank> + use<> {
        (0..self.world_size).map(Rank).filter(move |peer| *peer != rank)
    }

    fn leave(&self, rank: Rank, notice: Option<&Notice>) {
        let mut board = self.board();
        if let Some(notice) = notice {
            for peer in self.peers(rank) {
                board.mail[self.slot(rank, peer)].push_back(Letter::Notice(notice.clone()));
            }
        }
        board.gone[rank.index()] = true;
        self.changed.notify_all();
    }
}

/// The mailboxes as seen by one rank.
pub struct LocalLink {
    rank: Rank,
    post: Arc<Post>,
    faults: Vec<InjectedFault>,
    patience: Duration,
    vanished: bool,
}

impl LocalLink {
    /// This rank's seat in the group of `members`, on which all have agreed in `call`.
    fn split(&self, call: u64, members: &[Rank], patience: Duration) -> LocalLink {
        let key = (call, members.first().copied());
        let mut board = self.post.board();
        let fresh = || (Post::of(members.len() as u32), 0);
        let (post, seated) = board.forming.entry(key).or_insert_with(fresh);
        *seated += 1;
        let (post, complete) = (Arc::clone(post), *seated == members.len());
        if complete {
            board.forming.remove(&key);
        }
        let lower = members.iter().filter(|member| **member < self.rank);
        let rank = Rank(lower.count() as u32);
        LocalLink { rank, post, faults: Vec::new(), patience, vanished: false }
    }

    /// Waits until `done`, an abort, or the end of `time`.
    fn wait_until(
        &self,
        round: &Round<'_>,
        time: Duration,
        done: impl Fn(&Board) -> bool,
    ) -> Result<(), Broken> {
        let begun = Instant::now();
        let mut board = self.post.board();
        loop {
            if round.abort.is_aborted() {
                return Err(Broken { cause: Cause::Aborted, waiting: Vec::new() });
            }
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() || done(&board) {
                return Ok(());
            }
            board = self.post.wait(board, left);
        }
    }

    /// The letter at the head of a peer's mail, when it decides something for this exchange.
    fn look(
        &self,
        board: &mut Board,
        round: &Round<'_>,
        peer: Rank,
        wanted: Wanted,
    ) -> Result<Option<Vec<u8>>, Cause> {
        let mail = &mut board.mail[self.post.slot(peer, self.rank)];
        match mail.pop_front() {
            None if wanted == Wanted::Now && board.gone[peer.index()] => {
                Err(Cause::Lost { peer, detail: "it has left the group".to_string() })
            }
            None => Ok(None),
            Some(Letter::Notice(notice)) => Err(Cause::Told { sender: peer, notice }),
            Some(Letter::Message { call, number, payload }) => {
                round.progress.heard(peer, call);
                check_message(round, peer, (call, number), wanted)?;
                if wanted == Wanted::Now {
                    return Ok(Some(payload));
                }
                mail.push_front(Letter::Message { call, number, payload });
                Ok(None)
            }
        }
    }

    fn receive(
        &self,
        round: &Round<'_>,
        receives: &mut [Incoming<'_>],
        done: &mut [bool],
    ) -> Result<(), Cause> {
        let mut moved = Instant::now();
        let mut board = self.post.board();
        loop {
            if round.abort.is_aborted() {
                return Err(Cause::Aborted);
            }
            let mut released = false;
            for peer in self.post.peers(self.rank) {
                let due = receives.iter().position(|receive| receive.from == peer).filter(|at| !done[*at]);
                let wanted = if due.is_some() { Wanted::Now } else { Wanted::Later };
                let payload = self.look(&mut board, round, peer, wanted)?;
                if let (Some(at), Some(payload)) = (due, payload) {
                    drop(board);
                    let sink = &mut receives[at].sink;
                    let begun = sink.begin(payload.len() as u64);
                    begun.map_err(|detail| Cause::Corrupt { peer, detail })?;
                    sink.absorb(payload.as_slice().into());
                    done[at] = true;
                    moved = Instant::now();
                    board = self.post.board();
                    released = true;
                }
            }
            if done.iter().all(|done| *done) {
                return Ok(());
            }
            // Letters may have come meanwhile from ranks that were looked at before, and nobody will ring for them again.
            if released {
                continue;
            }
            let left = self.patience.saturating_sub(moved.elapsed());
            if left.is_zero() {
                return Err(Cause::Silent);
            }
            board = self.post.wait(board, left);
        }
    }
}

impl Link for LocalLink {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn world_size(&self) -> u32 {
        self.post.world_size
    }

    fn begin(&mut self, round: &Round<'_>) -> Result<(), Broken> {
        let Some(fault) = self.faults.iter().find(|fault| fault.sequence == round.call.sequence) else {
            return Ok(());
        };
        match fault.fault {
            Fault::Fail => {}
            Fault::Delay(time) => return self.wait_until(round, time, |_| false),
            Fault::Hang => {
                let given_up = |board: &Board| board.gone.contains(&true);
                self.wait_until(round, 10 * self.patience, given_up)?;
                self.vanished = true;
            }
            Fault::Vanish => {
                self.vanished = true;
                self.post.leave(self.rank, None);
            }
        }
        Err(Broken { cause: Cause::Injected, waiting: Vec::new() })
    }

    fn exchange(
        &mut self,
        round: &Round<'_>,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), Broken> {
        for send in sends {
            let payload = send.parts.concat();
            let letter = Letter::Message { call: round.call, number: round.number, payload };
            self.post.board().mail[self.post.slot(self.rank, send.to)].push_back(letter);
        }
        self.post.changed.notify_all();
        let mut done = vec![false; receives.len()];
        self.receive(round, receives, &mut done).map_err(|cause| {
            let outstanding = receives.iter().zip(&done).filter(|(_, done)| !**done);
            Broken { cause, waiting: outstanding.map(|(receive, _)| receive.from).collect() }
        })
    }

    fn announce(&mut self, notice: &Notice) {
        if !self.vanished {
            self.post.leave(self.rank, Some(notice));
        }
    }

    fn gather_notices(&mut self, grace: Duration) -> Vec<(Rank, Notice)> {
        let begun = Instant::now();
        let mut notices: Vec<(Rank, Notice)> = Vec::new();
        let mut board = self.post.board();
        loop {
            let mut open = false;
            for peer in self.post.peers(self.rank) {
                for letter in board.mail[self.post.slot(peer, self.rank)].drain(..) {
                    if let Letter::Notice(notice) = letter {
                        notices.push((peer, notice));
                    }
                }
                open |= !board.gone[peer.index()];
            }
            let left = grace.saturating_sub(begun.elapsed());
            if !open || left.is_zero() {
                return notices;
            }
            board = self.post.wait(board, left);
        }
    }

    fn abort_target(&self) -> Arc<dyn AbortTarget> {
        Arc::new(LocalAbort { rank: self.rank, post: Arc::clone(&self.post) })
    }
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        self.post.leave(self.rank, None);
    }
}

struct LocalAbort {
    rank: Rank,
    post: Arc<Post>,
}

impl AbortTarget for LocalAbort {
    fn interrupt(&self) {
        // With the board in hand no rank can be between looking for an abort and beginning to wait.
        let _board = self.post.board();
        self.post.changed.notify_all();
    }

    fn announce(&self, reason: &str) {
        self.post.leave(self.rank, Some(&abort_notice(self.rank, reason)));
    }
}
