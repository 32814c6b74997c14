use std::io::{self, IoSlice};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use polygram_domain::philox::{Purpose, Stream};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn pair(capacity: usize) -> (RingWriter, RingReader) {
    let (near, far) = ring(capacity).unwrap();
    (RingWriter::open(near).unwrap(), RingReader::open(far).unwrap())
}

/// The byte at place `at` of a stream.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

async fn write_stream(mut writer: RingWriter, random: Stream, total: u64) -> RingWriter {
    let mut at = 0;
    for round in 0.. {
        if at == total {
            break;
        }
        let words = random.words(1, round);
        let sizes = words.map(|word| u64::from(word % [7, 300, 9000, 400_000][word as usize >> 30]));
        let mut slices = Vec::new();
        for size in sizes {
            let size = size.min(total - at);
            slices.push((at..at + size).map(byte).collect::<Vec<u8>>());
            at += size;
        }
        let mut slices: Vec<IoSlice<'_>> = slices.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let written = writer.write_vectored(rest).await.unwrap();
            assert!(written > 0);
            IoSlice::advance_slices(&mut rest, written);
        }
    }
    writer
}

async fn read_stream(mut reader: RingReader, random: Stream, seed: u64) -> u64 {
    let mut at = 0;
    for round in 0.. {
        let [word, kind, ..] = random.words(2, round);
        let mut bytes = vec![0; 1 + (word % [7, 300, 9000, 400_000][kind as usize >> 30]) as usize];
        let read = reader.read(&mut bytes).await.unwrap();
        if read == 0 {
            break;
        }
        for (i, &found) in bytes[..read].iter().enumerate() {
            assert_eq!(found, byte(at + i as u64), "seed {seed:#x}, byte {}", at + i as u64);
        }
        at += read as u64;
    }
    at
}

/// Two processes would share a ring in each direction; two tasks on two threads do the same here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_cross_in_both_directions() {
    for seed in 0..24u64 {
        let capacity = [4 << 10, 16 << 10, 256 << 10][seed as usize % 3];
        let random = |salt: u64| Stream::new(seed * 4 + salt, Purpose::SyntheticData);
        let total = |salt: u64| 1_000_000 + u64::from(random(salt).words(9, 9)[0] % 1_000_000);
        let ((a_out, b_in), (b_out, a_in)) = (pair(capacity), pair(capacity));
        let a = tokio::spawn(write_stream(a_out, random(0), total(0)));
        let b = tokio::spawn(write_stream(b_out, random(1), total(1)));
        let at_b = tokio::spawn(read_stream(b_in, random(2), seed));
        let at_a = tokio::spawn(read_stream(a_in, random(3), seed));
        let mut a = timeout(PATIENCE, a).await.unwrap().unwrap();
        a.shutdown().await.unwrap();
        drop(timeout(PATIENCE, b).await.unwrap().unwrap());
        assert_eq!(timeout(PATIENCE, at_b).await.unwrap().unwrap(), total(0), "after an orderly end");
        assert_eq!(timeout(PATIENCE, at_a).await.unwrap().unwrap(), total(1), "after a sudden end");
    }
}

/// The counts run over: a stream near the end of u64 goes on.
#[tokio::test]
async fn counts_wrap_around() {
    let (mut writer, mut reader) = pair(4 << 10);
    for count in [u64::MAX - 5000, u64::MAX - 1] {
        (writer.written, reader.taken) = (count, count);
        writer.memory.publish_written(count);
        reader.memory.publish_taken(count);
        for round in 0..5u8 {
            writer.write_all(&[round; 3000]).await.unwrap();
            let mut bytes = [0; 3000];
            reader.read_exact(&mut bytes).await.unwrap();
            assert_eq!(bytes, [round; 3000]);
        }
    }
}

#[tokio::test]
async fn a_reader_gets_what_a_dead_writer_left() {
    for bytes in (0..=4096).step_by(97).chain([4095, 4096]) {
        let (mut writer, reader) = pair(4 << 10);
        let reads = tokio::spawn(read_stream(reader, Stream::new(7, Purpose::SyntheticData), 7));
        if bytes % 2 == 0 {
            // The reader sleeps already.
            tokio::task::yield_now().await;
        }
        let all: Vec<u8> = (0..bytes).map(byte).collect();
        writer.write_all(&all).await.unwrap();
        drop(writer);
        assert_eq!(timeout(PATIENCE, reads).await.unwrap().unwrap(), bytes, "{bytes} bytes before the end");
    }
}

