//! Documents of a corpus, one after another, the same in every pass.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::{Array, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::PrepareOptions;
use super::files::{Compression, Format, TextFile, find_files};
use super::meta::SourceCount;
use crate::error::DataError;

/// A document with something in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) text: String,
}

/// What to do after a document.
type Next = Result<ControlFlow<()>, DataError>;

/// The files, and how to read them.
#[derive(Debug)]
pub(crate) struct Corpus {
    files: Vec<TextFile>,
    text_key: String,
    max_bytes: u64,
}

impl Corpus {
    pub(crate) fn find(options: &PrepareOptions) -> Result<Corpus, DataError> {
        Ok(Corpus {
            files: find_files(&options.inputs, &options.extensions)?,
            text_key: options.text_key.clone(),
            max_bytes: options.max_bytes.unwrap_or(u64::MAX),
        })
    }

    /// Calls `visit` with every document, in order, until the byte limit, which cuts the
    /// last one; returns the counts per kind of file.
    /// Documents of white space only are passed over; text files that are not UTF-8 or hold a NUL byte are skipped.
    pub(crate) fn read(
        &self,
        mut visit: impl FnMut(Document) -> Next,
    ) -> Result<BTreeMap<String, SourceCount>, DataError> {
        let mut counts: BTreeMap<String, SourceCount> = BTreeMap::new();
        let mut left = self.max_bytes;
        for file in &self.files {
            if left < 4 {
                break;
            }
            let count = counts.entry(file.kind()).or_default();
            let documents = count.documents;
            let mut offer = |mut text: String| -> Next {
                if text.starts_with('\u{feff}') {
                    text.remove(0);
                }
                text.truncate(boundary_below(&text, left));
                if text.trim().is_empty() {
                    return Ok(ControlFlow::Continue(()));
                }
                count.documents += 1;
                count.bytes += text.len() as u64;
                left -= text.len() as u64;
                let next = visit(Document { text })?;
                // A rest smaller than a character would never be used up.
                Ok(if left < 4 { ControlFlow::Break(()) } else { next })
            };
            match file.format {
                Format::Text => read_text(&file.path, &mut offer)?,
                Format::JsonLines(compression) => {
                    read_json_lines(&file.path, compression, &self.text_key, &mut offer)?;
                }
                Format::Parquet => read_parquet(&file.path, &self.text_key, &mut offer)?,
            }
            if count.documents > documents {
                count.files += 1;
            } else {
                count.skipped_files += 1;
            }
        }
        Ok(counts)
    }
}

fn read_text(path: &Path, offer: &mut impl FnMut(String) -> Next) -> Result<(), DataError> {
    let bytes = fs::read(path).map_err(DataError::io("read", path))?;
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => offer(text).map(drop),
        _ => Ok(()),
    }
}

fn read_json_lines(
    path: &Path,
    compression: Compression,
    key: &str,
    offer: &mut impl FnMut(String) -> Next,
) -> Result<(), DataError> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    let plain: Box<dyn Read> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::new(file).map_err(DataError::io("decompress", path))?)
        }
    };
    let mut lines = BufReader::with_capacity(1 << 20, plain);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(DataError::io("read", path))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let failed =
            |problem| DataError::Corpus { place: format!("{}, line {number}", path.display()), problem };
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&line).map_err(|error| failed(format!("not a JSON object: {error}")))?;
        let next = match object.remove(key) {
            Some(serde_json::Value::String(text)) => offer(text)?,
            Some(serde_json::Value::Null) => ControlFlow::Continue(()),
            Some(_) => return Err(failed(format!("its {key:?} is not a string"))),
            None => {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                return Err(failed(format!(
                    "it has no {key:?}; name the field that holds the text, one of: {}",
                    keys.join(", ")
                )));
            }
        };
        if next.is_break() {
            break;
        }
    }
    Ok(())
}

fn read_parquet(path: &Path, column: &str, offer: &mut impl FnMut(String) -> Next) -> Result<(), DataError> {
    let failed = |problem| DataError::Corpus { place: path.display().to_string(), problem };
    let broken = |error: String| failed(format!("not a readable parquet file: {error}"));
    let file = File::open(path).map_err(DataError::io("open", path))?;
    let builder = sound(|| ParquetRecordBatchReaderBuilder::try_new(file)).map_err(broken)?;
    let columns: Vec<&str> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
    let Some(index) = columns.iter().position(|&name| name == column) else {
        return Err(failed(format!(
            "it has no column {column:?}; name the one that holds the text: {}",
            columns.join(", ")
        )));
    };
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let build = || builder.with_projection(mask).with_batch_size(1024).build();
    let mut reader = sound(build).map_err(broken)?;
    while let Some(batch) = sound(|| reader.next().transpose()).map_err(broken)? {
        let Some(next) = offer_rows(&batch, offer) else {
            let kind = batch.schema().field(0).data_type().clone();
            return Err(failed(format!("its column {column:?} holds {kind}, and text is needed")));
        };
        if next?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The library panics on some damaged files, where it trusts lengths that it read. What it was reading is not used again.
fn sound<T, E: Display>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(panic) => panic.downcast_ref::<&str>().map_or("damaged".into(), |message| (*message).into()),
        }),
    }
}

/// Offers the strings of the batch's only column; `None` when it has none.
fn offer_rows(batch: &RecordBatch, offer: &mut impl FnMut(String) -> Next) -> Option<Next> {
    let column = batch.columns().first()?.as_any();
    if let Some(rows) = column.downcast_ref::<StringArray>() {
        Some(offer_all(rows.iter(), offer))
    } else if let Some(rows) = column.downcast_ref::<LargeStringArray>() {
        Some(offer_all(rows.iter(), offer))
    } else {
        column.downcast_ref::<StringViewArray>().map(|rows| offer_all(rows.iter(), offer))
    }
}

fn offer_all<'a>(
    rows: impl Iterator<Item = Option<&'a str>>,
    offer: &mut impl FnMut(String) -> Next,
) -> Next {
    for text in rows.flatten() {
        if offer(text.to_owned())?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The last character boundary of `text` at or below `limit` bytes.
pub(crate) fn boundary_below(text: &str, limit: u64) -> usize {
    let limit = usize::try_from(limit).map_or(text.len(), |limit| limit.min(text.len()));
    (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}
