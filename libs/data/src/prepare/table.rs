//! Documents of a parquet file: the rows of its text column.

use std::fs::File;

use arrow_array::{Array, BinaryArray, RecordBatch, StringArray};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::files::InputFile;
use super::reading::{Offered, Reading};
use crate::error::DataError;
use crate::guard::guarded;

/// Rows decoded at a time. Few, since a row may be a whole book.
const ROWS: usize = 128;

/// Takes the documents; `None` is a row without a value.
type Offer<'o> = dyn FnMut(&mut Reading<'_>, Option<Offered<'_>>) -> Result<(), DataError> + 'o;

/// Offers every row, in order.
pub(crate) fn read_parquet(
    reading: &mut Reading<'_>,
    file: &InputFile,
    column: &str,
    offer: &mut Offer<'_>,
) -> Result<(), DataError> {
    file.check_unchanged()?;
    let failed = |problem| DataError::Corpus { place: file.path.display().to_string(), problem };
    let broken = |error: String| failed(format!("not a readable parquet file: {error}"));
    let opened = File::open(&file.path).map_err(DataError::io("open", &file.path))?;
    // The types that Arrow noted beside the parquet schema (dictionaries, large strings) are left aside:
    // every text column is read as plain strings.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    // The library panics on some damaged files, where it trusts lengths that it read.
    let builder =
        guarded(|| ParquetRecordBatchReaderBuilder::try_new_with_options(opened, options)).map_err(broken)?;
    let columns: Vec<&str> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
    let Some(index) = columns.iter().position(|&name| name == column) else {
        return Err(failed(format!(
            "it has no column {column:?}; name the one that holds the text (--text-key): {}",
            columns.join(", ")
        )));
    };
    let texts: Vec<String> = builder
        .schema()
        .fields()
        .iter()
        .filter(|field| is_text(field.data_type()))
        .map(|field| field.name().clone())
        .collect();
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0).max(1);
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let build = || builder.with_projection(mask).with_batch_size(ROWS).build();
    let mut reader = guarded(build).map_err(broken)?;
    let mut row = 0u64;
    while let Some(batch) = guarded(|| reader.next().transpose()).map_err(broken)? {
        let Some(texts) = texts_of(&batch) else {
            let kind = kind_of(batch.schema().field(0).data_type());
            let others = match texts.as_slice() {
                [] => "no column of it holds text".to_owned(),
                texts => format!("name the one that holds the text (--text-key): {}", texts.join(", ")),
            };
            return Err(failed(format!("its column {column:?} holds {kind}, and text is needed; {others}")));
        };
        for text in texts {
            row += 1;
            reading.advance_to(
                (u128::from(file.state.length()) * u128::from(row.min(rows)) / u128::from(rows)) as u64,
            );
            if reading.is_full() {
                return Ok(());
            }
            let place = || format!("{}, row {row}", file.path.display());
            let text = text.map(|(first, repaired)| Offered { first, repaired, place: &place, rest: None });
            offer(reading, text)?;
        }
    }
    Ok(())
}

/// Whether [`texts_of`] reads such a column.
fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::Binary)
}

/// What a column of another type holds.
fn kind_of(kind: &DataType) -> &'static str {
    match kind {
        DataType::Struct(_) => "records of several fields",
        DataType::Boolean => "true or false",
        DataType::Null => "nothing",
        kind if kind.is_numeric() => "numbers",
        kind if kind.is_temporal() => "times",
        kind if kind.is_nested() => "lists",
        _ => "no text",
    }
}

/// The texts of the batch's only column, and whether something in them was not UTF-8; `None` when it holds
/// none.
fn texts_of(batch: &RecordBatch) -> Option<Vec<Option<(String, bool)>>> {
    let column = batch.columns().first()?.as_any();
    if let Some(rows) = column.downcast_ref::<StringArray>() {
        return Some(rows.iter().map(|row| Some((row?.to_owned(), false))).collect());
    }
    // Some writers do not mark their text as such.
    let rows = column.downcast_ref::<BinaryArray>()?;
    let text = |bytes: &[u8]| match String::from_utf8_lossy(bytes) {
        std::borrow::Cow::Borrowed(text) => (text.to_owned(), false),
        std::borrow::Cow::Owned(text) => (text, true),
    };
    Some(rows.iter().map(|row| row.map(text)).collect())
}
