//! Parts of files into buffers.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use memmap2::MmapOptions;
use object_store::Error;
use object_store::path::Path as Key;

use super::sizes::{ALIGNMENT, PIECE_BYTES};
use super::{Disk, direct, is_unsupported, store_error};

/// What a read found.
#[derive(Debug)]
pub(crate) enum Read {
    /// The bytes asked for.
    Bytes(Bytes),
    /// A file of another length.
    Length(u64),
}

impl Disk {
    /// Reads `range`, at most [`PIECE_BYTES`], of a file that should be `length` bytes long. What is in the page cache comes
    /// from there, and so does everything if `cached`: then several processes of this machine read the same.
    pub(crate) fn read(
        &self,
        key: &Key,
        range: Range<u64>,
        length: u64,
        cached: bool,
    ) -> Result<Read, Error> {
        let path = self.store.path_to_filesystem(key)?;
        self.read_file(&path, range, length, cached).map_err(|error| store_error(&path, error))
    }

    fn read_file(&self, path: &Path, range: Range<u64>, length: u64, cached: bool) -> io::Result<Read> {
        let file = File::open(path)?;
        let found = file.metadata()?.len();
        if found != length {
            return Ok(Read::Length(found));
        }
        let wanted = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        if wanted > PIECE_BYTES {
            return Err(io::Error::other(format!("{wanted} bytes at once, {PIECE_BYTES} at most")));
        }
        let mut buffer = self.buffers.take();
        let is_aligned = range.start.is_multiple_of(ALIGNMENT as u64);
        let mut fill_from =
            |file: &File, request: usize| fill(file, &mut buffer.all()[..request], range.start, wanted);
        if cached || !is_aligned || is_cached(&file, &range) {
            fill_from(&file, wanted)?;
        } else {
            let whole_units = wanted.next_multiple_of(ALIGNMENT);
            let read = direct(OpenOptions::new().read(true)).open(path);
            match read.and_then(|file| fill_from(&file, whole_units)) {
                Err(error) if is_unsupported(&error) => fill_from(&file, wanted)?,
                read => read?,
            }
        }
        Ok(Read::Bytes(buffer.share(wanted)))
    }
}

/// Whether all of `range`, which begins at a page's start, is in the page cache. Asking reads nothing.
fn is_cached(file: &File, range: &Range<u64>) -> bool {
    let length = (range.end - range.start) as usize;
    // SAFETY: the mapping is never looked into, so that nobody's writing to the file can be seen through it.
    let Ok(map) = (unsafe { MmapOptions::new().offset(range.start).len(length).map(file) }) else {
        return false;
    };
    let mut pages = vec![0u8; length.div_ceil(rustix::param::page_size())];
    // SAFETY: the address and length are those of a mapping that lives, and there is a byte for each of its pages.
    let answer = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), length, pages.as_mut_ptr().cast()) };
    answer == 0 && pages.iter().all(|page| page & 1 == 1)
}

/// Reads into `buffer` from `start` on until it has the `wanted` bytes. A call asks for all of `buffer`, which may
/// be longer: a direct transfer is of whole units, though the file may end before.
fn fill(file: &File, buffer: &mut [u8], start: u64, wanted: usize) -> io::Result<()> {
    let mut filled = 0;
    while filled < wanted {
        match file.read_at(&mut buffer[filled..], start + filled as u64) {
            Ok(0) => {
                let text = format!("the file ends after {filled} of {wanted} bytes from {start} on");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
