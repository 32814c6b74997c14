//! Row blocks: values of some positions of a request, as f32 or bf16, behind runs of positions.
//!
//! Legend: n = rows of one message, w = values per row. A bf16 block has two values per word; all of its values are
//! padded together to whole words, with zeros.

use std::ops::Range;

use polygram_domain::bf16::widen;
use polygram_domain::embedding::RowType;

use super::frame::WireError;
use super::payload::malformed;
use super::pool::PooledWords;

const NAME: &str = "rows";

/// What the values of a row block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Tables that share one row id.
    pub sites: usize,
    /// Values per row (w).
    pub width: usize,
    /// How values travel.
    pub kind: RowType,
}

impl BlockShape {
    /// Values of one position.
    pub fn stride(&self) -> usize {
        self.sites * self.width
    }

    /// Payload words of the values of `rows` positions.
    pub fn words(&self, rows: usize) -> usize {
        (rows * self.stride() * self.kind.bytes()).div_ceil(4)
    }
}

/// Values of some positions of a request: `[sites, n, w]`, row-major, behind runs of positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RowBlock {
    runs: Vec<Range<u32>>,
    rows: usize,
    words: PooledWords,
    values_at: usize,
    /// Values in all, and what they are.
    values: usize,
    kind: RowType,
}

impl RowBlock {
    /// Runs of positions, ascending and apart.
    pub fn runs(&self) -> &[Range<u32>] {
        &self.runs
    }

    /// Positions in all runs (n).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values `[sites, n, w]`, as they travelled.
    #[inline]
    pub fn values(&self) -> Values<'_> {
        let words = &self.words[self.values_at..];
        match self.kind {
            RowType::F32 => Values::F32(bytemuck::cast_slice(words)),
            RowType::Bf16 => Values::Bf16(&bytemuck::cast_slice(words)[..self.values]),
        }
    }

    /// Bytes of the payload, which is what credit counts.
    pub fn payload_bytes(&self) -> usize {
        4 * self.words.len()
    }

    /// The payload's words.
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    /// The words before the values: how many runs, then first and count of each.
    pub fn head(runs: &[Range<u32>]) -> Vec<u32> {
        let mut words = Vec::with_capacity(1 + 2 * runs.len());
        words.push(runs.len() as u32);
        words.extend(runs.iter().flat_map(|run| [run.start, run.end - run.start]));
        words
    }

    /// Runs of positions from the words that [`RowBlock::head`] wrote behind their number, and how many positions.
    pub(super) fn runs_of(head: &[u32]) -> Result<(Vec<Range<u32>>, u64), WireError> {
        let mut runs = Vec::with_capacity(head.len() / 2);
        let (mut rows, mut end) = (0u64, 0u32);
        for pair in head.chunks_exact(2) {
            let (first, length) = (pair[0], pair[1]);
            let Some(after) = first.checked_add(length).filter(|_| length > 0 && first >= end) else {
                return malformed(NAME, format!("run {first}+{length} is empty or not after {end}"));
            };
            runs.push(first..after);
            rows += u64::from(length);
            end = after;
        }
        Ok((runs, rows))
    }

    pub(super) fn decode(words: PooledWords, shape: BlockShape) -> Result<RowBlock, WireError> {
        let Some((&count, rest)) = words.split_first() else { return malformed(NAME, "it is empty") };
        let Some(head) = (count as usize).checked_mul(2).and_then(|words| rest.get(..words)) else {
            return malformed(NAME, format!("it ends within its {count} runs"));
        };
        let (runs, rows) = RowBlock::runs_of(head)?;
        let values_at = 1 + head.len();
        let (stride, found) = (shape.stride() as u64, (words.len() - values_at) as u64);
        let per_word = 4 / shape.kind.bytes() as u64;
        let values = rows.checked_mul(stride).filter(|values| values.div_ceil(per_word) == found);
        let Some(values) = values else {
            let rule = format!(
                "{rows} rows of {stride} values of {} bytes do not make {found} words",
                shape.kind.bytes()
            );
            return malformed(NAME, rule);
        };
        if values % per_word != 0 && words[words.len() - 1] >> 16 != 0 {
            return malformed(NAME, "its padding is not zero");
        }
        Ok(RowBlock {
            runs,
            rows: rows as usize,
            words,
            values_at,
            values: values as usize,
            kind: shape.kind,
        })
    }
}

/// Values as they travel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// As bf16 bits.
    Bf16(&'a [u16]),
}

impl<'a> Values<'a> {
    /// Some of them.
    ///
    /// # Panics
    /// When there are not so many.
    #[inline]
    pub fn range(self, range: Range<usize>) -> Values<'a> {
        match self {
            Values::F32(values) => Values::F32(&values[range]),
            Values::Bf16(bits) => Values::Bf16(&bits[range]),
        }
    }

    /// Copies them; bf16 widens exactly.
    ///
    /// # Panics
    /// When `target` has not as many.
    #[inline]
    pub fn copy_to(self, target: &mut [f32]) {
        match self {
            Values::F32(values) => target.copy_from_slice(values),
            Values::Bf16(bits) => {
                assert_eq!(bits.len(), target.len(), "values must fit their memory");
                widen(bits, target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_blocks_survive_the_trip() {
        let shape = BlockShape { sites: 2, width: 3, kind: RowType::Bf16 };
        for rows in 0..4usize {
            let run = 5..5 + rows as u32;
            let mut words = RowBlock::head(if rows > 0 { std::slice::from_ref(&run) } else { &[] });
            let values: Vec<u16> = (0..rows as u16 * 6).map(|i| 0x7f80 + i).collect();
            let padded: Vec<u16> = values.iter().copied().chain([0; 2]).collect();
            words.extend(
                padded
                    .chunks_exact(2)
                    .take(shape.words(rows))
                    .map(|pair| u32::from(pair[0]) | (u32::from(pair[1]) << 16)),
            );
            let block = RowBlock::decode(words.into(), shape).unwrap();
            assert_eq!((block.rows(), block.values()), (rows, Values::Bf16(&values)));
        }
    }

    #[test]
    fn odd_bf16_blocks_end_in_zeros() {
        let shape = BlockShape { sites: 1, width: 3, kind: RowType::Bf16 };
        let head = RowBlock::head(std::slice::from_ref(&(0..1)));
        let block = |values: [u32; 2]| RowBlock::decode([&head[..], &values].concat().into(), shape);
        assert_eq!(block([0x2_0001, 3]).unwrap().values(), Values::Bf16(&[1, 2, 3]));
        assert!(block([0x2_0001, 0x1_0003]).unwrap_err().to_string().contains("padding"));
        let long = RowBlock::decode([&head[..], &[1, 2, 0]].concat().into(), shape);
        assert!(long.unwrap_err().to_string().contains("3 words"));
    }
}
