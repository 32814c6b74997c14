//! Segments: what is written is read; what is damaged is refused with a clear message, never a panic.

#![allow(clippy::unwrap_used)] // a test's own files

use std::fs;
use std::path::Path;

use polygram_data::segment::Existing;
use polygram_data::segment::index::IndexLayout;
use polygram_data::{DataError, Dtype, Segment, SegmentWriter, TokenSource, inspect};
use proptest::prelude::*;

fn write(folder: &Path, dtype: Dtype, documents: &[Vec<u32>]) -> String {
    let path = folder.join("part.v1").to_str().unwrap().to_owned();
    let mut writer = SegmentWriter::create(&path, dtype, Existing::Replace).unwrap();
    for document in documents {
        writer.push(document).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn documents() -> Vec<Vec<u32>> {
    vec![vec![5, 6, 2], vec![2], vec![], vec![7, 8, 9, 10, 2], vec![11, 2]]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn round_trip(documents in prop::collection::vec(prop::collection::vec(0u32..128, 0..40), 0..20), code in prop::sample::select(vec![1u8, 2, 3, 4, 5, 8])) {
        let folder = tempfile::tempdir().unwrap();
        let dtype = Dtype::from_code(code).unwrap();
        let path = write(folder.path(), dtype, &documents);
        let segment = Segment::open(&path).unwrap();
        let tokens = documents.concat();
        prop_assert_eq!((segment.dtype(), segment.documents(), segment.sequences()), (dtype, documents.len(), documents.len()));
        prop_assert_eq!(segment.token_count(), tokens.len() as u64);
        prop_assert_eq!(&segment.read(0..tokens.len() as u64).unwrap(), &tokens);
        for i in 0..tokens.len() {
            prop_assert_eq!(segment.read(i as u64..i as u64 + 1).unwrap(), &tokens[i..=i]);
        }
        let mut owners = documents.iter().enumerate().flat_map(|(d, tokens)| tokens.iter().map(move |_| d as u64));
        for position in 0..tokens.len() as u64 {
            prop_assert_eq!(Some(segment.document_of(position)), owners.next());
        }
        prop_assert!(segment.read(1..tokens.len() as u64 + 1).is_err());
    }

    /// Bytes changed, cut off or added anywhere: parsing answers, and an accepted layout is within bounds.
    #[test]
    fn mutated_indexes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), words in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![0u64, 1, u64::MAX, i64::MAX as u64, 1 << 61, 1 << 32])), 0..2), cut in prop::option::of(any::<prop::sample::Index>()), more in 0usize..9) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), Dtype::U16, &documents());
        let mut bytes = fs::read(format!("{path}.idx")).unwrap();
        for (at, word) in &words {
            let at = at.index(bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes.extend(vec![0; more]);
        if let Ok(layout) = IndexLayout::parse(&bytes) {
            for position in [0, 5, 10, u64::MAX] {
                layout.document_of(&bytes, position);
            }
        }
        fs::write(format!("{path}.idx"), &bytes).unwrap();
        if let Ok(segment) = Segment::open(&path) {
            prop_assert!(segment.read(0..segment.token_count()).is_ok());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), marked: bool) {
        let mut bytes = bytes;
        if marked && bytes.len() >= 18 {
            bytes[..18].copy_from_slice(b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x08");
        }
        let _ = IndexLayout::parse(&bytes);
    }
}

/// The message of opening a segment whose `.idx` bytes were changed.
fn refusal(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), Dtype::U16, &documents());
    let mut bytes = fs::read(format!("{path}.idx")).unwrap();
    change(&mut bytes);
    fs::write(format!("{path}.idx"), bytes).unwrap();
    let message = Segment::open(&path).unwrap_err().to_string();
    assert!(message.contains("part.v1.idx") && message.contains("again"), "{message}");
    message
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn damaged_indexes_are_refused_clearly() {
    assert!(refusal(|b| b[0] = b'X').contains("mark"));
    assert!(refusal(|b| b.clear()).contains("mark"));
    assert!(refusal(|b| b.truncate(20)).contains("header"));
    assert!(refusal(|b| b.truncate(60)).contains("cut short"));
    assert!(refusal(|b| b.extend([0; 4])).contains("has 146 bytes"));
    assert!(refusal(|b| put(b, 9, 2)).contains("version is 2"));
    assert!(refusal(|b| b[17] = 6).contains("floating-point"));
    assert!(refusal(|b| b[17] = 99).contains("unknown"));
    assert!(refusal(|b| put(b, 18, u64::MAX)).contains("cut short"));
    assert!(refusal(|b| put(b, 26, 1 << 60)).contains("cut short"));
    assert!(refusal(|b| b[34 + 3] = 0x80).contains("length -"));
    assert!(refusal(|b| put(b, 34 + 20 + 8, 7)).contains("sequence 1"));
    assert!(refusal(|b| put(b, 34 + 60, 1)).contains("first document"));
    assert!(refusal(|b| put(b, 34 + 60 + 16, 99)).contains("document mark 2"));
    assert!(refusal(|b| put(b, 34 + 60 + 16, u64::MAX)).contains("document mark 2"));
}

#[test]
fn modes_after_the_marks_are_legal() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), Dtype::I32, &documents());
    let idx = format!("{path}.idx");
    let mut bytes = fs::read(&idx).unwrap();
    bytes.extend([0; 5]);
    fs::write(&idx, bytes).unwrap();
    assert_eq!(Segment::open(&path).unwrap().token_count(), 11);
}

