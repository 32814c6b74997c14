//! One file per command. A command takes resolved settings, prints through the printer and returns an outcome.

pub(crate) mod bench;
pub(crate) mod bench_checkpoint;
pub(crate) mod bench_step;
pub(crate) mod ckpt;
pub(crate) mod data;
pub(crate) mod digest;
pub(crate) mod keys;
pub(crate) mod ledger;
pub(crate) mod logits;
pub(crate) mod metrics;
pub(crate) mod ngram;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod runs;
mod runtime;
pub(crate) mod status;
pub(crate) mod status_text;
pub(crate) mod train;
pub(crate) mod train_result;
pub(crate) mod verify_replay;
pub(crate) mod why;

use crate::args::{BenchCommand, CkptCommand, Cli, Command, DataCommand, NgramCommand, PoolCommand};
use crate::exit::{Failure, Outcome};
use crate::launcher::siblings::Program;
use crate::printer::Printer;
use runtime::block_on;

/// Runs one command to its end.
pub(crate) fn run(cli: &Cli, printer: &mut Printer) -> Outcome {
    if cli.global.root.is_some() && !cli.command.takes_root() {
        return Err(Failure::usage(
            "--root says nothing to this command: it reads and writes no run of a root",
        )
        .hint("leave --root out"));
    }
    match &cli.command {
        Command::Train(args) => train::run(args, printer),
        Command::Plan(args) => plan::run(args, printer),
        Command::Keys(args) => keys::run(args, printer),
        Command::Status(args) => status::run(args, printer),
        Command::Runs(args) => runs::run(args, printer),
        Command::Metrics(args) => metrics::run(args, printer),
        Command::Why(args) => why::run(args, printer),
        Command::Digest(args) => digest::run(args, printer),
        Command::Ledger(args) => ledger::run(args, printer),
        Command::VerifyReplay(args) => verify_replay::run(args, printer),
        Command::Ckpt(CkptCommand::Ls(args)) => ckpt::ls::run(args, printer),
        Command::Ckpt(CkptCommand::Show(args)) => ckpt::show::run(args, printer),
        Command::Ckpt(CkptCommand::Verify(args)) => ckpt::verify::run(args, printer),
        Command::Ckpt(CkptCommand::Diff(args)) => ckpt::diff::run(args, printer),
        Command::Ckpt(CkptCommand::Pin(args)) => ckpt::pin::pin(args, printer),
        Command::Ckpt(CkptCommand::Unpin(args)) => ckpt::pin::unpin(args, printer),
        Command::Ckpt(CkptCommand::Gc(args)) => ckpt::gc::run(args, printer),
        Command::Ckpt(CkptCommand::Rm(args)) => ckpt::rm::run(args, printer),
        Command::Ckpt(CkptCommand::Reshard(args)) => ckpt::reshard::run(args, printer),
        Command::Logits(args) => logits::run(args),
        Command::Ngram(NgramCommand::Ids(args)) => ngram::ids(args, printer),
        Command::Ngram(NgramCommand::Size(args)) => ngram::size(args, printer),
        Command::Data(DataCommand::Prepare(args)) => data::prepare(args, printer),
        Command::Data(DataCommand::Inspect(args)) => data::inspect(args, printer),
        Command::Submit(args) => pool::submit(args, printer),
        Command::Jobs(args) => pool::jobs(args, printer),
        Command::Cancel(args) => pool::cancel(args, printer),
        Command::Pool(PoolCommand::Up(args)) => pool::up(args, printer),
        Command::Pool(PoolCommand::Members(args)) => pool::members(args, printer),
        Command::Bench(BenchCommand::Shard(args)) => bench::pass(Program::EmbeddingShard, args, printer),
        Command::Bench(BenchCommand::Collective(args)) => bench::pass(Program::Collective, args, printer),
        Command::Bench(BenchCommand::Checkpoint(args)) => bench_checkpoint::run(args, printer),
        Command::Bench(BenchCommand::Step(args)) => bench_step::run(args, printer),
    }
}
