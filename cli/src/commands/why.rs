//! `polygram why`: the chain of causes of every loss of a run, from the store alone.

use polygram_checkpoint::{AttemptLog, CulpritRecord, FailureLine, LossRecord, RollbackCause};
use polygram_domain::control::RunStatus;
use polygram_domain::{OutputFormat, Step, StepOutcome};
use serde::Serialize;

use crate::args::RunArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units;

/// A loss and what followed.
#[derive(Debug, Serialize)]
struct Loss {
    attempt: u64,
    #[serde(flatten)]
    lost: LossRecord,
    /// The generation that it ended, as people write it.
    ended_generation: String,
    consequences: Vec<String>,
    /// State version that the run was rolled back to; `None` where it was not.
    resumed_from: Option<u64>,
    /// Steps that were done again.
    steps_lost: Option<u64>,
    /// From the loss to the next start of training.
    seconds_to_start: Option<f64>,
    /// From the loss to the moment at which the run was as far as before.
    seconds_lost: Option<f64>,
}

/// One attempt, from a coordinator's first word to its last.
#[derive(Debug, Serialize)]
struct Attempt {
    attempt: u64,
    began_unix_ms: u64,
    /// `None` where the beginning of the attempt is not in the store any more.
    coordinator_pid: Option<u32>,
    resumed_from: Option<u64>,
    losses: Vec<Loss>,
    /// Skipped steps, rollbacks from spikes and quarantined checkpoints, in order: when, and what happened.
    policy: Vec<(u64, String)>,
    /// State and message; `None` where the coordinator ended without a word, or leads still.
    ended: Option<(String, String)>,
}

pub(crate) fn run(args: &RunArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(args)?;
    let (logs, status) = block_on(async {
        let run = stored::open(&place).await?;
        let logs = run.store.read_failure_log().await.map_err(|error| stored::refused(&place.root, error))?;
        // The log tells enough without the status: one that cannot be read is `polygram status`'s to name.
        Ok::<_, Failure>((logs, run.store.read_status::<RunStatus>().await.ok().flatten()))
    })?;
    let mut attempts: Vec<Attempt> = logs.into_iter().filter_map(attempt).collect();
    if let (Some(last), Some(status)) = (attempts.last_mut(), status) {
        last.ends_as(&status);
    }
    match printer.format() {
        OutputFormat::Jsonl => printer.json_lines(&attempts)?,
        OutputFormat::Json => printer.result(&attempts, String::new)?,
        OutputFormat::Human => printer.text(&human(place.name.as_str(), &attempts))?,
    }
    Ok(ExitStatus::Success)
}

fn attempt(log: AttemptLog) -> Option<Attempt> {
    let mut lines = log.lines.into_iter().peekable();
    let (began_unix_ms, opened) = match lines.peek()? {
        FailureLine::Opened { at_unix_ms, pid, resumed_from } => (*at_unix_ms, Some((*pid, resumed_from.0))),
        line => (line.at_unix_ms(), None),
    };
    let mut attempt = Attempt {
        attempt: log.attempt,
        began_unix_ms,
        coordinator_pid: opened.map(|(pid, _)| pid),
        resumed_from: opened.map(|(_, step)| step),
        losses: Vec::new(),
        policy: Vec::new(),
        ended: None,
    };
    let mut follows = Follows::Loss;
    for line in lines {
        follows = attempt.take(line, follows);
    }
    Some(attempt)
}

/// What the next start of training follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    /// The last loss.
    Loss,
    /// Something else: a spike, or a checkpoint that was found damaged.
    Other,
    /// A spike if a rollback comes next, else the last loss: lines of earlier builds do not say which.
    Unsaid,
}

impl Attempt {
    /// An end that the coordinator could not record, since the launcher killed it, is in the run's last status.
    fn ends_as(&mut self, status: &RunStatus) {
        if self.ended.is_none() && status.state.is_over() && u64::from(status.attempt) == self.attempt {
            self.ended = Some((status.state.to_string(), status.message.clone()));
        }
    }

