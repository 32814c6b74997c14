//! SIGINT and SIGTERM as requests to end the run. What this process inherited as ignored stays ignored.

use std::io;

use polygram_process::StopSignal;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Listens for signals from now on. Each one sends its name; the task ends with the receiver.
pub fn listen() -> io::Result<(mpsc::Receiver<String>, JoinHandle<()>)> {
    let mut interrupt = StopSignal::listen(SignalKind::interrupt())?;
    let mut terminate = StopSignal::listen(SignalKind::terminate())?;
    let (sender, receiver) = mpsc::channel(4);
    let task = tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                () = interrupt.recv() => "SIGINT",
                () = terminate.recv() => "SIGTERM",
                () = sender.closed() => return,
            };
            if sender.send(name.to_owned()).await.is_err() {
                return;
            }
        }
    });
    Ok((receiver, task))
}
