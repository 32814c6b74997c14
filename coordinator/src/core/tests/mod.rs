//! The state machine, case by case.

use std::net::SocketAddr;

use polygram_domain::control::{
    Abort, AbortKind, Assignment, Directive, Envelope, Evaluation, Failure, Heartbeat, Incarnation, MemberId,
    MemberRef, MemberReport, Phase, Reason, Role, RunState, StepMetrics, StopMode,
};
use polygram_domain::run_spec::RecoverySpec;
use polygram_domain::{CheckpointKind, FailureKind, Generation, SCHEMA_VERSION, Step, Topology};
use polygram_proto::control::JoinRequest;

use super::{
    Action, Event, Outcome, Record, Reply, Resume, RollbackId, RollbackResolution, Settings, State, Ticket,
    Time, Timeouts, Uploaded, apply,
};

const W0: MemberRef = MemberRef { role: Role::Worker, index: 0 };
const W1: MemberRef = MemberRef { role: Role::Worker, index: 1 };
const S0: MemberRef = MemberRef { role: Role::Shard, index: 0 };
const S1: MemberRef = MemberRef { role: Role::Shard, index: 1 };
const ALL: [MemberRef; 4] = [W0, W1, S0, S1];

mod admission;
mod checkpoints;
mod counts;
mod damage;
mod failures;
mod points;
mod policy;
mod recovery;
mod stalls;
mod stopping;
mod store;

/// A part of a commit that is in the store.
const WRITTEN: Uploaded = Uploaded::Part(CheckpointKind::Commit);

/// A run of two workers and two shards, driven by hand.
struct Run {
    state: State,
    now: Time,
    tickets: u64,
    /// The newest request of a rollback.
    asked: RollbackId,
}

fn settings() -> Settings {
    Settings {
        run: "case".into(),
        topology: Topology { workers: 2, expert_parallel: 1, shards: 2 },
        total_steps: 60,
        last_step: 60,
        resume: None,
        committed: None,
        attempt: 3,
        timeouts: Timeouts::of(10.0),
        stop_grace_ms: None,
        tables: Vec::new(),
        held_out_sets: vec!["code".into(), "wiki".into()],
        earlier: Default::default(),
        policy: Default::default(),
        recovery: RecoverySpec {
            max_restarts: 0,
            max_fruitless_restarts: 2,
            backoff_seconds: 1.0,
            quarantine_after: 2,
            quarantine_seconds: 60.0,
        },
    }
}

impl Run {
    fn new(settings: Settings) -> Run {
        Run { state: State::new(settings, Time(5_000)), now: Time(5_000), tickets: 0, asked: RollbackId(0) }
    }

    fn running() -> Run {
        let mut run = Run::new(settings());
        run.start();
        run
    }

    fn start(&mut self) {
        for who in ALL {
            self.join(who).unwrap();
        }
        for who in ALL {
            self.attend(who).unwrap();
        }
        for who in ALL {
            self.ready(who);
        }
        assert_eq!(self.state.run_state(), RunState::Running);
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        let actions = apply(&mut self.state, event, self.now);
        for action in &actions {
            if let Action::ResolveRollback { id, .. } = action {
                self.asked = *id;
            }
        }
        actions
    }

