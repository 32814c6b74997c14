//! Plain text in chunks: a document of any size in bounded memory.

use std::io::{self, Read};

use crate::error::DataError;

/// Bytes of a chunk, at least, where the text is as long.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// White space at the start of a text is held back up to this size.
const MOST_WHITE_SPACE: usize = 64 << 20;

/// A document, chunk after chunk.
pub(crate) trait Text {
    /// The next part of the text; `None` at its end. No chunk is empty. The first one has at least 64 KiB
    /// where the document is as long.
    fn next_chunk(&mut self) -> Result<Option<String>, DataError>;

    /// Where it stands, for messages.
    fn place(&self) -> String;
}

/// Why a file's text cannot be read.
#[derive(Debug)]
pub(crate) enum TextError {
    /// The file is not text; a clause about it.
    NotText(NotText),
    /// It cannot be read.
    Io(io::Error),
}

/// Why a file is not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotText {
    /// A byte sequence that is not UTF-8.
    Encoding {
        /// Its offset in the text.
        offset: u64,
    },
    /// A NUL byte.
    Binary {
        /// Its offset in the text.
        offset: u64,
    },
}

impl NotText {
    /// How such files are counted.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            NotText::Encoding { .. } => "not UTF-8 text",
            NotText::Binary { .. } => "binary",
        }
    }

    /// What is wrong, and what to do.
    pub(crate) fn problem(self) -> String {
        match self {
            NotText::Encoding { offset } => {
                format!("byte {offset} is not UTF-8 text; convert the file to UTF-8, or do not name it")
            }
            NotText::Binary { offset } => format!("it is binary: byte {offset} is NUL; do not name it"),
        }
    }
}

/// Reads UTF-8 text chunk by chunk.
pub(crate) struct Utf8Chunks<R> {
    reader: R,
    /// Bytes that were read and not given away: the start of a character, or white space held back.
    held: Vec<u8>,
    /// Bytes given away.
    offset: u64,
    started: bool,
    ended: bool,
}

impl<R: Read> Utf8Chunks<R> {
    pub(crate) fn new(reader: R) -> Utf8Chunks<R> {
        Utf8Chunks { reader, held: Vec::new(), offset: 0, started: false, ended: false }
    }

    /// The next chunk; `None` at the end. The first one is more than white space unless all of the text is
    /// white space.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<String>, TextError> {
        let mut wanted = CHUNK_BYTES;
        loop {
            self.fill(wanted).map_err(TextError::Io)?;
            let text = match std::str::from_utf8(&self.held) {
                Ok(text) => text,
                Err(error) if error.error_len().is_none() && !self.ended => {
                    std::str::from_utf8(&self.held[..error.valid_up_to()]).unwrap_or_default()
                }
                Err(error) => {
                    let offset = self.offset + error.valid_up_to() as u64;
                    return Err(TextError::NotText(NotText::Encoding { offset }));
                }
            };
            if let Some(at) = text.bytes().position(|byte| byte == 0) {
                return Err(TextError::NotText(NotText::Binary { offset: self.offset + at as u64 }));
            }
            if text.is_empty() {
                return Ok(None);
            }
            if !self.started && !self.ended && text.trim().is_empty() && text.len() < MOST_WHITE_SPACE {
                wanted = self.held.len() + CHUNK_BYTES;
                continue;
            }
            let chunk = text.to_owned();
            self.held.drain(..chunk.len());
            self.offset += chunk.len() as u64;
            self.started = true;
            return Ok(Some(chunk));
        }
    }

    /// Reads until so many bytes are held, or to the end.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while !self.ended && self.held.len() < wanted {
            let missing = (wanted - self.held.len()) as u64;
            self.ended = self.reader.by_ref().take(missing).read_to_end(&mut self.held)? == 0;
        }
        Ok(())
    }
}

/// The last character boundary of `text` at or below `limit` bytes.
pub(crate) fn boundary_below(text: &str, limit: u64) -> usize {
    let limit = usize::try_from(limit).map_or(text.len(), |limit| limit.min(text.len()));
    (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn chunks(bytes: &[u8], step: usize) -> Result<Vec<String>, NotText> {
        let mut reader = Utf8Chunks::new(Slow(bytes, step));
        let mut chunks = Vec::new();
        loop {
            match reader.next_chunk() {
                Ok(Some(chunk)) => chunks.push(chunk),
                Ok(None) => return Ok(chunks),
                Err(TextError::NotText(problem)) => return Err(problem),
                Err(TextError::Io(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn chunks_are_the_text_and_bounded() {
        for text in
            ["", "short", "é".repeat(CHUNK_BYTES).as_str(), &format!("a{}", "日本".repeat(CHUNK_BYTES / 2))]
        {
            for step in [1 << 16, 4_194_303] {
                let chunks = chunks(text.as_bytes(), step).unwrap();
                assert_eq!(chunks.concat(), text);
                assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_BYTES));
            }
        }
    }

    #[test]
    fn what_is_not_text_is_found_where_it_is() {
        assert_eq!(chunks(b"caf\xe9\n", 2), Err(NotText::Encoding { offset: 3 }));
        assert_eq!(chunks(b"cut \xe6\x97", 2), Err(NotText::Encoding { offset: 4 }));
        assert_eq!(chunks(b"a\0b", 9), Err(NotText::Binary { offset: 1 }));
        let mut late = vec![b'a'; CHUNK_BYTES + 5];
        late.push(0xff);
        assert_eq!(chunks(&late, 1 << 20), Err(NotText::Encoding { offset: CHUNK_BYTES as u64 + 5 }));
    }

    #[test]
    fn the_first_chunk_is_more_than_white_space() {
        let text = format!("{}word", "\n".repeat(CHUNK_BYTES * 2 + 3));
        let chunks = chunks(text.as_bytes(), 1 << 20).unwrap();
        assert!(!chunks[0].trim().is_empty());
        assert_eq!(chunks.concat(), text);
    }
}
