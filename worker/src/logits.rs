//! `polygram-worker logits`: what a Hugging Face directory computes for given tokens.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use polygram_domain::CellBatch;
use polygram_domain::words::counted;
use polygram_files::{OutputError, OutputFile};
use polygram_model::ModelError;
use polygram_model::hf::HfDirectory;
use polygram_model::{CellInput, Options};
use polygram_ngram::{Hasher, UniqueRows, batch_ids};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::args::LogitsArgs;

/// Whether the error is one of what the user gave: a model, an input or an output that cannot be used.
pub fn is_wrong_input(error: &anyhow::Error) -> bool {
    match (error.downcast_ref::<ModelError>(), error.downcast_ref::<OutputError>()) {
        (Some(ModelError::Torch(_)), _) => false,
        // A file that could be opened for writing, and then could not be written.
        (_, Some(OutputError::Write { .. })) => false,
        _ => true,
    }
}

/// Reads `input_ids` (i64 `[B, T]`), runs the model in f32 and writes `ngram_ids` (i64 `[B, T, tables]`),
/// `embedding` (f32 `[B, T, D]`), `logits` (f32 `[B, T, V]`) and `loss` (f32 `[1]`: mean over B·(T − 1) next
/// tokens). The output appears whole or not at all; a link, a pipe or a device stays what it is. Returns what was
/// written and where, in one line.
pub fn run(files: &LogitsArgs) -> anyhow::Result<String> {
    let output = OutputFile::new(&files.output)?;
    let directory = HfDirectory::open(&files.model)?;
    let spec = directory.spec().clone();
    let (batch, seq_len, tokens_bt) = read_tokens(&files.input, spec.vocab_size)?;
    let hasher = Hasher::new(&spec.ngram, spec.eos_token_id)?;
    let ids_pc = batch_ids(&hasher, &tokens_bt, seq_len)?;
    let unique = UniqueRows::of(&ids_pc, hasher.tables());
    let rows_suw = directory.rows(&unique.offsets, &unique.rows)?;
    let cell = CellBatch::from_sequences(tokens_bt, batch, seq_len).map_err(anyhow::Error::msg)?;
    let mut model = directory.load(Options::evaluation())?;
    let seen = model.inspect(&CellInput {
        batch: &cell,
        inverse_pc: &unique.inverse_pc,
        rows_suw: &rows_suw,
        unique: unique.len(),
        global_targets: cell.target_count(),
    })?;
    if let Some(at) = seen.logits_btv.iter().position(|logit| !logit.is_finite()) {
        let (position, token) = (at / spec.vocab_size as usize, at % spec.vocab_size as usize);
        bail!(
            "{}: the logit of token {token} at [{}, {}] is not finite, though every weight is; are the weights those of \
             a trained model?",
            files.model.display(),
            position / seq_len,
            position % seq_len
        );
    }

    let ids: Vec<u8> = ids_pc.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (embedding, logits) = (floats(&seen.embedding_btd), floats(&seen.logits_btv));
    let loss = floats(&[seen.loss as f32]);
    let tensors = [
        ("ngram_ids", Dtype::I64, vec![batch, seq_len, hasher.tables()], &ids),
        ("embedding", Dtype::F32, vec![batch, seq_len, spec.hidden_size as usize], &embedding),
        ("logits", Dtype::F32, vec![batch, seq_len, spec.vocab_size as usize], &logits),
        ("loss", Dtype::F32, vec![1], &loss),
    ];
    let views = tensors
        .into_iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    output.write(&safetensors::serialize(views, None)?)?;
    Ok(format!(
        "logits of {} ({} of {}), loss {:.4} nats per token, written to {}",
        counted((batch * seq_len) as u64, "position"),
        counted(batch as u64, "sequence"),
        counted(seq_len as u64, "token"),
        seen.loss,
        files.output.display()
    ))
}

/// What an input file must be.
const INPUT_FORM: &str = "give --input a safetensors file with the tensor input_ids, I64 of shape [B, T]";

/// `(B, T, tokens)` of the file's `input_ids`.
fn read_tokens(path: &Path, vocab_size: u32) -> anyhow::Result<(usize, usize, Vec<u32>)> {
    let name = path.display();
    let bytes = fs::read(path).with_context(|| format!("cannot read {name}"))?;
    let file = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{name} is not a whole safetensors file; {INPUT_FORM}"))?;
    let Ok(ids) = file.tensor("input_ids") else {
        let names = file.names();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        bail!("{name} has no tensor input_ids (its tensors: {names}); {INPUT_FORM}");
    };
    let &[batch, seq_len] = ids.shape() else {
        bail!("{name}: input_ids has shape {:?}; it must be [B, T]; {INPUT_FORM}", ids.shape());
    };
    ensure!(ids.dtype() == Dtype::I64, "{name}: input_ids is {:?}; convert it to I64", ids.dtype());
    ensure!(
        batch > 0 && seq_len > 1,
        "{name}: input_ids is [{batch}, {seq_len}]; B ≥ 1 and T ≥ 2 are needed"
    );
    let tokens = ids
        .data()
        .chunks_exact(8)
        .map(|word| i64::from_le_bytes(std::array::from_fn(|i| word[i])))
        .enumerate()
        .map(|(at, id)| match u32::try_from(id) {
            Ok(token) if token < vocab_size => Ok(token),
            _ => bail!(
                "{name}: input_ids[{}, {}] is {id}; token ids of a vocabulary of {vocab_size} are 0 to {}: use the tokenizer \
                 of this model",
                at / seq_len,
                at % seq_len,
                vocab_size - 1
            ),
        })
        .collect::<anyhow::Result<Vec<u32>>>()?;
    Ok((batch, seq_len, tokens))
}
