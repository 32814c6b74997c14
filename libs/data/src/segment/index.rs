//! The layout of an `.idx`, checked against its bytes (Megatron-LM, `indexed_dataset.py`).
//!
//! ```text
//! "MMIDIDX\0\0" · version u64 = 1 · dtype u8 · sequences u64 · documents u64      (little-endian)
//! lengths i32[sequences] · pointers i64[sequences] · documents i64[documents] · modes i8[sequences], optional
//! ```
//! A sequence's pointer is its byte offset in the `.bin`. `documents` begins with 0 and has the sequence after each
//! document; it is one longer than the number of documents. After parsing, every access is in bounds.

use std::ops::Range;

use super::dtype::Dtype;

pub(crate) const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
pub(crate) const VERSION: u64 = 1;
/// Bytes before the arrays.
pub(crate) const HEADER_BYTES: usize = 34;

/// Where things lie in an index that was found whole and consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexLayout {
    /// Type of the tokens.
    pub dtype: Dtype,
    /// Sequences.
    pub sequences: usize,
    /// Documents.
    pub documents: usize,
    /// Tokens in all sequences.
    pub tokens: u64,
    pointers: Range<usize>,
    document_ends: Range<usize>,
}

impl IndexLayout {
    /// Checks all of `bytes`; the error is a clause that says what is wrong with "it".
    ///
    /// Sequences must lie one after another in the `.bin` from its start, as Megatron's builder writes them.
    pub fn parse(bytes: &[u8]) -> Result<IndexLayout, String> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            return Err("it does not begin with Megatron's mark MMIDIDX".into());
        }
        let Some(header) = bytes.get(MAGIC.len()..HEADER_BYTES) else {
            return Err(format!(
                "it ends after {} bytes, inside its {HEADER_BYTES}-byte header",
                bytes.len()
            ));
        };
        let version = u64_at(header, 0);
        if version != VERSION {
            return Err(format!("its version is {version}, and only {VERSION} is known"));
        }
        let dtype = Dtype::from_code(header[8])?;
        let (sequences, marks) = (u64_at(header, 9), u64_at(header, 17));

        let ends = |count: u64, size: u64, start: u64| count.checked_mul(size)?.checked_add(start);
        let layout = (|| {
            let pointers = ends(sequences, 4, HEADER_BYTES as u64)?;
            let documents = ends(sequences, 8, pointers)?;
            let end = ends(marks, 8, documents)?;
            Some((pointers, documents, end, end.checked_add(sequences)?))
        })();
        let length = bytes.len() as u64;
        let Some((pointers, documents, end)) = layout
            .filter(|&(.., end, with_modes)| length == end || length == with_modes)
            .map(|(pointers, documents, end, _)| (pointers as usize, documents as usize, end as usize))
        else {
            let needed = layout.map_or("more than 2^64".into(), |(.., end, _)| end.to_string());
            let what =
                if layout.is_some_and(|(.., end, _)| length > end) { "has" } else { "is cut short: it has" };
            return Err(format!(
                "it {what} {length} bytes, but {sequences} sequences and {marks} document marks take {needed}"
            ));
        };
        if marks == 0 {
            return Err("it has no document marks, not even the first".into());
        }
        // The arrays fit into the bytes, so the counts fit into usize.
        let mut layout = IndexLayout {
            dtype,
            sequences: sequences as usize,
            documents: marks as usize - 1,
            tokens: 0,
            pointers: pointers..documents,
            document_ends: documents..end,
        };
        layout.tokens = layout.check_sequences(bytes)?;
        layout.check_documents(bytes)?;
        Ok(layout)
    }

    fn check_sequences(&self, bytes: &[u8]) -> Result<u64, String> {
        let (lengths, _) = bytes[HEADER_BYTES..self.pointers.start].as_chunks();
        let (pointers, _) = bytes[self.pointers.clone()].as_chunks();
        let mut tokens = 0u64;
        for (sequence, (length, pointer)) in lengths.iter().zip(pointers).enumerate() {
            let (length, pointer) = (i32::from_le_bytes(*length), i64::from_le_bytes(*pointer));
            // Below 2^31 · 2^61 sequences no sum overflows, but a product with the token's size may.
            let expected = tokens.checked_mul(self.dtype.bytes() as u64);
            if u64::try_from(pointer).ok() != expected || expected.is_none() {
                return Err(format!(
                    "sequence {sequence} is said to begin at byte {pointer}, but the sequences before it end elsewhere"
                ));
            }
            let Ok(length) = u64::try_from(length) else {
                return Err(format!("sequence {sequence} has the length {length}"));
            };
            tokens = tokens.checked_add(length).ok_or("its sequences are too long to count")?;
        }
        Ok(tokens)
    }

    fn check_documents(&self, bytes: &[u8]) -> Result<(), String> {
        let (marks, _) = bytes[self.document_ends.clone()].as_chunks();
        let mut previous = 0;
        for (i, mark) in marks.iter().enumerate() {
            let mark = i64::from_le_bytes(*mark);
            if i == 0 && mark != 0 {
                return Err(format!("its first document begins at sequence {mark}, not 0"));
            }
            if mark < previous || mark.unsigned_abs() > self.sequences as u64 {
                return Err(format!(
                    "document mark {i} is sequence {mark}, but marks rise from {previous} to at most {}",
                    self.sequences
                ));
            }
            previous = mark;
        }
        Ok(())
    }

    /// The document that holds the token at `position`; the last one for positions past the marks. `bytes` are those
    /// that were parsed.
    pub fn document_of(&self, bytes: &[u8], position: u64) -> u64 {
        let number = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| i64::from_le_bytes(*bytes));
        self.find_document(position, number)
    }

    /// The same; `number` reads the number at a byte of the index.
    pub(crate) fn find_document(&self, position: u64, number: impl Fn(usize) -> Option<i64>) -> u64 {
        let count_before = |numbers: &Range<usize>, is_before: &dyn Fn(u64) -> bool| {
            let (mut low, mut high) = (0, numbers.len() / 8);
            while low < high {
                let middle = low + (high - low) / 2;
                match number(numbers.start + 8 * middle) {
                    Some(number) if is_before(number.unsigned_abs()) => low = middle + 1,
                    _ => high = middle,
                }
            }
            low
        };
        let byte = position.saturating_mul(self.dtype.bytes() as u64);
        let sequence = count_before(&self.pointers, &|pointer| pointer <= byte).max(1) as u64;
        let document = count_before(&self.document_ends, &|mark| mark < sequence);
        (document.max(1) - 1).min(self.documents.max(1) - 1) as u64
    }
}

/// The u64 at `at` of a header whose length was checked.
fn u64_at(header: &[u8], at: usize) -> u64 {
    header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