    /// Takes the next line.
    fn take(&mut self, line: FailureLine, follows: Follows) -> Follows {
        let at_unix_ms = line.at_unix_ms();
        match line {
            FailureLine::Lost(lost) => {
                self.losses.push(Loss {
                    attempt: self.attempt,
                    ended_generation: lost.generation.to_string(),
                    lost,
                    consequences: Vec::new(),
                    resumed_from: None,
                    steps_lost: None,
                    seconds_to_start: None,
                    seconds_lost: None,
                });
                return Follows::Loss;
            }
            FailureLine::Consequence { sentence, .. } => {
                // One of what no member did is told by the attempt's end.
                if let Some(loss) = self.losses.last_mut() {
                    loss.consequences.push(sentence);
                }
            }
            FailureLine::StepSkipped { step, outcome, loss, grad_norm, .. } => {
                self.policy.push((at_unix_ms, skipped(step, outcome, (loss, grad_norm))));
            }
            FailureLine::RollbackRequested { member, cause, .. } => {
                self.policy.push((at_unix_ms, format!("{member}: {cause}; rolling back")));
                return Follows::Other;
            }
            FailureLine::Policy { sentence, .. } => {
                self.policy.push((at_unix_ms, sentence));
                return if follows == Follows::Loss { Follows::Unsaid } else { follows };
            }
            FailureLine::CheckpointQuarantined { step, reason, to, .. } => {
                let sentence = format!(
                    "the checkpoint of step {step} is damaged and was set aside: {reason}; going on from step {to}"
                );
                self.policy.push((at_unix_ms, sentence));
                let is_recovered = self.losses.last().is_none_or(|loss| loss.seconds_to_start.is_some());
                return if is_recovered { Follows::Other } else { follows };
            }
            FailureLine::RolledBack { cause: RollbackCause::Spike { left_out }, to, .. } => {
                self.policy.push((at_unix_ms, rolled_back(to, &left_out)));
                return Follows::Other;
            }
            FailureLine::RolledBack { cause: RollbackCause::MemberLost, to, .. } => {
                self.resumed(to, Follows::Loss);
                return Follows::Loss;
            }
            FailureLine::WentBack { .. } if follows == Follows::Unsaid => return Follows::Other,
            FailureLine::RolledBack { cause: RollbackCause::DamagedCheckpoint, to, .. }
            | FailureLine::WentBack { step: to, .. } => self.resumed(to, follows),
            FailureLine::Started { .. } => {
                if let (Follows::Loss | Follows::Unsaid, Some(loss)) = (follows, self.losses.last_mut()) {
                    loss.seconds_to_start = Some(loss.seconds_until(at_unix_ms));
                }
            }
            FailureLine::CaughtUp { .. } => {
                if let (Follows::Loss | Follows::Unsaid, Some(loss)) = (follows, self.losses.last_mut()) {
                    loss.seconds_lost = Some(loss.seconds_until(at_unix_ms));
                }
            }
            FailureLine::Ended { state, message, .. } => self.ended = Some((state, message)),
            FailureLine::Opened { .. } => {}
        }
        follows
    }

    fn resumed(&mut self, to: Step, follows: Follows) {
        if let (Follows::Loss, Some(loss)) = (follows, self.losses.last_mut()) {
            loss.resumed_from = Some(to.0);
            loss.steps_lost = Some(loss.lost.reached.0.saturating_sub(to.0));
        }
    }
}

impl Loss {
    fn seconds_until(&self, at_unix_ms: u64) -> f64 {
        at_unix_ms.saturating_sub(self.lost.at_unix_ms) as f64 / 1000.0
    }
}

fn skipped(step: Step, outcome: StepOutcome, (loss, grad_norm): (f64, f64)) -> String {
    let why = outcome.reason().map_or(String::new(), |why| format!(": {why}"));
    format!("step {step} was skipped{why} (loss {loss}, gradient norm {grad_norm})")
}

fn rolled_back(to: Step, left_out: &[[u64; 2]]) -> String {
    let ranges: Vec<String> = left_out.iter().map(|[start, end]| format!("{start}..{end}")).collect();
    let to = if to == Step(0) { "the beginning".to_owned() } else { format!("step {to}") };
    format!("rolled back to {to}; samples {} are left out", ranges.join(", "))
}

fn human(run: &str, attempts: &[Attempt]) -> String {
    let losses = attempts.iter().map(|attempt| attempt.losses.len()).sum::<usize>();
    let attempts_word = units::counted(attempts.len() as u64, "attempt");
    let losses_word = units::counted(losses as u64, "loss");
    let mut text = format!("run {run}: {losses_word} in {attempts_word}\n");
    for (at, attempt) in attempts.iter().enumerate() {
        let Attempt { attempt: number, began_unix_ms, coordinator_pid, resumed_from, .. } = attempt;
        let when = moment(*began_unix_ms);
        text.push_str(&match coordinator_pid.zip(*resumed_from) {
            Some((pid, from)) => {
                format!("\nattempt {number}: coordinator pid {pid}, {when}, from step {from}\n")
            }
            None => format!("\nattempt {number}: its beginning is not in the store any more; from {when}\n"),
        });
        attempt.losses.iter().for_each(|loss| text.push_str(&told(loss)));
        for (at_unix_ms, sentence) in &attempt.policy {
            text.push_str(&format!("  {}  {sentence}\n", moment(*at_unix_ms)));
        }
        match &attempt.ended {
            Some((state, message)) => text.push_str(&format!("  {state}: {message}\n")),
            None if at + 1 < attempts.len() => {
                text.push_str("  no end is recorded: its coordinator was killed, or lost with its machine\n");
            }
            None => text.push_str(
                "  no end is recorded: it goes on, or its coordinator was killed (polygram status says which)\n",
            ),
        }
    }
    text
}

