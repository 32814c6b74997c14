//! `polygram ckpt verify`: everything read, and every object named that is not what was written.

use polygram_checkpoint::{CheckpointError, Fault, QuarantineReason, RunStore, Verified, keys};
use polygram_domain::Step;
use serde::Serialize;

use crate::args::CkptVerifyArgs;
use crate::byte_progress::ByteProgress;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units::{self, counted};

#[derive(Debug, Serialize)]
struct Report {
    step: u64,
    sound: bool,
    objects: usize,
    bytes: u64,
    damaged: Vec<Fault>,
    /// Whether the run will pass it over from now on.
    set_aside: bool,
}

/// What was read.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Verdict {
    Checkpoint(Report),
    Ledger { ledger: LedgerReport },
}

#[derive(Debug, Serialize)]
struct LedgerReport {
    sound: bool,
    /// Steps that have a line.
    steps: usize,
    damaged: Vec<Fault>,
}

pub(crate) fn run(args: &CkptVerifyArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.checkpoint.run)?;
    let failed = |error| stored::refused(&place.root, error);
    let reports = block_on(async {
        let run = stored::open(&place).await?;
        let there = run.store.committed_steps().await.map_err(failed)?;
        let steps = match args.checkpoint.step {
            _ if args.all => there,
            Some(step) if there.contains(&Step(step)) => vec![Step(step)],
            // Its absence is said as every command says it.
            Some(_) => {
                stored::checkpoint(&run.store, &place, args.checkpoint.step, printer).await?;
                Vec::new()
            }
            // The newest there is, not the newest that looks whole: that is what one wants to know.
            None => there.last().copied().into_iter().collect(),
        };
        if steps.is_empty() {
            return Err(Failure::failed(format!("run {} has no checkpoint yet", place.name)));
        }
        let mut reports = Vec::new();
        for step in steps {
            let mut report = verify(&run.store, step, printer).await.map_err(failed)?;
            if args.set_aside && !report.sound {
                // Reports of unsound checkpoints have a fault at least.
                if let Some(fault) = report.damaged.first() {
                    let reason = QuarantineReason::Faulty(fault.clone());
                    run.store.quarantine(step, &reason).await.map_err(failed)?;
                    report.set_aside = true;
                }
            }
            reports.push(Verdict::Checkpoint(report));
        }
        let (chain, faults) = run.store.verify_ledger().await.map_err(failed)?;
        // A line is printed without its object's key.
        let with_key = |Fault { key, reason }: Fault| {
            let reason = if reason.contains(&key) { reason } else { format!("{key}: {reason}") };
            Fault { key, reason }
        };
        let damaged: Vec<Fault> = faults.0.into_iter().map(with_key).collect();
        let (sound, steps) = (damaged.is_empty(), chain.entries().count());
        reports.push(Verdict::Ledger { ledger: LedgerReport { sound, steps, damaged } });
        Ok(reports)
    })?;
    printer.result(&reports, || reports.iter().map(human).collect())?;
    let is_sound = reports.iter().all(|verdict| match verdict {
        Verdict::Checkpoint(report) => report.sound,
        Verdict::Ledger { ledger } => ledger.sound,
    });
    Ok(if is_sound { ExitStatus::Success } else { ExitStatus::Failed })
}

async fn verify(store: &RunStore, step: Step, printer: &mut Printer) -> Result<Report, CheckpointError> {
    let manifest = match store.read_manifest(step).await {
        Ok(manifest) => manifest,
        Err(error) if error.is_damage() => {
            let damaged = vec![Fault { key: keys::manifest(step), reason: error.to_string() }];
            return Ok(Report {
                step: step.0,
                sound: false,
                objects: 0,
                bytes: 0,
                damaged,
                set_aside: false,
            });
        }
        Err(error) => return Err(error),
    };
    let progress = ByteProgress::new(format!("verifying step {step}"), manifest.bytes(), store);
    let Verified { objects, bytes, faults: damaged } =
        progress.follow(printer, store.verify(&manifest)).await?;
    Ok(Report { step: step.0, sound: damaged.is_empty(), objects, bytes, damaged, set_aside: false })
}

fn human(verdict: &Verdict) -> String {
    let report = match verdict {
        Verdict::Checkpoint(report) => report,
        Verdict::Ledger { ledger: LedgerReport { sound, steps, damaged } } => {
            let steps = counted(*steps as u64, "step");
            if *sound {
                return format!("ledger: {steps}, each once, every line follows the one before\n");
            }
            let lines: String = damaged.iter().map(|object| format!("  {}\n", object.reason)).collect();
            return format!("ledger: {steps}, {}\n{lines}", counted(damaged.len() as u64, "fault"));
        }
    };
    let (step, objects) = (report.step, counted(report.objects as u64, "object"));
    let size = units::bytes(report.bytes);
    if report.sound {
        return format!("step {step}: {objects}, {size}: every byte is what was written\n");
    }
    let lines: String = report.damaged.iter().map(|object| format!("  {}\n", object.reason)).collect();
    let aside =
        if report.set_aside { "  set aside: the run continues from an older checkpoint\n" } else { "" };
    format!("step {step}: {objects}, {size}: {} damaged\n{lines}{aside}", report.damaged.len())
}
