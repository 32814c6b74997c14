//! A coordinator in this process and scripted members, which write checkpoints of zeros.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)] // every test file uses its own part

pub mod scripted;

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use polygram_checkpoint::{Cursor, NamedTensor, Part, PartRef, RunStore, TableShape, expected_tensors};
use polygram_coordinator::{Claim, Ended, OpeningError, Origin, ServeError, open, serve};
use polygram_domain::control::{Assignment, Directive, MemberRef, MemberReport, Phase, Role, StepMetrics};
use polygram_domain::tables::buckets_of;
use polygram_domain::{CheckpointKind, RunFile, RunSpec, ShardIndex, Step};
use polygram_member::MemberOptions;
use polygram_proto::control::{Announcement, JoinOptions, Recall, Token, Upload};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use scripted::{Member, PATIENCE, ScriptedError};

pub const WORKER: MemberRef = MemberRef { role: Role::Worker, index: 0 };

pub fn shard(index: u32) -> MemberRef {
    MemberRef { role: Role::Shard, index }
}

/// `configs/tiny.toml` with `overrides`: one worker and two shards.
pub fn tiny(overrides: &[&str]) -> String {
    let mut all = ["training.steps=4", "training.warmup_steps=0", "run.failure_detection_seconds=5.0"]
        .map(str::to_owned)
        .to_vec();
    // Tests that recover say so.
    all.push("recovery.max_restarts=0".to_owned());
    all.extend(overrides.iter().map(|&o| o.to_owned()));
    let file = RunFile::parse(include_str!("../../../configs/tiny.toml"), "tiny", &all).unwrap();
    file.to_toml().unwrap()
}

pub fn token() -> Token {
    Token::new("a-token-for-tests-only").unwrap()
}

/// A coordinator at work.
pub struct Lead {
    pub announcement: Announcement,
    pub interrupts: mpsc::Sender<String>,
    pub ended: JoinHandle<Result<Ended, ServeError>>,
    pub spec: RunSpec,
    pub root: String,
}

impl Lead {
    pub async fn start(root: &Path, config_toml: String) -> Result<Lead, OpeningError> {
        Lead::start_at(([127, 0, 0, 1], 0).into(), root, config_toml).await
    }

    /// The same, at a known address.
    pub async fn start_at(
        address: SocketAddr,
        root: &Path,
        config_toml: String,
    ) -> Result<Lead, OpeningError> {
        let listener = TcpListener::bind(address).await.unwrap();
        let root = root.display().to_string();
        let origin =
            Origin { config_toml, config_name: "test".into(), root: root.clone(), claim: Claim::IfVacant };
        let opened = open(origin, listener.local_addr().unwrap()).await?;
        let announcement = opened.announcement();
        let spec = opened.spec().clone();
        let (interrupts, receiver) = mpsc::channel(4);
        let ended = tokio::spawn(serve(opened, listener, token(), receiver));
        Ok(Lead { announcement, interrupts, ended, spec, root })
    }

    pub fn address(&self) -> String {
        self.announcement.address.to_string()
    }

    pub fn options(&self, member: MemberRef) -> JoinOptions {
        let data_address = ([127, 0, 0, 1], 4000 + member.index as u16).into();
        JoinOptions::new(self.address(), token(), member, data_address)
    }

    pub async fn join(&self, member: MemberRef) -> Result<Member, ScriptedError> {
        let (coordinator, recall) = (self.address(), Recall::default());
        Member::join(MemberOptions { coordinator, member, token: token(), recall }).await
    }

    /// One worker and two shards, joined.
    pub async fn members(&self) -> Vec<Member> {
        let mut members = Vec::new();
        for who in [WORKER, shard(0), shard(1)] {
            members.push(self.join(who).await.unwrap());
        }
        members
    }

    pub fn store(&self) -> RunStore {
        RunStore::open(&self.root, &self.spec.name).unwrap()
    }

    pub async fn ended(self) -> Ended {
        tokio::time::timeout(PATIENCE, self.ended).await.expect("the coordinator ends").unwrap().unwrap()
    }
}

impl Member {
    /// The next directive that is no commit's.
    pub async fn beyond_commits(&mut self) -> Directive {
        loop {
            match self.directive().await {
                Directive::Committed { .. } => {}
                other => return other,
            }
        }
    }

