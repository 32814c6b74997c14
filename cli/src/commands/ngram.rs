//! `polygram ngram`: row ids of tokens, and table sizes that collide little.

use std::path::Path;

use polygram_domain::hf_config::HashConfig;
use polygram_ngram::{Hasher, NgramError, SizeQuery, size_tables};
use serde::Serialize;

use crate::args::{NgramIdsArgs, NgramSizeArgs};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::read_text;
use crate::units::{columns, count, grouped};

#[derive(Serialize)]
struct IdsDocument {
    /// `[sequence][position][table]`.
    ids: Vec<Vec<Vec<u32>>>,
}

/// `polygram ngram ids`: always JSON, for it has no other reader than a program.
pub(crate) fn ids(args: &NgramIdsArgs, printer: &mut Printer) -> Outcome {
    let config = HashConfig::parse(&read_text(&args.config)?)
        .map_err(|message| Failure::usage(format!("{}: {message}", args.config.display())))?;
    let hasher = Hasher::new(&config.ngram(), config.eos_token_id).map_err(|error| {
        Failure::usage(format!("{}: no legal tables", args.config.display())).because(error)
    })?;
    let tokens = args.tokens.display();
    let sequences: Vec<Vec<u32>> = serde_json::from_str(&read_text(&args.tokens)?).map_err(|error| {
        Failure::usage(format!("{tokens} is not a JSON list of lists of token ids")).because(error)
    })?;
    let ids = sequences
        .iter()
        .enumerate()
        .map(|(number, sequence)| {
            let flat = hasher.ids(sequence).map_err(|error| refused(error, number, &config, &args.tokens))?;
            Ok(flat.chunks_exact(hasher.tables()).map(<[u32]>::to_vec).collect())
        })
        .collect::<Outcome<_>>()?;
    printer.json_line(&IdsDocument { ids })?;
    Ok(ExitStatus::Success)
}

fn refused(error: NgramError, sequence: usize, config: &HashConfig, tokens: &Path) -> Failure {
    let file = tokens.display();
    match error {
        NgramError::TokenOutOfRange { position, token, .. } => Failure::usage(format!(
            "{file}: token {token} in sequence {sequence} at position {position} is outside the vocabulary of {} tokens",
            config.vocab_size
        )),
        other => Failure::usage(format!("{file}: sequence {sequence} cannot be hashed")).because(other),
    }
}

#[derive(Serialize)]
struct SizeDocument {
    base: u64,
    rows: Vec<u64>,
    merits: Vec<f64>,
    ratio: f64,
}

/// `polygram ngram size`.
pub(crate) fn size(args: &NgramSizeArgs, printer: &mut Printer) -> Outcome {
    let query = SizeQuery { vocab: args.vocab, rows: args.rows, orders: args.orders, heads: args.heads };
    let sizing =
        size_tables(query).map_err(|error| Failure::usage("no tables can be sized so").because(error))?;
    let document =
        SizeDocument { base: sizing.base, rows: sizing.rows, merits: sizing.merits, ratio: sizing.ratio };
    printer.result(&document, || {
        let mut rows = vec![["table", "order", "rows", "n-grams per row", "merit"].map(str::to_owned).to_vec()];
        for (table, (size, merit)) in document.rows.iter().zip(&document.merits).enumerate() {
            let order = table as u32 / args.heads + 2;
            rows.push(vec![
                table.to_string(),
                order.to_string(),
                grouped(*size),
                per_row(args.vocab, order, *size),
                format!("{merit:.3}"),
            ]);
        }
        format!(
            "{}\nn-grams per row: all that are possible, vocabulary^order / rows; only those that occur share rows\n\
             merit: how evenly the size spreads n-grams, whatever their number; 1 is best\n\
             ngram.base_rows = {}\nngram.ratio = {} is the same, as a Hugging Face config writes it\n",
            columns(&rows),
            document.base,
            document.ratio
        )
    })?;
    Ok(ExitStatus::Success)
}

/// Possible n-grams of an order for each row of a table, in three digits.
fn per_row(vocab: u32, order: u32, rows: u64) -> String {
    let ratio = f64::from(vocab).powf(f64::from(order)) / rows.max(1) as f64;
    if ratio < 1e15 { count(ratio) } else { format!("{ratio:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_table_shows_its_load() {
        assert_eq!(per_row(100, 2, 1), "10.0 k");
        assert_eq!(per_row(131_072, 2, 10_232_743), "1.68 k");
        assert_eq!(per_row(131_072, 5, 1), "3.9e25");
        assert_eq!(per_row(2, 2, 8), "0.50");
    }
}
