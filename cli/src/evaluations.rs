//! Losses on held-out sets, in words.

use polygram_domain::HeldOutSets;
use polygram_proto::control::Evaluation;

/// What the loss on a held-out set is called: its name is left out where a run has one set without a name.
pub(crate) fn label(set: &str) -> String {
    if set == HeldOutSets::UNNAMED { "held-out loss".to_owned() } else { format!("held-out loss of {set}") }
}

/// One line: loss, step and size of the sample.
pub(crate) fn line(evaluation: &Evaluation) -> String {
    let Evaluation { step, set, loss, tokens } = evaluation;
    let tokens = crate::units::counted(*tokens, "token");
    format!("{} {loss:.4} nats per token at step {step}, over {tokens}", label(set))
}