#[tokio::test]
async fn a_writer_learns_that_its_reader_is_dead() {
    for bytes in (0..12_000).step_by(811) {
        let (mut writer, mut reader) = pair(4 << 10);
        let writes = tokio::spawn(async move {
            loop {
                if let Err(error) = writer.write_all(&[1; 1000]).await {
                    return error;
                }
            }
        });
        reader.read_exact(&mut vec![0; bytes]).await.unwrap();
        drop(reader);
        let error = timeout(PATIENCE, writes).await.unwrap().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "after {bytes} bytes: {error}");
    }
}

/// A second mapping of a ring's memory, as a hostile peer has it.
fn hostile(end: &RingEnd) -> MmapRaw {
    MmapOptions::new().map_raw(&end.descriptors()[0]).unwrap()
}

fn forge(map: &MmapRaw, at: usize, value: u64) {
    // SAFETY: `at` is inside the first page of the mapping and a multiple of 8.
    let count = unsafe { std::sync::atomic::AtomicU64::from_ptr(map.as_mut_ptr().add(at).cast()) };
    count.store(value, std::sync::atomic::Ordering::SeqCst);
}

#[tokio::test]
async fn counts_that_cannot_be_are_errors() {
    for nonsense in [4097, 1 << 40, u64::MAX - 5000, u64::MAX / 2] {
        let (near, far) = ring(4 << 10).unwrap();
        let map = hostile(&far);
        let (mut writer, mut reader) = (RingWriter::open(near).unwrap(), RingReader::open(far).unwrap());
        forge(&map, 0, nonsense);
        let error = reader.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains(&nonsense.to_string()), "{error}");
        forge(&map, 128, nonsense);
        let error = writer.write(&[0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}

/// Noise in all of a ring's counts and flags, while both sides use it: an error or any bytes, and always an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_in_the_memory_harms_nobody() {
    let seed = 0x5eed_u64;
    let random = Stream::new(seed, Purpose::SyntheticData);
    let mut errors = 0;
    for round in 0..60u64 {
        let (near, far) = ring(4 << 10).unwrap();
        let map = hostile(&near);
        let (mut writer, mut reader) = (RingWriter::open(near).unwrap(), RingReader::open(far).unwrap());
        let writes = tokio::spawn(async move {
            for _ in 0..200 {
                writer.write_all(&[3; 777]).await?;
            }
            io::Result::Ok(())
        });
        let reads = tokio::spawn(async move {
            let mut bytes = [0; 500];
            while reader.read(&mut bytes).await? > 0 {}
            io::Result::Ok(())
        });
        for i in 0..20u64 {
            let [at, value, kind, _] = random.words(round, i);
            let value = [u64::from(value % 9000), u64::from(value) << 20][kind as usize % 2];
            forge(&map, [0, 128, 256, 384][at as usize % 4], value);
            tokio::task::yield_now().await;
        }
        // Whatever the two believe now, the end of one is seen by the other; each may wait for the other only as
        // long as it lives, as on a socket whose peer says nothing.
        let quiet = Duration::from_millis(20);
        for mut task in [writes, reads] {
            let ended = match timeout(quiet, &mut task).await {
                Ok(ended) => ended,
                Err(_) => {
                    task.abort();
                    timeout(PATIENCE, task).await.expect("a side that cannot be ended")
                }
            };
            match ended {
                Ok(ended) => errors += u32::from(ended.is_err()),
                Err(joined) => assert!(joined.is_cancelled(), "seed {seed:#x}, round {round}: {joined}"),
            }
        }
    }
    assert!(errors > 10, "seed {seed:#x}: only {errors} errors");
}

#[tokio::test]
async fn only_sealed_memory_is_mapped() {
    let memory = |bytes: u64, seals: SealFlags| {
        let memory = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&memory, bytes).unwrap();
        fcntl_add_seals(&memory, seals).unwrap();
        RingEnd::new(memory, polygram_same_host::bells().unwrap().0)
    };
    let fixed = SealFlags::SHRINK | SealFlags::GROW;
    let refused = |end: RingEnd| RingReader::open(end).unwrap_err().to_string();
    assert!(refused(memory(8192, SealFlags::GROW)).contains("change its size"));
    for bytes in [0, 4096, 8191, 4096 + 3000, 4096 + 12_288] {
        assert!(refused(memory(bytes, fixed)).contains("not the size"), "{bytes}");
    }
    assert!(RingReader::open(memory(8192, fixed)).is_ok());
    assert!(ring(5000).is_err() && ring(2048).is_err());
}