    /// Writes this member's part of a checkpoint of zeros.
    pub async fn write_part(&self, lead: &Lead, step: u64) -> Part {
        let (store, spec) = (lead.store(), &lead.spec);
        let name = format!("{}-{}", self.who.role, self.who.index);
        let step = Step(step);
        let (objects, cursor) = match self.who.role {
            Role::Worker => {
                let zeros: Vec<NamedTensor> = expected_tensors(spec)
                    .into_iter()
                    .map(|t| {
                        let elements = t.shape.iter().product::<u64>() as usize;
                        NamedTensor::whole(t.name, &t.shape, vec![0.0; elements])
                    })
                    .collect();
                let (samples, tokens) = (step.0 * spec.samples_per_step(), step.0 * spec.tokens_per_step());
                (store.write_tensors(step, &name, zeros).await.unwrap(), Some(Cursor { samples, tokens }))
            }
            Role::Shard => {
                let buckets = buckets_of(ShardIndex(self.who.index), spec.topology.shards);
                let mut objects = Vec::new();
                for table in spec.tables().iter() {
                    let state = spec.embedding.state_values(table.width as usize);
                    let shape = TableShape::of(table, state);
                    let written =
                        store.write_rows(PartRef { step, member: &name }, shape, buckets.clone(), []).await;
                    objects.extend(written.unwrap());
                }
                (objects, None)
            }
        };
        Part { member: name, step, objects, cursor, table_decay: None }
    }

    /// Its part, after the metrics of its last step; where those were told before, the first word counts.
    pub async fn upload(&self, lead: &Lead, step: u64) {
        if self.who == WORKER && step > 0 {
            self.metrics(step - 1, 1.0).await;
        }
        let part = self.write_part(lead, step).await;
        let upload = of_commit(serde_json::to_string(&part).unwrap());
        self.reporter.report_upload(Step(step), upload).await.unwrap();
    }

    pub async fn metrics(&self, step: u64, loss: f64) {
        self.reporter.progress().set(Step(step), Phase::Computing);
        let metrics = StepMetrics {
            step: Step(step),
            loss,
            grad_norm: 0.5 + step as f64,
            lr: 1e-3,
            tokens: 256,
            seconds: 0.01,
            data_wait_seconds: 0.0,
            embedding_wait_seconds: 0.0,
            resident_bytes: 1 << 20,
            ..StepMetrics::default()
        };
        self.reporter.report(MemberReport::Metrics(metrics)).await.unwrap();
    }

    pub async fn finish(&self, step: u64) {
        self.reporter.report(MemberReport::Finished { step: Step(step) }).await.unwrap();
    }
}

/// Brings everybody to the start and returns the table they were given.
pub async fn started(members: &mut [Member]) -> Assignment {
    let mut table = None;
    for member in members.iter_mut() {
        let assignment = member.assigned().await;
        assert_eq!(*table.get_or_insert(assignment.clone()), assignment);
    }
    for member in members.iter_mut() {
        assert_eq!(member.directive().await, Directive::Start);
    }
    table.unwrap()
}

/// Everybody is told to leave, and leaves.
pub async fn leave(members: Vec<Member>) {
    for mut member in members {
        assert_eq!(member.beyond_commits().await, Directive::Exit);
        member.left().await.unwrap();
    }
}

/// A whole run up to `step`, by everybody.
pub async fn train_to(lead: Lead, from: u64, step: u64) -> Ended {
    let mut members = lead.members().await;
    assert_eq!(started(&mut members).await.resume_step, Step(from));
    complete(lead, members, from..step, |at| 4.0 - at as f64).await
}

/// Members that were told to start do these steps, each with its loss, write the checkpoint after them and leave.
pub async fn complete(
    lead: Lead,
    members: Vec<Member>,
    steps: Range<u64>,
    loss: impl Fn(u64) -> f64,
) -> Ended {
    for at in steps.clone() {
        members[0].metrics(at, loss(at)).await;
    }
    for member in &members {
        member.upload(&lead, steps.end).await;
    }
    members[0].finish(steps.end).await;
    leave(members).await;
    lead.ended().await
}

/// The report of a part of a commit.
pub fn of_commit(json: String) -> Upload {
    Upload::Part { kind: CheckpointKind::Commit, json }
}
