//! Which characters are letters, numbers and white space, as the regex library of `tokenizers` sees it.
//!
//! The answer depends on the library's Unicode version, so the library itself is asked: once per block of 256
//! characters, when the first character of the block is met.

use std::sync::{LazyLock, OnceLock};

use tokenizers::utils::SysRegex;

/// `\p{L}`.
pub(crate) const LETTER: u8 = 1;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 2;
/// `\s`.
pub(crate) const SPACE: u8 = 4;

/// Characters of a block.
const BLOCK: u32 = 256;

type Block = [u8; BLOCK as usize];

/// The classes of every character; 0 for a character of none of the three.
pub(crate) struct Classes {
    blocks: Vec<OnceLock<Box<Block>>>,
    regexes: [(u8, SysRegex); 3],
}

impl Classes {
    /// The shared table; `None` when the library does not compile the three classes.
    pub(crate) fn shared() -> Option<&'static Classes> {
        static SHARED: LazyLock<Option<Classes>> = LazyLock::new(|| {
            let regex = |pattern| SysRegex::new(pattern).ok();
            Some(Classes {
                blocks: (0..=u32::from(char::MAX) / BLOCK).map(|_| OnceLock::new()).collect(),
                regexes: [(LETTER, regex(r"\p{L}")?), (NUMBER, regex(r"\p{N}")?), (SPACE, regex(r"\s")?)],
            })
        });
        SHARED.as_ref()
    }

    /// The class of `c`.
    pub(crate) fn of(&self, c: char) -> u8 {
        let (block, index) = (u32::from(c) / BLOCK, u32::from(c) % BLOCK);
        self.blocks[block as usize].get_or_init(|| self.fill(block))[index as usize]
    }

    fn fill(&self, block: u32) -> Box<Block> {
        let first = block * BLOCK;
        let text: String = (first..first + BLOCK).filter_map(char::from_u32).collect();
        let mut classes = Box::new([0; BLOCK as usize]);
        for (class, regex) in &self.regexes {
            for (start, end) in regex.find_iter(&text) {
                for c in text[start..end].chars() {
                    classes[(u32::from(c) - first) as usize] |= class;
                }
            }
        }
        classes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_characters_have_their_class() {
        let classes = Classes::shared().unwrap();
        for (class, text) in [
            (LETTER, "aZéж日ªǅ"),
            (NUMBER, "09²½Ⅷ٣"),
            (SPACE, " \t\r\n\u{a0}\u{3000}\u{2028}"),
            (0, "'-€😀\u{301}\u{200b}_"),
        ] {
            for c in text.chars() {
                assert_eq!(classes.of(c), class, "{c:?}");
            }
        }
        // Every block can be filled, the one of the surrogates and the last too.
        for block in 0..=u32::from(char::MAX) / BLOCK {
            if let Some(c) = char::from_u32(block * BLOCK + 1) {
                classes.of(c);
            }
        }
        assert_eq!(classes.of(char::MAX), 0);
    }
}
