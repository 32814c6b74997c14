//! The ranks that divide a model's experts among them, seen from the compute thread.
//!
//! Everything that travels is a [`Message`] to each rank: rows, and with them what they need. An exchange is begun and
//! ended in two calls; a thread of its own carries it meanwhile, so that other layers are computed while tokens
//! travel. A rank that holds all experts sends its messages to itself, without copies and without a thread.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};

use polygram_collective::{Collective, CollectiveError};
use polygram_domain::Rank;
use polygram_process::JoinedThread;
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// Words before the payload of a message: rows, counts, 1 where gates follow.
const HEADER_WORDS: usize = 3;

/// Rows for one rank, or from one.
#[derive(Debug)]
pub(crate) struct Message {
    /// Rows for each expert of the receiver, in order; empty where both sides know them.
    pub(crate) counts: Vec<u32>,
    /// `[c, D]` in the compute type.
    pub(crate) rows: Tensor,
    /// `[c]` f32.
    pub(crate) gates: Option<Tensor>,
}

/// What all messages of a model have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageShape {
    /// D.
    pub(crate) width: i64,
    /// The compute type.
    pub(crate) kind: Kind,
    /// Where tensors live.
    pub(crate) device: Device,
}

/// Is told whether the compute thread waits for other ranks.
pub type ExchangeWatch = Box<dyn FnMut(bool) + Send>;

/// This rank's seat among the ranks that hold all experts together.
#[derive(Debug)]
pub(crate) struct ExpertGroup {
    shape: MessageShape,
    path: Path,
}

#[derive(Debug)]
enum Path {
    /// All experts are here; the messages on their way to this rank itself.
    Alone(Option<Message>),
    /// The messages to this rank itself, and the thread that carries the others.
    Shared { own: Option<Message>, carrier: Carrier },
}

/// What each rank sent.
type Received = std::result::Result<Vec<Vec<u8>>, CollectiveError>;

/// The thread that carries messages.
struct Carrier {
    rank: usize,
    members: Vec<Rank>,
    orders: Sender<Vec<Vec<u8>>>,
    answers: Receiver<Received>,
    watch: ExchangeWatch,
    /// Joined last, when `orders` are closed.
    thread: JoinedThread,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carrier")
            .field("rank", &self.rank)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl ExpertGroup {
    /// A rank that holds all experts.
    pub(crate) fn alone(shape: MessageShape) -> ExpertGroup {
        ExpertGroup { shape, path: Path::Alone(None) }
    }

    /// Takes a seat of `collective`, whose ranks hold the experts in the order of their seats. Dropping the group while an
    /// exchange is under way waits for that exchange: abort `collective` first.
    pub(crate) fn join(&mut self, collective: Box<dyn Collective>, watch: ExchangeWatch) -> Result<()> {
        if collective.world_size() > 1 {
            self.path = Path::Shared { own: None, carrier: Carrier::start(collective, watch)? };
        }
        Ok(())
    }

    /// Ranks in the group.
    pub(crate) fn size(&self) -> usize {
        match &self.path {
            Path::Alone(_) => 1,
            Path::Shared { carrier, .. } => carrier.members.len(),
        }
    }

    /// Begins an exchange of one message for each rank, by rank.
    pub(crate) fn start(&mut self, mut messages: Vec<Message>) -> Result<()> {
        debug_assert_eq!(messages.len(), self.size(), "one message for each rank");
        match &mut self.path {
            Path::Alone(pending) => *pending = messages.pop(),
            Path::Shared { own, carrier } => {
                let mut bytes = Vec::with_capacity(messages.len());
                for (rank, message) in messages.into_iter().enumerate() {
                    if rank == carrier.rank {
                        *own = Some(message);
                        bytes.push(Vec::new());
                    } else {
                        bytes.push(encode(&message)?);
                    }
                }
                carrier.send(bytes)?;
            }
        }
        Ok(())
    }

    /// Ends it: the message of each rank, by rank.
    pub(crate) fn finish(&mut self) -> Result<Vec<Message>> {
        let not_begun = || ModelError::Torch("an expert exchange was ended that was not begun".into());
        match &mut self.path {
            Path::Alone(pending) => Ok(vec![pending.take().ok_or_else(not_begun)?]),
            Path::Shared { own, carrier } => {
                let received = carrier.receive()?;
                let mut messages = Vec::with_capacity(received.len());
                for (rank, bytes) in received.iter().enumerate() {
                    messages.push(if rank == carrier.rank {
                        own.take().ok_or_else(not_begun)?
                    } else {
                        let sender = carrier.members[rank];
                        decode(bytes, self.shape)
                            .map_err(|problem| ModelError::Message { rank: sender, problem })?
                    });
                }
                Ok(messages)
            }
        }
    }

    /// A message without rows; `counts` of them are zeros.
    pub(crate) fn empty(&self, counts: usize, gates: bool) -> Result<Message> {
        let MessageShape { width, kind, device } = self.shape;
        Ok(Message {
            counts: vec![0; counts],
            rows: Tensor::f_zeros([0, width], (kind, device))?,
            gates: gates.then(|| Tensor::f_zeros([0], (Kind::Float, device))).transpose()?,
        })
    }
}

impl Carrier {
    fn start(mut collective: Box<dyn Collective>, watch: ExchangeWatch) -> Result<Carrier> {
        let rank = collective.rank().index();
        let members = collective.members().to_vec();
        Carrier::over(rank, members, watch, move |sends| collective.all_to_all_v(sends))
    }