fn told(loss: &Loss) -> String {
    let LossRecord { at_unix_ms, reason, state, culprit, reached, gives_up, .. } = &loss.lost;
    let CulpritRecord { member, pid, host, phase, step, message } = culprit;
    let host = if host.is_empty() { String::new() } else { format!(" on {host}") };
    let mut text = format!(
        "  {}  {member} (pid {pid}{host}) ended generation {} at step {step} while {phase} ({reason}, run {state}): \
         {message}\n",
        moment(*at_unix_ms),
        loss.ended_generation
    );
    for consequence in &loss.consequences {
        text.push_str(&format!("    then {consequence}\n"));
    }
    match (loss.resumed_from, gives_up) {
        (Some(from), _) => {
            let steps = units::counted(loss.steps_lost.unwrap_or(0), "step");
            text.push_str(&format!(
                "    the run had reached step {reached} and went back to step {from}: {steps} lost"
            ));
            if let Some(seconds) = loss.seconds_to_start {
                text.push_str(&format!("; training again after {seconds:.2} s"));
            }
            if let Some(seconds) = loss.seconds_lost {
                text.push_str(&format!(", as far as before after {}", units::duration(seconds)));
            }
            text.push('\n');
        }
        (None, Some(why)) => text.push_str(&format!("    the run did not go back: {why}\n")),
        (None, None) => {
            text.push_str(&format!("    the run had reached step {reached}; nothing was done again\n"))
        }
    }
    text
}

/// `2026-11-22 10:27:30.544 UTC`.
fn moment(unix_ms: u64) -> String {
    format!("{}.{:03} UTC", units::moment(unix_ms), unix_ms % 1000)
}

#[cfg(test)]
mod tests {
    use polygram_domain::{Generation, Step};

    use super::*;

    #[test]
    fn moments_are_dates() {
        assert_eq!(moment(0), "1970-01-01 00:00:00.000 UTC");
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00:00.000 UTC");
        assert_eq!(moment(1_795_343_250_544), "2026-11-22 10:27:30.544 UTC");
    }

    #[test]
    fn the_chain_of_causes_is_told_in_order() {
        let generation = Generation::of_attempt(1);
        let lost = LossRecord {
            at_unix_ms: 10_000,
            generation,
            reason: "member_lost".into(),
            state: "running".into(),
            culprit: CulpritRecord {
                member: "worker 1".into(),
                pid: 77,
                host: "box".into(),
                phase: "reducing".into(),
                step: Step(26),
                message: "its connection broke".into(),
            },
            reached: Step(27),
            gives_up: None,
        };
        let next = generation.next();
        let lines = vec![
            FailureLine::Opened { at_unix_ms: 5_000, pid: 9, resumed_from: Step(0) },
            FailureLine::Lost(lost),
            FailureLine::Consequence { at_unix_ms: 10_001, sentence: "worker 0: rank 1 is gone".into() },
            FailureLine::CheckpointQuarantined {
                at_unix_ms: 10_200,
                step: Step(25),
                reason: "ckpt/data/ab/x.rows is damaged".into(),
                to: Step(20),
            },
            FailureLine::RolledBack {
                at_unix_ms: 10_300,
                generation: next,
                cause: RollbackCause::DamagedCheckpoint,
                to: Step(20),
            },
            FailureLine::Started { at_unix_ms: 10_500, generation: next },
            FailureLine::CaughtUp { at_unix_ms: 12_000, generation: next, step: Step(27) },
            FailureLine::Ended { at_unix_ms: 20_000, state: "completed".into(), message: "all done".into() },
        ];
        let attempts: Vec<Attempt> = attempt(AttemptLog { attempt: 1, lines }).into_iter().collect();
        let text = human("tiny", &attempts);
        for words in [
            "1 loss in 1 attempt",
            "worker 1 (pid 77 on box) ended generation 1.0 at step 26 while reducing",
            "then worker 0: rank 1 is gone",
            "reached step 27 and went back to step 20: 7 steps lost; training again after 0.50 s, as far as before",
            "the checkpoint of step 25 is damaged and was set aside: ckpt/data/ab/x.rows is damaged; going on from step 20",
            "completed: all done",
        ] {
            assert!(text.contains(words), "{words:?} is not in:\n{text}");
        }
        let json = serde_json::to_value(&attempts).unwrap();
        // A chapter whose beginning is gone is told as far as it is there.
        let rest =
            vec![FailureLine::Ended { at_unix_ms: 20_000, state: "stopped".into(), message: "asked".into() }];
        let cut: Vec<Attempt> = attempt(AttemptLog { attempt: 4, lines: rest }).into_iter().collect();
        let text = human("tiny", &cut);
        assert!(
            text.contains("attempt 4: its beginning is not in the store") && text.contains("stopped: asked")
        );
        assert_eq!(json[0]["losses"][0]["steps_lost"], 7);
    }

