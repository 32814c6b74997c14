//! Documents of a corpus, one after another, the same in every pass.

use std::cell::Cell;
use std::io::{BufRead, BufReader, ErrorKind, Read};

use super::content::{self, Content, Opened, Records, content_of, not_text, reading_failed};
use super::files::{Compression, FileState, Format, InputFile, Inputs, UNREADABLE};
use super::json_line::{self, Line};
use super::meta::SourceCount;
use super::reading::{FileCount, Offered, Pass, PassReport, Reading, Visit};
use super::table::read_parquet;
use super::text::{CHUNK_BYTES, TextError, Utf8Chunks};
use crate::error::DataError;

/// A line of JSON, and a text that cannot be cut, may have so many bytes.
pub(crate) const MOST_RECORD_BYTES: u64 = 256 << 20;

const PIPED_TABLE: &str = "a parquet file cannot be read from a pipe; copy it into a file";

/// The files, and how to read them.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) inputs: Inputs,
    pub(crate) records: Records,
    /// Text is read up to here.
    pub(crate) max_bytes: u64,
}

impl Corpus {
    /// Calls `visit` with every document, in order, until the byte limit, which cuts the last one. Documents
    /// of white space only are passed over. Refuses files that change from their listing to the end of the
    /// pass.
    pub(crate) fn read(&self, pass: &Pass<'_>, visit: &mut Visit<'_>) -> Result<PassReport, DataError> {
        let report = PassReport { left_out: self.inputs.left_out.clone(), ..PassReport::default() };
        let total_bytes = self.inputs.files.iter().map(|file| file.state.length()).sum();
        let mut reading = Reading::new(report, self.max_bytes, total_bytes, pass);
        for (index, file) in self.inputs.files.iter().enumerate() {
            if reading.is_full() {
                break;
            }
            reading.file(file, &self.records, visit)?;
            file.check_unchanged()?;
            let before = pass.before.and_then(|before| before.prints.get(index));
            if pass.before.is_some() && before != reading.report.prints.last() {
                let change = "its text is not what it was at the first reading".to_owned();
                return Err(DataError::InputChanged { path: file.path.clone(), change });
            }
            reading.base += file.state.length();
            reading.within.set(0);
        }
        Ok(reading.report)
    }
}

/// What became of one file.
struct FileRead {
    /// Its format, where it has one.
    format: Option<Format>,
    /// The kind under which it is left out.
    left_out: Option<&'static str>,
}

