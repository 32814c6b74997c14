//! Text into the words that byte-level BPE works on, as the regexes of well-known tokenizers divide it.
//!
//! Two families of regexes are written out by hand, since the regex library is what takes most of the time;
//! all other regexes are run by the library. Each hand-written scanner is tested against the library.

use super::classes::{Classes, LETTER, NUMBER, SPACE};
use tokenizers::utils::SysRegex;

/// The regex of GPT-2, which the pre-tokenizer `ByteLevel` has built in (tokenizers, `byte_level.rs`).
#[cfg(test)]
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The regex of Llama 3 (and of cl100k, without its possessive marks): numbers of up to three digits.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The regex of Qwen 2: each digit alone.
pub(crate) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is divided into words.
pub(crate) enum Words {
    /// The regex of GPT-2.
    Gpt2(&'static Classes),
    /// The regex of Llama 3 or Qwen 2.
    Llama {
        /// Classes of characters.
        classes: &'static Classes,
        /// Digits of a number word, at most.
        digits: usize,
    },
    /// Several regexes, each dividing what the one before left; matches and the text between them are words.
    Regexes(Vec<SysRegex>),
}

impl Words {
    /// The words of GPT-2; `None` when the regex library does not start.
    pub(crate) fn gpt2() -> Option<Words> {
        Classes::shared().map(Words::Gpt2)
    }

    /// Calls `visit` with every word of `text`, in order.
    pub(crate) fn visit<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t str)) {
        match self {
            Words::Gpt2(classes) => {
                let scan = Scan { text, classes };
                let mut at = 0;
                while at < text.len() {
                    let end = scan.gpt2(at);
                    visit(&text[at..end]);
                    at = end;
                }
            }
            Words::Llama { classes, digits } => {
                let scan = Scan { text, classes };
                let mut at = 0;
                while at < text.len() {
                    let end = scan.llama(at, *digits);
                    visit(&text[at..end]);
                    at = end;
                }
            }
            Words::Regexes(regexes) => divide(regexes, text, &mut visit),
        }
    }

    /// Whether text may be cut between `before` and `after` without a change of any word, whatever stands
    /// around them.
    ///
    /// GPT-2: between anything and white space after it. No alternative has white space behind another
    /// character, and the only one that looks ahead, `\s+(?!\S)`, ends before. Llama 3: between a letter or a
    /// number and white space after it, for the same reason; and between the end of a line and what is not
    /// white space, since `\s*[\r\n]+` goes before the alternative that looks ahead. Other regexes: nowhere
    /// is known.
    pub(crate) fn may_cut(&self, before: char, after: char) -> bool {
        match self {
            Words::Gpt2(classes) => classes.of(before) != SPACE && classes.of(after) == SPACE,
            Words::Llama { classes, .. } => {
                let (class, next) = (classes.of(before), classes.of(after));
                (class & (LETTER | NUMBER) != 0 && next == SPACE)
                    || (matches!(before, '\r' | '\n') && next != SPACE)
            }
            Words::Regexes(_) => false,
        }
    }

    /// Whether [`Words::may_cut`] can ever say yes.
    pub(crate) fn can_cut(&self) -> bool {
        !matches!(self, Words::Regexes(_))
    }
}

fn divide<'t>(regexes: &[SysRegex], text: &'t str, visit: &mut impl FnMut(&'t str)) {
    let Some((regex, rest)) = regexes.split_first() else {
        if !text.is_empty() {
            visit(text);
        }
        return;
    };
    // One level a regex: the depth is their number, which the caller bounds.
    let mut end_of_last = 0;
    for (start, end) in regex.find_iter(text) {
        divide_dyn(rest, &text[end_of_last..start], visit);
        divide_dyn(rest, &text[start..end], visit);
        end_of_last = end;
    }
    divide_dyn(rest, &text[end_of_last..], visit);
}

/// [`divide`] behind a pointer, so that its recursion makes one function and not one a level.
fn divide_dyn<'t>(regexes: &[SysRegex], text: &'t str, visit: &mut dyn FnMut(&'t str)) {
    divide(regexes, text, &mut |word| visit(word));
}

/// A text that is being divided. Every method gets the start of a word and returns its end, which is after
/// it.
struct Scan<'t> {
    text: &'t str,
    classes: &'static Classes,
}

