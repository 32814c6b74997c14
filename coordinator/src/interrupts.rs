//! SIGINT and SIGTERM as requests to end the run.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Listens for signals from now on. Each one sends its name; the task ends with the receiver.
pub fn listen() -> io::Result<(mpsc::Receiver<String>, JoinHandle<()>)> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (sender, receiver) = mpsc::channel(4);
    let task = tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _some = interrupt.recv() => "SIGINT",
                _some = terminate.recv() => "SIGTERM",
                () = sender.closed() => return,
            };
            if sender.send(name.to_owned()).await.is_err() {
                return;
            }
        }
    });
    Ok((receiver, task))
}