impl Reading<'_> {
    fn file(&mut self, file: &InputFile, records: &Records, visit: &mut Visit<'_>) -> Result<(), DataError> {
        let mut count = FileCount::default();
        let read = match self.documents(file, records, (&mut count, visit)) {
            Err(DataError::Io { source, .. })
                if source.kind() == ErrorKind::PermissionDenied && !file.named =>
            {
                FileRead { format: None, left_out: Some(UNREADABLE) }
            }
            Err(error) => return Err(self.damage_behind(file, error)),
            Ok(read) => read,
        };
        let kind = self.report.sources.entry(kind_of(file, read.format)).or_default();
        let has_text = count.count.documents > 0;
        kind.add(&SourceCount { files: has_text.into(), skipped_files: (!has_text).into(), ..count.count });
        if let Some(kind) = read.left_out.or_else(|| (!has_text).then_some("empty")) {
            self.report.left_out.entry(kind.to_owned()).or_default().add(&file.path);
        }
        self.report.prints.push(*count.print.finalize().as_bytes());
        Ok(())
    }

    /// The damage of a compressed file in the place of `error`, which may come of it: what is decompressed is
    /// wrong before its checksum shows it.
    fn damage_behind(&self, file: &InputFile, error: DataError) -> DataError {
        let is_of_content = matches!(error, DataError::Corpus { .. } | DataError::UnusableInput { .. });
        if !is_of_content || file.state == FileState::Stream {
            return error;
        }
        match self.check_compressed(file) {
            Err(damage @ (DataError::Corpus { .. } | DataError::Stopped)) => damage,
            _ => error,
        }
    }

    /// Decompresses a file to its end.
    fn check_compressed(&self, file: &InputFile) -> Result<(), DataError> {
        let unseen = Cell::new(0);
        let opened = content::open(file, &unseen)?;
        let compression = opened.compression;
        if compression == Compression::None {
            return Ok(());
        }
        let mut reader = opened.into_reader();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            self.tick()?;
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(reading_failed(file, compression, error)),
            }
        }
    }

    /// Offers the documents of a file.
    fn documents(
        &mut self,
        file: &InputFile,
        records: &Records,
        (count, visit): (&mut FileCount, &mut Visit<'_>),
    ) -> Result<FileRead, DataError> {
        let read = |format, left_out| Ok(FileRead { format: Some(format), left_out });
        // A pipe is not opened for nothing: that waits for its writer.
        let is_table = file.promised == Some(Format::Parquet);
        if is_table && file.state == FileState::Stream {
            return Err(file.unusable(PIPED_TABLE));
        }
        let within = Cell::new(0);
        let mut opened = content::open(file, &within)?;
        if opened.is_empty() {
            return Ok(FileRead { format: None, left_out: Some("empty") });
        }
        match content_of(file, &mut opened, records)? {
            Content::Foreign(kind) => Ok(FileRead { format: None, left_out: Some(kind) }),
            Content::Documents(Format::Parquet) if file.state == FileState::Stream => {
                Err(file.unusable(PIPED_TABLE))
            }
            Content::Documents(Format::Parquet) => {
                read_parquet(self, file, &records.text_key, &mut |reading, row| match row {
                    Some(offered) => reading.offer(offered, count, visit),
                    None => reading.skip_null(count),
                })?;
                read(Format::Parquet, None)
            }
            Content::Documents(Format::JsonLines) => {
                self.json_lines((file, &records.text_key), (opened, &within), (count, visit))?;
                read(Format::JsonLines, None)
            }
            Content::Documents(Format::Text) => {
                let left_out = self.text(file, (opened, &within), (count, visit))?;
                read(Format::Text, left_out)
            }
            Content::Doubtful(doubt) => {
                let left_out = self.text(file, (opened, &within), (count, visit))?;
                if left_out.is_none() {
                    self.report.doubts.entry(doubt.kind()).or_default().add(&file.path);
                }
                read(Format::Text, left_out)
            }
        }
    }

    /// Offers a text file; the kind under which it is left out where it has no text.
    fn text(
        &mut self,
        file: &InputFile,
        (opened, within): (Opened<'_>, &Cell<u64>),
        (count, visit): (&mut FileCount, &mut Visit<'_>),
    ) -> Result<Option<&'static str>, DataError> {
        let place = || file.path.display().to_string();
        let (compression, start) = (opened.compression, opened.start());
        let failed = |error| reading_failed(file, compression, error);
        // A file that was not named is looked through first: not being text must not show in the middle of a
        // document. What fits into one chunk shows it at once.
        let long = compression != Compression::None || file.state.length() > CHUNK_BYTES as u64;
        if !file.named && long {
            let unseen = Cell::new(0);
            let mut chunks = Utf8Chunks::new(content::open(file, &unseen)?.into_reader());
            loop {
                self.tick()?;
                match chunks.next_chunk() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(TextError::NotText(problem)) => return Ok(Some(problem.kind())),
                    Err(TextError::Io(error)) => return Err(failed(error)),
                }
            }
        }
        let mut chunks = Utf8Chunks::new(opened.into_reader());
        let mut found = None;
        let mut next = || match chunks.next_chunk() {
            Ok(chunk) => Ok(chunk),
            Err(TextError::NotText(problem)) if file.named => Err(file.unusable(not_text(problem, &start))),
            Err(TextError::NotText(problem)) => {
                found = Some(problem.kind());
                Ok(None)
            }
            Err(TextError::Io(error)) => Err(failed(error)),
        };
        let Some(first) = next()? else { return Ok(Some(found.unwrap_or("empty"))) };
        let mut rest = || {
            let chunk = next()?;
            Ok(chunk.map(|chunk| (chunk, within.get())))
        };
        let offered = Offered { first, repaired: false, place: &place, rest: Some(&mut rest) };
        self.offer(offered, count, visit)?;
        Ok((count.count.documents == 0).then_some("empty"))
    }

    fn json_lines(
        &mut self,
        (file, key): (&InputFile, &str),
        (opened, within): (Opened<'_>, &Cell<u64>),
        (count, visit): (&mut FileCount, &mut Visit<'_>),
    ) -> Result<(), DataError> {
        let compression = opened.compression;
        let mut lines = BufReader::with_capacity(1 << 20, opened.into_reader());
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            let read = lines.by_ref().take(MOST_RECORD_BYTES + 1).read_until(b'\n', &mut line);
            if read.map_err(|error| reading_failed(file, compression, error))? == 0 || self.is_full() {
                break;
            }
            let place = || format!("{}, line {number}", file.path.display());
            let failed = |problem| DataError::Corpus { place: place(), problem };
            if line.len() as u64 > MOST_RECORD_BYTES {
                return Err(failed(format!("it is longer than {} MiB", MOST_RECORD_BYTES >> 20)));
            }
            let mut text: &[u8] = line.trim_ascii();
            if number == 1 {
                text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
            }
            if text.is_empty() {
                continue;
            }
            self.within.set(within.get());
            match json_line::text_of(text, key).map_err(failed)? {
                Line::Text { text, repaired } => {
                    let offered = Offered { first: text, repaired, place: &place, rest: None };
                    self.offer(offered, count, visit)?;
                }
                Line::Null => self.skip_null(count)?,
            }
        }
        Ok(())
    }
}

/// The name under which a file is counted: its extension, and its format where that does not say it.
fn kind_of(file: &InputFile, format: Option<Format>) -> String {
    let kind = file.kind();
    match format {
        Some(Format::JsonLines) if file.promised.is_none() && !file.is_json() => {
            format!("{kind} (JSON lines)")
        }
        Some(Format::Parquet) if file.promised != Some(Format::Parquet) => format!("{kind} (parquet)"),
        Some(Format::Text) if file.promised.is_some() => format!("{kind} (text)"),
        _ => kind,
    }
}
