//! Accepting connections, whatever happens: a failing `accept` ends nothing. The peer was gone before it was accepted, or
//! the process is out of files or memory; it is said once, and tried again after a pause.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;

/// Pause after a failing `accept`, doubled up to [`LONGEST_PAUSE`] while it fails.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A listener whose `accept` always succeeds in the end.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    failures: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Acceptor {
    /// Accepts the connections of `listener`.
    pub fn new(listener: TcpListener) -> Acceptor {
        Acceptor { listener, failures: 0, pause: None }
    }

    /// The next connection. Dropping the future loses nothing.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<(TcpStream, SocketAddr)> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok(accepted) => {
                    if self.failures > 0 {
                        tracing::info!(failures = self.failures, "connections are accepted again");
                        self.failures = 0;
                    }
                    return Poll::Ready(accepted);
                }
                Err(error) => self.pause = Some(Box::pin(sleep(self.failed(&error)))),
            }
        }
    }

    /// How long to pause after one more failure.
    fn failed(&mut self, error: &io::Error) -> Duration {
        if self.failures == 0 {
            tracing::error!(%error, "cannot accept a connection; trying again until it works");
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

/// For servers that take a stream of connections; it never ends and has no errors.
impl Stream for Acceptor {
    type Item = io::Result<TcpStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<TcpStream>>> {
        let (stream, _) = ready!(self.poll_accept(cx));
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "nodelay not set");
        }
        Poll::Ready(Some(Ok(stream)))
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// Whatever fails, it is tried again, ever more slowly up to a limit, and soon again after a success.
    #[tokio::test]
    async fn a_failing_accept_is_tried_again_after_a_pause() {
        let mut acceptor = Acceptor::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let errors =
            [Errno::CONNABORTED, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM];
        let pauses = errors.into_iter().cycle().take(40).map(|error| acceptor.failed(&error.into()));
        let pauses: Vec<Duration> = pauses.collect();
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!((pauses[0], pauses[39]), (FIRST_PAUSE, LONGEST_PAUSE));
        let address = acceptor.listener.local_addr().unwrap();
        let (_near, _far) = tokio::join!(TcpStream::connect(address), acceptor.accept());
        assert_eq!(acceptor.failed(&Errno::MFILE.into()), FIRST_PAUSE);
    }
}
