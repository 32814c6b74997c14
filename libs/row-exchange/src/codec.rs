//! Frames over a byte stream: whole frames in, vectored writes out, a deadline on every write.

use std::io::{self, IoSlice};
use std::time::Duration;

use rustix::net::sockopt;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::activity::{ReadActivity, Watched};
use super::frame::{Check, HEADER_BYTES, Incoming, MAX_PAYLOAD_BYTES, Outgoing, WireError};
use super::pool::{Buffers, PooledWords};
use super::ring::{RingReader, RingWriter};

/// Bytes that are read ahead, so that small frames cost one system call for many. Longer payloads go past it.
const READ_AHEAD_BYTES: usize = 8 << 10;
/// Slices handed to one vectored write.
const SLICES_PER_WRITE: usize = 128;

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The peer closed between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The stream failed, or ended within a frame.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// What came is not a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer took nothing for too long.
    #[error("the peer took no data for {0:?}")]
    Deadline(Duration),
}

/// The reading half of a connection, whatever it is made of.
pub type LinkReader = FrameReader<Box<dyn AsyncRead + Send + Unpin>>;
/// The writing half of a connection.
pub type LinkWriter = FrameWriter<Box<dyn AsyncWrite + Send + Unpin>>;

/// A frame whose payload is still to be read.
#[derive(Debug)]
pub struct Arriving {
    /// Its header. Nothing of it is verified before the payload is.
    pub incoming: Incoming,
    check: Check,
    /// Payload words that were not read yet.
    left: usize,
}

impl Arriving {
    /// Whether the frame came as it was sent. The whole payload must have been read.
    pub fn verify(self) -> Result<Incoming, WireError> {
        self.check.finish()?;
        Ok(self.incoming)
    }
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: BufReader<Watched<R>>,
    buffers: Buffers,
    /// Longer payloads are refused.
    limit_bytes: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream`, into memory that is used once.
    pub fn new(stream: R) -> FrameReader<R> {
        FrameReader::with_buffers(stream, Buffers::new(0))
    }

    /// Reads from `stream`, into memory of `buffers`.
    pub fn with_buffers(stream: R, buffers: Buffers) -> FrameReader<R> {
        let stream = BufReader::with_capacity(READ_AHEAD_BYTES, Watched::new(stream));
        FrameReader { stream, buffers, limit_bytes: MAX_PAYLOAD_BYTES }
    }

    /// Refuses payloads of more than `bytes` from now on.
    pub fn limit_payload(&mut self, bytes: usize) {
        self.limit_bytes = bytes.min(MAX_PAYLOAD_BYTES);
    }

    /// Whether bytes come.
    pub fn activity(&self) -> ReadActivity {
        self.stream.get_ref().activity.clone()
    }

    /// The next frame and its payload words, checksum verified. Not safe to cancel: a reader whose read was
    /// dropped is of no further use.
    pub async fn read(&mut self) -> Result<(Incoming, PooledWords), LinkError> {
        let arriving = self.begin().await?;
        self.read_rest(arriving, &[]).await
    }

    /// The next frame's header. All of its payload must be read before the next frame begins. Not safe to cancel, as
    /// all that follows.
    pub async fn begin(&mut self) -> Result<Arriving, LinkError> {
        let mut head = [0u8; HEADER_BYTES];
        let first = self.stream.read(&mut head).await?;
        if first == 0 {
            return Err(LinkError::Closed);
        }
        self.stream.read_exact(&mut head[first..]).await?;
        let incoming = Incoming::decode(&head)?;
        let bytes = 4 * incoming.payload_words;
        if bytes > self.limit_bytes {
            let (bytes, limit) = (bytes as u64, self.limit_bytes as u64);
            return Err(WireError::Oversize { bytes, limit }.into());
        }
        Ok(Arriving { incoming, check: incoming.check(), left: incoming.payload_words })
    }

    /// What is left of a payload whose words `begun` were read, and its beginning before it; checksum verified.
    pub async fn read_rest(
        &mut self,
        mut arriving: Arriving,
        begun: &[u32],
    ) -> Result<(Incoming, PooledWords), LinkError> {
        let mut payload = self.buffers.take(begun.len() + arriving.left);
        let (front, back) = payload.split_at_mut(begun.len());
        front.copy_from_slice(begun);
        self.read_into(&mut arriving, back).await?;
        Ok((arriving.verify()?, payload))
    }

    /// The next words of a payload, to where they belong. They are not verified before all of the frame is.
    ///
    /// # Errors
    /// A payload that has not so many words, and whatever ends the connection.
    pub async fn read_into(&mut self, arriving: &mut Arriving, words: &mut [u32]) -> Result<(), LinkError> {
        let Some(left) = arriving.left.checked_sub(words.len()) else {
            let rule = format!("{} words are left where {} belong", arriving.left, words.len());
            return Err(WireError::Malformed { message: "payload", rule }.into());
        };
        arriving.left = left;
        let mut rest: &mut [u8] = bytemuck::cast_slice_mut(words);
        // What has come is counted at once, while it is in the cache and the peer is busy with what follows.
        while !rest.is_empty() {
            let read = self.stream.read(rest).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let (here, after) = std::mem::take(&mut rest).split_at_mut(read);
            arriving.check.update(here);
            rest = after;
        }
        Ok(())
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    patience: Duration,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream`; a peer that takes nothing for `patience` is given up.
    pub fn new(stream: W, patience: Duration) -> FrameWriter<W> {
        FrameWriter { stream, patience }
    }

