//! `polygram why`: the chain of causes of every loss of a run, from the store alone.

use polygram_checkpoint::{Chapter, CulpritRecord, LossRecord, RecoveryLine};
use polygram_domain::OutputFormat;
use serde::Serialize;

use crate::args::RunArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Outcome};
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
    /// The commit that the run went back to; `None` where it did not.
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
    /// Steps skipped, ways back from spikes and checkpoints set aside, in order: when, and what happened.
    policy: Vec<(u64, String)>,
    /// State and message; `None` where the coordinator ended without a word, or leads still.
    ended: Option<(String, String)>,
}

pub(crate) fn run(args: &RunArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(args)?;
    let chapters = block_on(async {
        let run = stored::open(&place).await?;
        run.store.read_recovery().await.map_err(|error| stored::refused(&place.root, error))
    })?;
    let attempts: Vec<Attempt> = chapters.into_iter().filter_map(attempt).collect();
    match printer.format() {
        OutputFormat::Jsonl => printer.json_lines(&attempts)?,
        OutputFormat::Json => printer.result(&attempts, String::new)?,
        OutputFormat::Human => printer.text(&human(place.name.as_str(), &attempts))?,
    }
    Ok(ExitStatus::Success)
}

fn attempt(chapter: Chapter) -> Option<Attempt> {
    let mut lines = chapter.lines.into_iter().peekable();
    let (began_unix_ms, opened) = match lines.peek()? {
        RecoveryLine::Opened { at_unix_ms, pid, resumed_from } => (*at_unix_ms, Some((*pid, resumed_from.0))),
        line => (line.at_unix_ms(), None),
    };
    let mut attempt = Attempt {
        attempt: chapter.attempt,
        began_unix_ms,
        coordinator_pid: opened.map(|(pid, _)| pid),
        resumed_from: opened.map(|(_, step)| step),
        losses: Vec::new(),
        policy: Vec::new(),
        ended: None,
    };
    // What follows a way back from a spike is not the last loss's.
    let mut of_loss = true;
    for line in lines {
        match line {
            RecoveryLine::Lost(_) => of_loss = true,
            RecoveryLine::FellBack { at_unix_ms, step, reason, to } => {
                let sentence = format!(
                    "the checkpoint of step {step} is damaged and was set aside: {reason}; going on from step {to}"
                );
                attempt.policy.push((at_unix_ms, sentence));
                continue;
            }
            RecoveryLine::Policy { at_unix_ms, sentence, .. } => {
                of_loss &= !sentence.ends_with("going back");
                attempt.policy.push((at_unix_ms, sentence));
                continue;
            }
            RecoveryLine::WentBack { .. } | RecoveryLine::Started { .. } | RecoveryLine::CaughtUp { .. }
                if !of_loss =>
            {
                continue;
            }
            _ => {}
        }
        let since = |loss: &Loss, at: u64| Some(at.saturating_sub(loss.lost.at_unix_ms) as f64 / 1000.0);
        match (line, attempt.losses.last_mut()) {
            (RecoveryLine::Lost(lost), _) => attempt.losses.push(Loss {
                attempt: chapter.attempt,
                ended_generation: lost.generation.to_string(),
                lost,
                consequences: Vec::new(),
                resumed_from: None,
                steps_lost: None,
                seconds_to_start: None,
                seconds_lost: None,
            }),
            (RecoveryLine::Consequence { sentence, .. }, Some(loss)) => loss.consequences.push(sentence),
            (RecoveryLine::WentBack { step, .. }, Some(loss)) => {
                loss.resumed_from = Some(step.0);
                loss.steps_lost = Some(loss.lost.reached.0.saturating_sub(step.0));
            }
            (RecoveryLine::Started { at_unix_ms, .. }, Some(loss)) => {
                loss.seconds_to_start = since(loss, at_unix_ms);
            }
            (RecoveryLine::CaughtUp { at_unix_ms, .. }, Some(loss)) => {
                loss.seconds_lost = since(loss, at_unix_ms)
            }
            (RecoveryLine::Ended { state, message, .. }, _) => attempt.ended = Some((state, message)),
            // A consequence of what no member did: the attempt's end tells it.
            (_, None)
            | (
                RecoveryLine::Opened { .. } | RecoveryLine::Policy { .. } | RecoveryLine::FellBack { .. },
                _,
            ) => {}
        }
    }
    Some(attempt)
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
                text.push_str("  its coordinator ended without a word: killed, or lost with its machine\n");
            }
            None => text.push_str("  no end is recorded: it goes on, or its coordinator was killed\n"),
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
            RecoveryLine::Opened { at_unix_ms: 5_000, pid: 9, resumed_from: Step(0) },
            RecoveryLine::Lost(lost),
            RecoveryLine::Consequence { at_unix_ms: 10_001, sentence: "worker 0: rank 1 is gone".into() },
            RecoveryLine::FellBack {
                at_unix_ms: 10_200,
                step: Step(25),
                reason: "ckpt/data/ab/x.rows is damaged".into(),
                to: Step(20),
            },
            RecoveryLine::WentBack { at_unix_ms: 10_300, generation: next, step: Step(20) },
            RecoveryLine::Started { at_unix_ms: 10_500, generation: next },
            RecoveryLine::CaughtUp { at_unix_ms: 12_000, generation: next, step: Step(27) },
            RecoveryLine::Ended { at_unix_ms: 20_000, state: "completed".into(), message: "all done".into() },
        ];
        let attempts: Vec<Attempt> = attempt(Chapter { attempt: 1, lines }).into_iter().collect();
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
        let rest = vec![RecoveryLine::Ended {
            at_unix_ms: 20_000,
            state: "stopped".into(),
            message: "asked".into(),
        }];
        let cut: Vec<Attempt> = attempt(Chapter { attempt: 4, lines: rest }).into_iter().collect();
        let text = human("tiny", &cut);
        assert!(
            text.contains("attempt 4: its beginning is not in the store") && text.contains("stopped: asked")
        );
        assert_eq!(json[0]["losses"][0]["steps_lost"], 7);
    }
}
