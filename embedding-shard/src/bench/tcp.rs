//! The limit of an exchange: the same bytes in the same directions over plain connections between the same processes.
//! Writes and reads of 1 MiB, Reno instead of the pacing congestion control that slows loopback.
//!
//! Both ends of a connection move bytes through a buffer that is used again and again. As long as the bytes, it is what
//! an exchange of rows has to do at least: they come from a memory of that size and end in one. As long as one write
//! ([`BLOCK_BYTES`]), it stays in the caches, and the figure is that of the network stack alone.
//!
//! A request is three u64: bytes that the server sends, bytes that it takes, bytes of its buffer; one byte answers when
//! it has taken them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use rustix::net::sockopt;

use super::error::BenchError;

/// Bytes of one read or write.
pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// Serves plain bytes on `listener` for as long as the process lives.
pub(super) fn serve(listener: TcpListener) -> io::Result<()> {
    std::thread::Builder::new().name("tcp-limit".into()).spawn(move || {
        for stream in listener.incoming() {
            // A connection that fails is the client's to notice.
            let Ok(stream) = stream else { return };
            let answered = std::thread::Builder::new().name("tcp-limit".into()).spawn(move || answer(stream));
            if answered.is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    prepare(&stream)?;
    let mut buffer = Vec::new();
    loop {
        let mut request = [[0u8; 8]; 3];
        stream.read_exact(request.as_flattened_mut())?;
        let [down, up, bytes] = request.map(u64::from_le_bytes);
        buffer.resize(bytes as usize, 1);
        send(&mut stream, &buffer, down)?;
        take(&mut stream, &mut buffer, up)?;
        stream.write_all(&[1])?;
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Where there is no Reno, both sides of the comparison do without.
    let _without_reno = sockopt::set_tcp_congestion(stream, "reno");
    Ok(())
}

fn send(stream: &mut TcpStream, buffer: &[u8], bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    for part in buffer.chunks(BLOCK_BYTES).cycle() {
        let part = &part[..left.min(part.len() as u64) as usize];
        stream.write_all(part)?;
        left -= part.len() as u64;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

fn take(stream: &mut TcpStream, buffer: &mut [u8], bytes: u64) -> io::Result<()> {
    let (mut left, mut at) = (bytes, 0);
    while left > 0 {
        let end = buffer.len().min(at + left.min(BLOCK_BYTES as u64) as usize);
        match stream.read(&mut buffer[at..end])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                left -= read as u64;
                at = (at + read) % buffer.len();
            }
        }
    }
    Ok(())
}

/// Plain connections to several servers, the same number to each.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Vec<(TcpStream, Vec<u8>)>,
    each: usize,
}

impl Lines {
    /// `each` connections to every one of `servers`.
    pub(super) fn connect(servers: &[SocketAddr], each: usize) -> Result<Lines, BenchError> {
        let connect = |address: &SocketAddr| {
            let stream = TcpStream::connect(address)?;
            prepare(&stream)?;
            Ok((stream, Vec::new()))
        };
        let all = servers.iter().flat_map(|address| std::iter::repeat_n(address, each));
        let lines = all.map(connect).collect::<io::Result<_>>();
        Ok(Lines { lines: lines.map_err(BenchError::io("cannot connect for the TCP limit"))?, each })
    }

    /// Seconds to get `down[i]` bytes from server `i` and give it `up[i]`, all servers at once, through buffers of
    /// `most` bytes at most a server. Buffers are made before the time runs.
    pub(super) fn exchange(&mut self, down: &[u64], up: &[u64], most: usize) -> Result<f64, BenchError> {
        let longest = down.iter().chain(up).copied().max().unwrap_or(0) as usize / self.each;
        let bytes = longest.min(most).max(1);
        for (_, buffer) in &mut self.lines {
            buffer.resize(bytes, 1);
        }
        let each = self.each;
        let start = Instant::now();
        let results: Vec<Result<(), BenchError>> = std::thread::scope(|scope| {
            let one = |(index, (stream, buffer)): (usize, &mut (TcpStream, Vec<u8>))| {
                let share = |bytes: &[u64]| bytes[index / each] / each as u64;
                request(stream, buffer, share(down), share(up)).map_err(BenchError::io("the TCP limit"))
            };
            let run = |line| scope.spawn(move || one(line));
            let threads: Vec<_> = self.lines.iter_mut().enumerate().map(run).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| BenchError::Thread)?).collect()
        });
        let seconds = start.elapsed().as_secs_f64();
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(seconds)
    }
}

fn request(stream: &mut TcpStream, buffer: &mut [u8], down: u64, up: u64) -> io::Result<()> {
    stream.write_all([down, up, buffer.len() as u64].map(u64::to_le_bytes).as_flattened())?;
    take(stream, buffer, down)?;
    send(stream, buffer, up)?;
    stream.read_exact(&mut [0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_both_ways() {
        let addresses = [(); 2].map(|()| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            serve(listener).unwrap();
            address
        });
        for each in [1, 2] {
            let mut lines = Lines::connect(&addresses, each).unwrap();
            for (bytes, most) in [(0, 1), (2, 1), (3 << 20, BLOCK_BYTES), (3 << 20, usize::MAX)] {
                assert!(lines.exchange(&[bytes, 0], &[0, bytes], most).unwrap() > 0.0);
            }
        }
    }
}
