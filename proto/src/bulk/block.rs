//! Row blocks: values of some positions of a request, as f32 or bf16, behind runs of positions.
//!
//! Legend: n = rows of one message, w = values per row. A bf16 block has two values per word; all of its values are
//! padded together to whole words, with zeros.

use std::ops::Range;

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

impl From<usize> for BlockShape {
    /// So many f32 values per position.
    fn from(stride: usize) -> BlockShape {
        BlockShape { sites: 1, width: stride, kind: RowType::F32 }
    }
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

    /// Values `[sites, n, w]` of an f32 block; none of any other.
    pub fn values(&self) -> &[f32] {
        self.f32s().unwrap_or_default()
    }

    /// Values `[sites, n, w]`, if they are f32.
    pub fn f32s(&self) -> Option<&[f32]> {
        (self.kind == RowType::F32).then(|| bytemuck::cast_slice(&self.words[self.values_at..]))
    }

    /// Values `[sites, n, w]` as their bits, if they are bf16.
    pub fn bf16s(&self) -> Option<&[u16]> {
        let values: &[u16] = bytemuck::cast_slice(&self.words[self.values_at..]);
        (self.kind == RowType::Bf16).then(|| &values[..self.values])
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

/// Rounds f32 values to bf16: to nearest, ties to even. Infinities stay, and what is not a number stays so.
pub fn bf16_from_f32(values: &[f32], out: &mut [u16]) {
    for (value, out) in values.iter().zip(out) {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // The quiet bit keeps a NaN whose upper bits are all zero from becoming an infinity.
        let quiet = (bits >> 16) | 0x40;
        *out = if bits & 0x7fff_ffff > 0x7f80_0000 { quiet as u16 } else { rounded as u16 };
    }
}

/// The f32 values of bf16 bits; exact.
pub fn f32_from_bf16(values: &[u16], out: &mut [f32]) {
    for (value, out) in values.iter().zip(out) {
        *out = f32::from_bits(u32::from(*value) << 16);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use polygram_domain::philox::{Purpose, Stream};

    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        let random = Stream::new(3, Purpose::SyntheticData);
        let edges = [0x8000u32, 0x7fff, 0x8001, 0x1_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0xffff_ffff];
        let drawn = (0..50_000u64).flat_map(|i| random.words(1, i));
        let bits: Vec<u32> = edges.into_iter().chain(edges.map(|bits| bits | 1 << 31)).chain(drawn).collect();
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let mut rounded = vec![0; values.len()];
        bf16_from_f32(&values, &mut rounded);
        let mut back = vec![0.0; values.len()];
        f32_from_bf16(&rounded, &mut back);
        for ((value, rounded), back) in values.iter().zip(rounded).zip(back) {
            assert_eq!(rounded, bf16::from_f32(*value).to_bits(), "{:#010x}", value.to_bits());
            assert_eq!(back.is_nan(), value.is_nan());
            assert_eq!(back.to_bits(), bf16::from_bits(rounded).to_f32().to_bits(), "{rounded:#06x}");
        }
    }

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
            assert_eq!((block.rows(), block.bf16s(), block.f32s()), (rows, Some(&values[..]), None));
        }
    }

    #[test]
    fn odd_bf16_blocks_end_in_zeros() {
        let shape = BlockShape { sites: 1, width: 3, kind: RowType::Bf16 };
        let head = RowBlock::head(std::slice::from_ref(&(0..1)));
        let block = |values: [u32; 2]| {
            RowBlock::decode([&head[..], &values].concat().into(), shape)
                .map(|block| block.bf16s().map(<[u16]>::len))
        };
        assert_eq!(block([0x2_0001, 3]), Ok(Some(3)));
        assert!(block([0x2_0001, 0x1_0003]).unwrap_err().to_string().contains("padding"));
        let long = RowBlock::decode([&head[..], &[1, 2, 0]].concat().into(), shape);
        assert!(long.unwrap_err().to_string().contains("3 words"));
    }
}
