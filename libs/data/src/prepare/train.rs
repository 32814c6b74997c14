//! Training of a byte-level BPE tokenizer, by the `tokenizers` crate.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, Trainer};

use super::byte_level::{Words, letters};
use super::monitor::{Monitor, Progress, Stage};
use crate::error::DataError;
use crate::guard::guarded;

/// Special tokens of a trained tokenizer, from id 0. Id 0 is left unused, since in the n-gram hash it cannot
/// be told from "no context".
pub(crate) const SPECIAL: [&str; 3] = ["<pad>", "<bos>", "<eos>"];
/// Longer words are divided for training: the crate's merges take quadratic time in the longest word, and no
/// token of use is as long.
const MOST_WORD_BYTES: usize = 256;
/// The sample is handed to the crate in parts of about this size, since it holds all words of a part at once.
const PART_BYTES: usize = 1 << 20;
/// How often a stop request is looked for.
const LOOK: Duration = Duration::from_millis(100);

const NAME: &str = "to be trained";

/// Trains a tokenizer of `vocab_size` tokens on `sample`. When it is to stop, the thread that trains is left
/// to the end of the process: the crate offers no way to end it.
pub(crate) fn train(
    vocab_size: u32,
    sample: Vec<String>,
    monitor: &dyn Monitor,
) -> Result<Tokenizer, DataError> {
    let words = Words::gpt2().ok_or_else(|| failed(NAME, "the regex library does not start".into()))?;
    let (send, receive) = channel();
    std::thread::Builder::new()
        .name("tokenizer-training".into())
        .spawn(move || send.send(guarded(|| train_on(vocab_size, &sample, &words))).is_ok())
        .map_err(|error| failed(NAME, format!("no thread can be started for training: {error}")))?;
    loop {
        match receive.recv_timeout(LOOK) {
            Ok(trained) => {
                return trained.map_err(|error| failed(NAME, format!("training failed: {error}")));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed(NAME, "training ended without a result".into()));
            }
            Err(RecvTimeoutError::Timeout) if monitor.stop_requested() => return Err(DataError::Stopped),
            Err(RecvTimeoutError::Timeout) => monitor.progress(&Progress {
                stage: Stage::Train,
                bytes: 0,
                total_bytes: 0,
                documents: 0,
                tokens: 0,
            }),
        }
    }
}

fn train_on(vocab_size: u32, sample: &[String], words: &Words) -> tokenizers::Result<Tokenizer> {
    let special: Vec<AddedToken> = SPECIAL.iter().map(|&token| AddedToken::from(token, true)).collect();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size as usize)
        .min_frequency(2)
        .special_tokens(special.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let letters = letters();
    trainer.feed(sample.iter().flat_map(|text| parts_of(text, words)), |part| {
        let mut found = Vec::new();
        words.visit(part, |word| {
            let pieces = word.as_bytes().chunks(MOST_WORD_BYTES);
            found.extend(
                pieces.map(|piece| piece.iter().map(|&byte| letters[byte as usize]).collect::<String>()),
            );
        });
        Ok(found)
    })?;
    let mut model = BPE::default();
    trainer.train(&mut model)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevel::new(false, true, true)));
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}

/// The error of the tokenizer `name`.
pub(crate) fn failed(name: &str, problem: String) -> DataError {
    DataError::Tokenizer { name: name.to_owned(), problem }
}

/// `text` in parts that end where words end.
fn parts_of<'t>(text: &'t str, words: &Words) -> impl Iterator<Item = &'t str> + Send {
    let mut ends = Vec::new();
    let (mut previous, mut start) = (None, 0);
    for (at, c) in text.char_indices() {
        if at - start >= PART_BYTES && previous.is_some_and(|previous| words.may_cut(previous, c)) {
            ends.push(at);
            start = at;
        }
        previous = Some(c);
    }
    ends.push(text.len());
    ends.into_iter().scan(0, move |start, end| Some(&text[std::mem::replace(start, end)..end]))
}

#[cfg(test)]
mod tests {
    use super::super::monitor::Unattended;
    use super::*;

    #[test]
    fn parts_are_the_text() {
        let words = Words::gpt2().unwrap();
        let text = "some words\n\n  and more".repeat(200_000);
        let parts: Vec<&str> = parts_of(&text, &words).collect();
        assert_eq!(parts.concat(), text);
        assert!(parts.len() >= 4 && parts.iter().all(|part| part.len() <= PART_BYTES + 20));
        assert_eq!(parts_of("", &words).collect::<Vec<_>>(), [""]);
    }

    /// Words that are not cut give the tokenizer that the crate trains by itself.
    #[test]
    fn trains_as_the_crate_does() {
        use tokenizers::models::TrainerWrapper;
        let sample: Vec<String> = (0..200)
            .map(|i| format!("naïve text {i} of the quick brown fox, it's {} \n\n日本語 ", i * 7))
            .collect();
        let ours = train(400, sample.clone(), &Unattended).unwrap();
        let mut theirs = Tokenizer::new(BPE::default());
        theirs
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevel::new(false, true, true)));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(400)
            .min_frequency(2)
            .special_tokens(SPECIAL.iter().map(|&token| AddedToken::from(token, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        theirs.train(&mut trainer, sample.iter()).unwrap();
        assert_eq!(ours.to_string(true).unwrap(), theirs.to_string(true).unwrap());
    }

    #[test]
    fn a_word_without_end_is_no_trouble() {
        let trained = train(300, vec!["a".repeat(2_000_000), "日".repeat(300_000)], &Unattended).unwrap();
        assert!(trained.get_vocab_size(true) > 256 + 3);
    }

    #[test]
    fn training_is_stopped() {
        struct Stopping;
        impl Monitor for Stopping {
            fn progress(&self, _: &Progress) {}
            fn stop_requested(&self) -> bool {
                true
            }
        }
        let sample = (0..400_000).map(|i| format!(" w{:x}", i * 2_654_435_761u64 % 1_000_003)).collect();
        assert!(matches!(train(100_000, sample, &Stopping), Err(DataError::Stopped)));
    }
}