    /// Of seat `rank` among `members`; `exchange` runs on the thread.
    fn over(
        rank: usize,
        members: Vec<Rank>,
        watch: ExchangeWatch,
        mut exchange: impl FnMut(&[&[u8]]) -> Received + Send + 'static,
    ) -> Result<Carrier> {
        let (orders, queue) = channel::<Vec<Vec<u8>>>();
        let (answer, answers) = channel();
        let carry = move || {
            while let Ok(sends) = queue.recv() {
                let sends: Vec<&[u8]> = sends.iter().map(Vec::as_slice).collect();
                if answer.send(exchange(&sends)).is_err() {
                    return;
                }
            }
        };
        let thread = JoinedThread::spawn("experts", carry).map_err(|error| {
            ModelError::Torch(format!("cannot start the thread of expert exchanges: {error}"))
        })?;
        Ok(Carrier { rank, members, orders, answers, watch, thread })
    }

    fn send(&mut self, bytes: Vec<Vec<u8>>) -> Result<()> {
        self.orders.send(bytes).map_err(|_| self.end())
    }

    fn receive(&mut self) -> Result<Vec<Vec<u8>>> {
        (self.watch)(true);
        let answer = self.answers.recv();
        (self.watch)(false);
        Ok(answer.map_err(|_| self.end())??)
    }