#[test]
fn missing_and_mismatched_files_are_refused_clearly() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let error = Segment::open(nowhere.to_str().unwrap()).unwrap_err();
    assert!(matches!(&error, DataError::Missing { path, .. } if path.ends_with("nowhere.idx")), "{error}");

    let path = write(folder.path(), Dtype::U16, &documents());
    let bin = format!("{path}.bin");
    let bytes = fs::read(&bin).unwrap();
    for wrong in [&bytes[..bytes.len() - 1], &[], &[bytes.as_slice(), &[0, 0]].concat()] {
        fs::write(&bin, wrong).unwrap();
        let error = Segment::open(&path).unwrap_err();
        assert!(matches!(error, DataError::BinSize { expected: 22, .. }), "{error}");
    }
    fs::remove_file(&bin).unwrap();
    assert!(matches!(Segment::open(&path), Err(DataError::Missing { .. })));
}

#[test]
fn tokens_outside_the_vocabulary_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), Dtype::I32, &documents());
    let segment = Segment::open(&path).unwrap();
    segment.check_tokens(12).unwrap();
    let error = segment.check_tokens(9).unwrap_err();
    assert!(
        matches!(error, DataError::TokenRange { document: 3, position: 6, token: 9, vocab: 9, .. }),
        "{error}"
    );
    assert_eq!(segment.largest_token().unwrap(), Some(11));

    // A negative token is refused wherever it is met.
    let bin = format!("{path}.bin");
    let mut bytes = fs::read(&bin).unwrap();
    bytes[8 * 4..9 * 4].copy_from_slice(&(-3i32).to_le_bytes());
    drop(segment);
    fs::write(&bin, bytes).unwrap();
    let segment = Segment::open(&path).unwrap();
    assert!(segment.read(0..8).is_ok());
    for error in [
        segment.read(0..11).unwrap_err(),
        segment.check_tokens(100).unwrap_err(),
        inspect(&path).unwrap_err(),
    ] {
        assert!(matches!(error, DataError::TokenRange { position: 8, token: -3, .. }), "{error}");
    }
}

#[test]
fn inspection_says_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), Dtype::U16, &documents());
    for name in [path.clone(), format!("{path}.bin"), format!("{path}.idx")] {
        let found = inspect(&name).unwrap();
        assert_eq!(
            (found.dtype, found.documents, found.sequences, found.tokens, found.max_token),
            (Dtype::U16, 5, 5, 11, Some(11))
        );
        assert_eq!(found.first_tokens, documents().concat());
    }
    let empty = inspect(&write(folder.path(), Dtype::U16, &[])).unwrap();
    assert_eq!((empty.tokens, empty.max_token, empty.first_tokens), (0, None, vec![]));
}

#[test]
fn writing_is_atomic_and_does_not_overwrite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x").to_str().unwrap().to_owned();
    let listed = || fs::read_dir(folder.path()).unwrap().count();

    let mut writer = SegmentWriter::create(&path, Dtype::U16, Existing::Refuse).unwrap();
    writer.push(&[1, 2]).unwrap();
    assert!(writer.push(&[70_000]).unwrap_err().to_string().contains("at most 65535"));
    assert!(!Path::new(&format!("{path}.bin")).exists());
    drop(writer);
    assert_eq!(listed(), 0, "an unfinished segment leaves nothing");

    let mut writer = SegmentWriter::create(&path, Dtype::U16, Existing::Refuse).unwrap();
    writer.push(&[1, 2]).unwrap();
    writer.finish().unwrap();
    assert_eq!(listed(), 2);
    let error = SegmentWriter::create(&path, Dtype::U16, Existing::Refuse).unwrap_err();
    assert!(matches!(error, DataError::Exists { .. }), "{error}");
    assert_eq!(Segment::open(&path).unwrap().token_count(), 2);
}

/// A rename would put a file in the place of a link or a folder, even where replacing was asked for.
#[test]
fn what_is_no_regular_file_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x").to_str().unwrap().to_owned();
    let target = folder.path().join("target");
    fs::write(&target, "kept").unwrap();
    std::os::unix::fs::symlink(&target, format!("{path}.bin")).unwrap();
    let error = SegmentWriter::create(&path, Dtype::U16, Existing::Replace).unwrap_err();
    assert!(error.to_string().contains("x.bin is a symbolic link"), "{error}");
    fs::remove_file(format!("{path}.bin")).unwrap();
    // A link that leads nowhere is there as well.
    std::os::unix::fs::symlink("nowhere", format!("{path}.idx")).unwrap();
    assert!(matches!(
        SegmentWriter::create(&path, Dtype::U16, Existing::Refuse),
        Err(DataError::NotAFile { .. })
    ));
    fs::remove_file(format!("{path}.idx")).unwrap();
    fs::create_dir(format!("{path}.bin")).unwrap();
    let error = SegmentWriter::create(&path, Dtype::U16, Existing::Replace).unwrap_err();
    assert!(error.to_string().contains("x.bin is no regular file"), "{error}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
}

/// Parts of a document make one sequence, and an open document is no segment.
#[test]
fn a_document_is_written_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x").to_str().unwrap().to_owned();
    let mut writer = SegmentWriter::create(&path, Dtype::U16, Existing::Refuse).unwrap();
    writer.push_part(&[1, 2]).unwrap();
    writer.push_part(&[3]).unwrap();
    writer.end_document().unwrap();
    writer.push(&[4]).unwrap();
    writer.finish().unwrap();
    let segment = Segment::open(&path).unwrap();
    assert_eq!((segment.documents(), segment.token_count()), (2, 4));
    assert_eq!((segment.document_of(2), segment.document_of(3)), (0, 1));
    let mut open = SegmentWriter::create(&path, Dtype::U16, Existing::Replace).unwrap();
    open.push_part(&[1]).unwrap();
    assert!(open.finish().is_err());
    assert_eq!(Segment::open(&path).unwrap().token_count(), 4, "the older segment stays");
}
