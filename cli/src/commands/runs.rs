//! `polygram runs`: what lies under a root.

use serde::Serialize;

use crate::args::RootArgs;
use crate::commands::{block_on, status};
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::{Root, RunPlace};
use crate::stored;
use crate::units::columns;

#[derive(Debug, Serialize)]
struct RunLine {
    run: String,
    state: String,
    step: u64,
    total_steps: u64,
    last_commit: Option<u64>,
    /// Why nothing is known of it, if so.
    problem: Option<String>,
}

pub(crate) fn run(args: &RootArgs, printer: &mut Printer) -> Outcome {
    let root = Root::resolve(args)?;
    let lines = block_on(list(&root))?;
    printer.result(&lines, || {
        let mut rows = vec![["run", "state", "step", "committed"].map(str::to_owned).to_vec()];
        rows.extend(lines.iter().map(|line| {
            let commit = line.last_commit.map_or("-".to_owned(), |step| step.to_string());
            let step = match line.problem {
                Some(_) => "-".to_owned(),
                None => format!("{}/{}", line.step, line.total_steps),
            };
            vec![line.run.clone(), line.state.clone(), step, commit]
        }));
        let problems =
            lines.iter().filter_map(|line| Some(format!("{}: {}\n", line.run, line.problem.as_ref()?)));
        columns(&rows) + &problems.collect::<String>()
    })?;
    if lines.is_empty() {
        printer.warn(format!("there is no run in {root}"));
    }
    Ok(ExitStatus::Success)
}

async fn list(root: &Root) -> Outcome<Vec<RunLine>> {
    let failed = |error| stored::refused(root, error);
    let store = polygram_checkpoint::open_root(&root.address()).map_err(failed)?;
    let mut lines = Vec::new();
    for name in polygram_checkpoint::list_runs(&store).await.map_err(failed)? {
        let place = RunPlace { name, root: root.clone() };
        let found = match stored::find(&place).await {
            // A folder in which nothing was ever led or committed is no run, as for every other command.
            Ok(None) => continue,
            Ok(Some(run)) => status::of(run, &place).await,
            Err(failure) => Err(failure),
        };
        // A run without a readable status is listed all the same: that is what one looks for.
        let (found, problem) = match found {
            Ok(found) => (found.summary(), None),
            Err(failure) => (("unknown".to_owned(), 0, 0, None), Some(failure.message().to_owned())),
        };
        let (state, step, total_steps, last_commit) = found;
        lines.push(RunLine { run: place.name.to_string(), state, step, total_steps, last_commit, problem });
    }
    Ok(lines)
}
