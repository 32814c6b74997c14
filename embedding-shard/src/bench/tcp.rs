//! The limit of an exchange: the same bytes in the same directions over plain connections between the same processes.
//! Large writes from warm buffers, Reno instead of the pacing congestion control that slows loopback.
//!
//! A request is two u64: bytes that the server sends, bytes that it takes; one byte answers when it has taken them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use rustix::net::sockopt;

use super::error::BenchError;

/// Bytes of one read or write.
const BLOCK_BYTES: usize = 1 << 20;

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
    let mut block = vec![1; BLOCK_BYTES];
    loop {
        let mut request = [[0u8; 8]; 2];
        stream.read_exact(request.as_flattened_mut())?;
        let [down, up] = request.map(u64::from_le_bytes);
        send(&mut stream, &block, down)?;
        take(&mut stream, &mut block, up)?;
        stream.write_all(&[1])?;
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Where there is no Reno, both sides of the comparison do without.
    let _without_reno = sockopt::set_tcp_congestion(stream, "reno");
    Ok(())
}

fn send(stream: &mut TcpStream, block: &[u8], bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len() as u64) as usize;
        stream.write_all(&block[..part])?;
        left -= part as u64;
    }
    Ok(())
}

fn take(stream: &mut TcpStream, block: &mut [u8], bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len() as u64) as usize;
        match stream.read(&mut block[..part])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left -= read as u64,
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
            Ok((stream, vec![1; BLOCK_BYTES]))
        };
        let all = servers.iter().flat_map(|address| std::iter::repeat_n(address, each));
        let lines = all.map(connect).collect::<io::Result<_>>();
        Ok(Lines { lines: lines.map_err(BenchError::io("cannot connect for the TCP limit"))?, each })
    }

    /// Seconds to get `down[i]` bytes from server `i` and give it `up[i]`, all servers at once.
    pub(super) fn exchange(&mut self, down: &[u64], up: &[u64]) -> Result<f64, BenchError> {
        let each = self.each;
        let start = Instant::now();
        let results: Vec<Result<(), BenchError>> = std::thread::scope(|scope| {
            let one = |(index, (stream, block)): (usize, &mut (TcpStream, Vec<u8>))| {
                let share = |bytes: &[u64]| bytes[index / each] / each as u64;
                request(stream, block, share(down), share(up)).map_err(BenchError::io("the TCP limit"))
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

fn request(stream: &mut TcpStream, block: &mut [u8], down: u64, up: u64) -> io::Result<()> {
    stream.write_all([down, up].map(u64::to_le_bytes).as_flattened())?;
    take(stream, block, down)?;
    send(stream, block, up)?;
    stream.read_exact(&mut block[..1])
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
            for bytes in [0, 2, 3 << 20] {
                assert!(lines.exchange(&[bytes, 0], &[0, bytes]).unwrap() > 0.0);
            }
        }
    }
}
