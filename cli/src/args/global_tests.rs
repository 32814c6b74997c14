//! What holds for every command: the root's place, and bounds of numbers.

use clap::Parser;

use super::*;

#[test]
fn a_root_may_stand_before_or_after_the_command() {
    for line in ["polygram --root r status x", "polygram status x --root r", "polygram status --root r x"] {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Status(args) = cli.command else { panic!("{line}") };
        assert_eq!(args.root.root.as_deref(), Some("r"), "{line}");
    }
    for line in ["polygram --root r ckpt ls x", "polygram ckpt --root r ls x", "polygram ckpt ls x --root r"]
    {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Ckpt(CkptCommand::Ls(args)) = cli.command else { panic!("{line}") };
        assert_eq!(args.root.root.as_deref(), Some("r"), "{line}");
    }
    let cli = Cli::try_parse_from("polygram runs".split(' ')).unwrap();
    assert!(matches!(cli.command, Command::Runs(args) if args.root.is_none()));
}

/// Every number of the command line has bounds, so that no sum of it wraps and no time outlasts the machine.
#[test]
fn numbers_have_bounds() {
    for line in [
        "bench step f --warmup 18446744073709551615",
        "verify-replay r --from 1 --to 2 --workers 0",
        "verify-replay r --from 1 --to 2 --shards 4097",
        "ckpt reshard r --workers 0 --shards 1",
        "ckpt reshard r --workers 1 --shards 4294967295",
        "ckpt reshard r --workers 1 --shards 1 --expert-parallel 4294967295",
        "ngram size --vocab 0 --rows 5 --orders 2 --heads 1",
        "ngram size --vocab 4294967295 --rows 5 --orders 2 --heads 1",
        "ngram size --vocab 5 --rows 4294967295 --orders 2 --heads 1",
        "ngram size --vocab 5 --rows 5 --orders 4294967295 --heads 1",
        "ngram size --vocab 5 --rows 5 --orders 2 --heads 4294967295",
        "pool up --workers 4294967295 --shards 1",
    ] {
        let error = Cli::try_parse_from(["polygram"].into_iter().chain(line.split(' '))).unwrap_err();
        assert!(error.to_string().contains(" is not in "), "{line}: {error}");
    }
}