    /// What follows a spike or a damaged checkpoint is not counted to the loss before it, whatever the sentences say.
    #[test]
    fn rollbacks_of_other_causes_are_not_of_the_loss_before() {
        let (generation, member) = (Generation::of_attempt(1), "worker 0".to_owned());
        let lost = |at_unix_ms| {
            FailureLine::Lost(LossRecord {
                at_unix_ms,
                generation,
                reason: "member_lost".into(),
                state: "running".into(),
                culprit: CulpritRecord {
                    member: "worker 1".into(),
                    pid: 77,
                    host: String::new(),
                    phase: "reducing".into(),
                    step: Step(26),
                    message: "its connection broke".into(),
                },
                reached: Step(27),
                gives_up: None,
            })
        };
        let rolled =
            |at_unix_ms, cause, to| FailureLine::RolledBack { at_unix_ms, generation, cause, to: Step(to) };
        let started = |at_unix_ms| FailureLine::Started { at_unix_ms, generation };
        let spike = RollbackCause::Spike { left_out: vec![[96, 104], [120, 128]] };
        let request = FailureLine::RollbackRequested {
            at_unix_ms: 20_000,
            generation,
            step: Step(30),
            member,
            cause: "loss 9 is a spike".into(),
        };
        let quarantined = FailureLine::CheckpointQuarantined {
            at_unix_ms: 20_000,
            step: Step(25),
            reason: "x".into(),
            to: Step(5),
        };
        for (what, second) in [
            (vec![request], rolled(20_100, spike, 10)),
            (vec![quarantined], rolled(20_100, RollbackCause::DamagedCheckpoint, 5)),
        ] {
            let mut lines =
                vec![lost(10_000), rolled(10_100, RollbackCause::MemberLost, 20), started(10_500)];
            lines.extend(what);
            lines.extend([second, started(29_000)]);
            let attempt = attempt(AttemptLog { attempt: 1, lines }).unwrap();
            let loss = &attempt.losses[0];
            assert_eq!(
                (loss.resumed_from, loss.seconds_to_start),
                (Some(20), Some(0.5)),
                "{:?}",
                attempt.policy
            );
        }
        let skip = skipped(Step(4), StepOutcome::SkippedLossSpike, (99.0, 1.0));
        assert_eq!(skip, "step 4 was skipped: its loss was a spike (loss 99, gradient norm 1)");
        let sentence = rolled_back(Step(10), &[[96, 104], [120, 128]]);
        assert_eq!(sentence, "rolled back to step 10; samples 96..104, 120..128 are left out");
    }

    /// Lines that an earlier build wrote (tests/golden/README.md) tell the same story.
    #[test]
    fn the_failure_log_of_an_earlier_build_is_told() {
        let texts = [
            include_str!("../../../tests/golden/failure_log/1.jsonl"),
            include_str!("../../../tests/golden/failure_log/2.jsonl"),
            include_str!("../../../tests/golden/failure_log/3.jsonl"),
        ];
        let logs = texts.iter().zip(1..).map(|(text, attempt)| {
            // The last line is the hash of the others.
            let lines = text.lines().filter(|line| !line.starts_with("{\"blake3\""));
            AttemptLog { attempt, lines: lines.map(|line| serde_json::from_str(line).unwrap()).collect() }
        });
        let attempts: Vec<Attempt> = logs.filter_map(attempt).collect();
        let loss = &attempts[0].losses[0];
        assert_eq!((loss.resumed_from, loss.steps_lost), (Some(0), Some(9)), "the loss's, not the spike's");
        assert_eq!((loss.seconds_to_start, loss.seconds_lost), (Some(0.327), Some(0.391)));
        let text = human("tiny", &attempts);
        for words in [
            "1 loss in 3 attempts",
            "went back to step 0: 9 steps lost; training again after 0.33 s",
            "nothing of this step was applied; going back",
            "back to step 10; samples 136..144 are left out",
            "the checkpoint of step 25 is damaged and was set aside",
            "completed: step 30 of 30 was already committed",
        ] {
            assert!(text.contains(words), "{words:?} is not in:\n{text}");
        }
        assert!(!text.contains("no end is recorded"), "{text}");
    }
}