    fn call(&mut self, event: impl FnOnce(Ticket) -> Event) -> (Result<Reply, String>, Vec<Action>) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let actions = self.apply(event(ticket));
        let answer = actions.iter().find_map(|action| match action {
            Action::Reply { ticket: to, answer } if *to == ticket => Some(answer.clone()),
            _ => None,
        });
        (answer.expect("every call is answered at once"), actions)
    }

    fn request(&self, member: MemberRef) -> JoinRequest {
        JoinRequest {
            schema_version: SCHEMA_VERSION,
            member,
            incarnation: Incarnation(u64::from(member.index) + 1),
            pid: 40 + member.index,
            host: "box".into(),
            data_address: address(member),
        }
    }

    fn join(&mut self, member: MemberRef) -> Result<Reply, String> {
        let request = self.request(member);
        self.call(|ticket| Event::Join { ticket, request }).0
    }

    fn id(&self, member: MemberRef) -> MemberId {
        self.state.membership.get(member).expect("it has joined").id
    }

    fn attend(&mut self, member: MemberRef) -> Result<Vec<Action>, String> {
        let (member, generation) = (self.id(member), self.state.generation());
        let (answer, actions) = self.call(|ticket| Event::Attend { ticket, member, generation });
        answer.map(|_| actions)
    }

    fn report(&mut self, member: MemberRef, report: MemberReport) -> Vec<Action> {
        let (member, generation) = (self.id(member), self.state.generation());
        self.apply(Event::Report(Envelope { member, generation, report }))
    }

    fn ready(&mut self, member: MemberRef) -> Vec<Action> {
        let assignment = self.state.membership.assignment().expect("assigned");
        self.report(member, MemberReport::Ready { assignment })
    }

    /// Its part, after the metrics that come first.
    fn upload(&mut self, member: MemberRef, step: u64) -> (Result<Reply, String>, Vec<Action>) {
        if member == W0 && step > 0 {
            self.report(W0, MemberReport::Metrics(metrics(step - 1, 1.0)));
        }
        let (member, generation) = (self.id(member), self.state.generation());
        self.call(|ticket| Event::Upload { ticket, member, generation, step: Step(step), uploaded: WRITTEN })
    }

    fn ended(&mut self, member: MemberRef) -> Vec<Action> {
        let member = self.id(member);
        self.apply(Event::StreamEnded { member, message: "connection reset".into() })
    }

    fn fail(&mut self, member: MemberRef, message: &str, suspect: Option<MemberRef>) -> Vec<Action> {
        self.fail_with((member, suspect), message, FailureKind::Program)
    }

    fn fail_with(
        &mut self,
        (member, suspect): (MemberRef, Option<MemberRef>),
        message: &str,
        kind: FailureKind,
    ) -> Vec<Action> {
        let failure = Failure {
            message: message.into(),
            step: Step(7),
            phase: Phase::Computing,
            suspect,
            roll_back: false,
            damaged: None,
            kind,
        };
        self.report(member, MemberReport::Failed(failure))
    }

    /// Time passes in heartbeats: everybody but `silent` says that it lives.
    fn pass(&mut self, millis: u64, silent: &[MemberRef]) -> Vec<Action> {
        let mut actions = Vec::new();
        let until = self.now.after(millis);
        while self.now < until {
            self.now = self.now.after(500).min(until);
            for who in ALL {
                if !silent.contains(&who) && self.state.membership.get(who).is_some() {
                    let heartbeat = Heartbeat {
                        step: Step(0),
                        phase: Phase::Computing,
                        restored_bytes: 0,
                        store_wait: None,
                    };
                    actions.extend(self.report(who, MemberReport::Heartbeat(heartbeat)));
                }
            }
            actions.extend(self.apply(Event::Tick));
        }
        actions
    }

    fn commit(&mut self, step: u64) -> Vec<Action> {
        for who in ALL {
            self.upload(who, step).0.unwrap();
        }
        self.apply(Event::CommitDone { step: Step(step), result: Ok(()) })
    }

    /// The store answers the newest request of a rollback.
    fn resolved(&mut self, result: Result<RollbackResolution, String>) -> Vec<Action> {
        let id = self.asked;
        self.apply(Event::RollbackResolved { id, result })
    }

    fn finish(&mut self, step: u64) -> Vec<Action> {
        self.report(W0, MemberReport::Finished { step: Step(step) });
        self.report(W1, MemberReport::Finished { step: Step(step) })
    }

    fn message(&self) -> &str {
        self.state.message()
    }

    fn culprit(&self) -> Option<MemberRef> {
        self.state.status(self.now).culprit.map(|c| c.member)
    }
}

fn address(member: MemberRef) -> SocketAddr {
    let port = 1000 + 100 * u16::from(member.role == Role::Shard) + member.index as u16;
    ([127, 0, 0, 1], port).into()
}

fn directives(actions: &[Action]) -> Vec<&Directive> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Direct { directive, .. } => Some(directive),
            _ => None,
        })
        .collect()
}

fn end(actions: &[Action]) -> Option<Outcome> {
    actions.iter().find_map(|action| match action {
        Action::End(outcome) => Some(*outcome),
        _ => None,
    })
}

fn metrics(step: u64, loss: f64) -> StepMetrics {
    StepMetrics {
        step: Step(step),
        loss,
        grad_norm: 1.0,
        lr: 1e-3,
        tokens: 256,
        seconds: 0.5,
        data_wait_seconds: 0.0,
        embedding_wait_seconds: 0.0,
        resident_bytes: 1,
        ..StepMetrics::default()
    }
}