    /// Writes a whole frame.
    pub async fn write(&mut self, frame: &Outgoing) -> Result<(), LinkError> {
        let head = frame.head();
        let mut slices: Vec<IoSlice<'_>> =
            std::iter::once(&head[..]).chain(frame.payload()).map(IoSlice::new).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(SLICES_PER_WRITE)];
            let written = timeout(self.patience, self.stream.write_vectored(batch))
                .await
                .map_err(|_| LinkError::Deadline(self.patience))??;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }

    /// Says that nothing more will be written.
    pub async fn close(mut self) -> Result<(), LinkError> {
        timeout(self.patience, self.stream.shutdown())
            .await
            .map_err(|_| LinkError::Deadline(self.patience))?
            .map_err(LinkError::Io)
    }
}

/// The two halves of a connection over `stream`, set up for bulk frames: no Nagle delay and, between processes of one
/// host, Reno instead of a pacing congestion control (BBR halves the throughput of loopback). Both are best effort.
pub fn over_tcp(stream: TcpStream, patience: Duration, buffers: &Buffers) -> (LinkReader, LinkWriter) {
    let is_local = stream.peer_addr().is_ok_and(|address| address.ip().is_loopback());
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "nodelay not set");
    }
    if is_local && let Err(error) = sockopt::set_tcp_congestion(&stream, "reno") {
        tracing::debug!(%error, "congestion control not set");
    }
    let (reader, writer) = stream.into_split();
    (
        FrameReader::with_buffers(Box::new(reader), buffers.clone()),
        FrameWriter::new(Box::new(writer), patience),
    )
}

/// The two halves of a connection over a ring in each direction.
pub fn over_rings(
    (reader, writer): (RingReader, RingWriter),
    patience: Duration,
    buffers: &Buffers,
) -> (LinkReader, LinkWriter) {
    (
        FrameReader::with_buffers(Box::new(reader), buffers.clone()),
        FrameWriter::new(Box::new(writer), patience),
    )
}

#[cfg(test)]
mod tests {
    use polygram_domain::{Cell, Generation, Step};

    use super::*;
    use crate::frame::{Header, Kind, Piece};

    fn frame(words: Vec<Vec<u32>>) -> Outgoing {
        let header = Header {
            kind: Kind::Push,
            chunk: 0,
            run: 1,
            generation: Generation(1),
            step: Step(2),
            cell: Cell(3),
        };
        Outgoing::seal(&header, words.into_iter().map(Piece::Words).collect()).unwrap()
    }

    #[tokio::test]
    async fn frames_cross_a_narrow_pipe() {
        let (near, far) = tokio::io::duplex(100);
        let pieces: Vec<Vec<u32>> = (0..300).map(|i| vec![i; 1 + i as usize % 7]).collect();
        let expected = pieces.concat();
        let sender = tokio::spawn(async move {
            let mut writer = FrameWriter::new(near, Duration::from_secs(10));
            writer.write(&frame(pieces)).await.unwrap();
            writer.write(&frame(vec![vec![]])).await.unwrap();
        });
        let mut reader = FrameReader::new(far);
        assert_eq!(*reader.read().await.unwrap().1, *expected);
        assert!(reader.read().await.unwrap().1.is_empty());
        sender.await.unwrap();
        assert!(matches!(reader.read().await, Err(LinkError::Closed)));
    }

    #[tokio::test]
    async fn a_cut_frame_is_an_error() {
        let bytes = frame(vec![vec![1, 2, 3]]).to_bytes();
        for cut in 1..bytes.len() {
            let mut reader = FrameReader::new(&bytes[..cut]);
            assert!(matches!(reader.read().await, Err(LinkError::Io(_))), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_stuck_peer_is_given_up() {
        let (near, _far) = tokio::io::duplex(16);
        let mut writer = FrameWriter::new(near, Duration::from_millis(10));
        let error = writer.write(&frame(vec![vec![0; 100]])).await.unwrap_err();
        assert!(matches!(error, LinkError::Deadline(_)), "{error}");
    }
}