    /// Why the thread has closed its channels.
    fn end(&mut self) -> ModelError {
        match self.thread.join() {
            Err(panic) => panic.into(),
            Ok(()) => ModelError::Torch("the thread of expert exchanges has ended".into()),
        }
    }
}

fn encode(message: &Message) -> Result<Vec<u8>> {
    let Message { counts, rows, gates } = message;
    let header = [rows.size()[0] as u32, counts.len() as u32, u32::from(gates.is_some())];
    let words = (HEADER_WORDS + counts.len()) * 4;
    let row_bytes = rows.numel() * rows.f_kind()?.elt_size_in_bytes();
    let gate_bytes = gates.as_ref().map_or(0, |gates| gates.numel() * 4);
    let mut bytes = Vec::with_capacity(words + row_bytes + gate_bytes);
    for word in header.iter().chain(counts) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.resize(words + row_bytes + gate_bytes, 0);
    rows.f_copy_data_u8(&mut bytes[words..words + row_bytes], rows.numel())?;
    if let Some(gates) = gates {
        gates.f_copy_data_u8(&mut bytes[words + row_bytes..], gates.numel())?;
    }
    Ok(bytes)
}

/// The error says what is wrong with the bytes.
fn decode(bytes: &[u8], shape: MessageShape) -> std::result::Result<Message, String> {
    let MessageShape { width, kind, device } = shape;
    let word = |index: usize| {
        let word = bytes.get(4 * index..4 * index + 4)?;
        Some(u32::from_le_bytes(word.try_into().ok()?))
    };
    let short = || format!("{} bytes, too few for a message", bytes.len());
    let (rows, counts) = (word(0).ok_or_else(short)?, word(1).ok_or_else(short)?);
    let has_gates = word(2).ok_or_else(short)? != 0;
    let words = 4 * (HEADER_WORDS + counts as usize);
    let row_bytes = rows as usize * width as usize * kind.elt_size_in_bytes();
    let gate_bytes = if has_gates { rows as usize * 4 } else { 0 };
    if bytes.len() != words + row_bytes + gate_bytes {
        return Err(format!("{} bytes for {rows} rows of {width} values ({kind:?})", bytes.len()));
    }
    let counts: Vec<u32> = (0..counts as usize).filter_map(|index| word(HEADER_WORDS + index)).collect();
    if !counts.is_empty() && counts.iter().map(|&count| u64::from(count)).sum::<u64>() != u64::from(rows) {
        return Err(format!("{rows} rows, but counts of {counts:?}"));
    }
    let tensor = |bytes: &[u8], size: &[i64], kind| {
        let made = Tensor::f_from_data_size(bytes, size, kind).and_then(|tensor| tensor.f_to_device(device));
        made.map_err(|error| error.to_string())
    };
    let (row_part, gate_part) = bytes[words..].split_at(row_bytes);
    Ok(Message {
        counts,
        rows: tensor(row_part, &[i64::from(rows), width], kind)?,
        gates: has_gates.then(|| tensor(gate_part, &[i64::from(rows)], Kind::Float)).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MessageShape = MessageShape { width: 3, kind: Kind::BFloat16, device: Device::Cpu };

    fn message() -> Message {
        Message {
            counts: vec![2, 0, 1],
            rows: Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6., 7., 8., 9.])
                .view([3, 3])
                .to_kind(Kind::BFloat16),
            gates: Some(Tensor::from_slice(&[0.1f32, 0.2, 0.3])),
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let sent = message();
        let seen = decode(&encode(&sent).unwrap(), SHAPE).unwrap();
        assert_eq!(seen.counts, sent.counts);
        assert!(seen.rows.equal(&sent.rows) && seen.rows.kind() == Kind::BFloat16);
        assert!(seen.gates.unwrap().equal(&sent.gates.unwrap()));
        let mut group = ExpertGroup::alone(SHAPE);
        let empty = group.empty(2, true).unwrap();
        let seen = decode(&encode(&empty).unwrap(), SHAPE).unwrap();
        assert_eq!((seen.rows.size(), seen.counts), (vec![0, 3], vec![0, 0]));
        assert!(group.finish().is_err());
    }

    #[test]
    fn a_panic_of_the_thread_keeps_its_text_and_place() {
        let exchange = |sends: &[&[u8]]| panic!("{} buffers cannot be sent", sends.len());
        let mut carrier = Carrier::over(0, vec![Rank(0), Rank(1)], Box::new(|_| ()), exchange).unwrap();
        carrier.send(vec![Vec::new(), vec![1]]).unwrap();
        let error = carrier.receive().unwrap_err();
        assert!(matches!(error, ModelError::Panicked(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("2 buffers cannot be sent") && text.contains("experts.rs:"), "{text}");
        assert!(carrier.send(Vec::new()).is_err() && carrier.receive().is_err());
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let bytes = encode(&message()).unwrap();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], SHAPE).is_err(), "{end} bytes");
        }
        let mut counts = bytes.clone();
        counts[12] = 3;
        assert!(decode(&counts, SHAPE).unwrap_err().contains("counts"));
        let mut rows = bytes.clone();
        rows[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&rows, SHAPE).is_err());
        assert!(decode(&bytes, MessageShape { width: 4, ..SHAPE }).is_err());
        assert!(decode(&bytes, MessageShape { kind: Kind::Float, ..SHAPE }).is_err());
    }
}