impl Scan<'_> {
    fn gpt2(&self, at: usize) -> usize {
        let bytes = &self.text.as_bytes()[at..];
        let contraction = match bytes {
            [b'\'', b's' | b't' | b'm' | b'd', ..] => 2,
            [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => 3,
            _ => 0,
        };
        if contraction > 0 {
            return at + contraction;
        }
        let start = if bytes[0] == b' ' { at + 1 } else { at };
        match self.class_at(start) {
            Some(class) if class != SPACE => self.run(start, class),
            _ => self.space(at),
        }
    }

    fn llama(&self, at: usize, digits: usize) -> usize {
        if let Some(length) = contraction(&self.text[at..]) {
            return at + length;
        }
        let Some(first) = self.text[at..].chars().next() else { return self.text.len() };
        let (class, second) = (self.classes.of(first), at + first.len_utf8());
        if class == LETTER {
            return self.run(at, LETTER);
        }
        if class == NUMBER {
            let mut numbers = self.text[at..].char_indices().take(digits);
            return match numbers.find(|&(_, c)| self.classes.of(c) != NUMBER) {
                Some((length, _)) => at + length,
                None => self.after_characters(at, digits),
            };
        }
        let next = self.class_at(second);
        if next == Some(LETTER) && !matches!(first, '\r' | '\n') {
            return self.run(second, LETTER);
        }
        let start = if first == ' ' { second } else { at };
        if self.class_at(start) == Some(0) {
            let end = self.run(start, 0);
            let bytes = &self.text.as_bytes()[end..];
            return end + bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        }
        // `\s*[\r\n]+` takes white space up to its last end of line.
        let space = &self.text[at..self.run(at, SPACE)];
        match space.rfind(['\r', '\n']) {
            Some(newline) => at + newline + 1,
            None => self.space(at),
        }
    }

    /// The end of `count` characters from `at`, or of the text.
    fn after_characters(&self, at: usize, count: usize) -> usize {
        self.text[at..].char_indices().nth(count).map_or(self.text.len(), |(length, _)| at + length)
    }

    /// The class of the character at `at`; `None` at the end.
    fn class_at(&self, at: usize) -> Option<u8> {
        self.text[at..].chars().next().map(|c| self.classes.of(c))
    }

    /// The end of the run of characters of `class` from `at`.
    fn run(&self, at: usize, class: u8) -> usize {
        let rest = &self.text[at..];
        let other = rest.char_indices().find(|&(_, c)| self.classes.of(c) != class);
        other.map_or(self.text.len(), |(length, _)| at + length)
    }

    /// White space: all of it at the end of the text and all but its last character elsewhere (`\s+(?!\S)`),
    /// at least one (`\s+`).
    fn space(&self, at: usize) -> usize {
        let end = self.run(at, SPACE);
        let space = &self.text[at..end];
        if end == self.text.len() {
            return end;
        }
        match space.char_indices().next_back() {
            Some((last, _)) if last > 0 => at + last,
            _ => end,
        }
    }
}

/// Bytes of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at the start of `text`. The long s folds to s.
fn contraction(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    if rest.starts_with('ſ') {
        return Some(1 + 'ſ'.len_utf8());
    }
    match rest.as_bytes() {
        [first, ..] if matches!(first.to_ascii_lowercase(), b's' | b't' | b'm' | b'd') => Some(2),
        [first, second, ..] => match (first.to_ascii_lowercase(), second.to_ascii_lowercase()) {
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(3),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_hand(words: &Words, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        words.visit(text, |word| found.push(word.to_owned()));
        found
    }

    fn all() -> [(Words, &'static str); 3] {
        let classes = Classes::shared().unwrap();
        [
            (Words::Gpt2(classes), GPT2),
            (Words::Llama { classes, digits: 3 }, LLAMA3),
            (Words::Llama { classes, digits: 1 }, QWEN2),
        ]
    }

    fn check(text: &str) {
        for (words, pattern) in all() {
            let wanted: Vec<String> = {
                let regex = SysRegex::new(pattern).unwrap();
                by_hand(&Words::Regexes(vec![regex]), text)
            };
            assert_eq!(by_hand(&words, text), wanted, "{text:?} by {pattern}");
            // A cut where one is allowed changes nothing.
            for (at, after) in text.char_indices().skip(1) {
                let before = text[..at].chars().next_back().unwrap();
                if words.may_cut(before, after) {
                    let mut parts = by_hand(&words, &text[..at]);
                    parts.extend(by_hand(&words, &text[at..]));
                    assert_eq!(parts, wanted, "{text:?} cut at {at}");
                }
            }
        }
    }

    #[test]
    fn hard_places() {
        for text in [
            "it's WE'LL I'M don'T 'ſ 'S 's'd'll'Re x'v",
            "a\n\nb",
            "a \n b",
            "a  b",
            "  ",
            "\r\n\r\nx",
            "x\r\n \r\n  y",
            "a\t\tb",
            "\u{a0}\u{a0}x",
            "   x   ",
            "' '",
            "...\r\n\r\nabc",
            " ...\n",
            "12345 6789",
            "½²٣٤٥",
            "日本語。\n日本",
            "naïve café",
            "e\u{301}e",
            "\u{301}",
            "a\u{85}b",
            "a\u{2028} b",
            "-5",
            " -5",
            "𝔘𝔫𝔦",
            "🦀🦀 🦀",
            "_x_",
            "\0a\0",
            "x\u{3000}\u{3000}y",
            "'",
            "''s",
            "'\u{130}",
            "K\u{212a}'\u{212a}",
        ] {
            check(text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn as_the_library_divides(text in "([ '\\r\\n\tsStTreEvVmMlLdDſ.,0-9é日\u{301}\u{a0}½]|\\PC){0,40}") {
            check(&text);
        }
    }
}
