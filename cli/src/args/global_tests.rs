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

/// Commands that have nothing to do with a root show none, and refuse one.
#[test]
fn a_root_is_shown_where_it_means_something() {
    use clap::CommandFactory;
    for (line, has_root) in [
        ("train", true),
        ("status", true),
        ("ckpt ls", true),
        ("ckpt reshard", true),
        ("pool up", true),
        ("bench checkpoint", true),
        ("plan", false),
        ("keys", false),
        ("data prepare", false),
        ("logits", false),
        ("ngram size", false),
        ("submit", false),
        ("jobs", false),
        ("bench step", false),
    ] {
        let help = Cli::try_parse_from(["polygram"].into_iter().chain(line.split(' ')).chain(["--help"]));
        let help = help.unwrap_err().to_string();
        assert_eq!(help.contains("--root"), has_root, "{line}: {help}");
        // Options of the command come first, in the order of its own words.
        let at = |words: &str| help.find(words).unwrap_or_else(|| panic!("{words} is not in {help}"));
        assert!(at("\nOptions:") < at("\nGlobal options:"), "{line}: {help}");
        assert!(at("Global options:") < at("--output-format"), "{line}: {help}");
    }
    let given = Cli::try_parse_from("polygram plan x.toml --root r".split(' ')).unwrap();
    assert_eq!((given.global.root.as_deref(), given.command.takes_root()), (Some("r"), false));
    let given = Cli::try_parse_from("polygram status x --root r".split(' ')).unwrap();
    assert_eq!((given.global.root.as_deref(), given.command.takes_root()), (Some("r"), true));
    Cli::command().debug_assert();
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
