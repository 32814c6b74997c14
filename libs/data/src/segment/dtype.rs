//! Integer types of stored tokens.

use std::fmt;

/// How a `.bin` stores one token, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Unsigned, 1 byte.
    U8,
    /// Signed, 1 byte.
    I8,
    /// Signed, 2 bytes.
    I16,
    /// Signed, 4 bytes.
    I32,
    /// Signed, 8 bytes.
    I64,
    /// Unsigned, 2 bytes.
    U16,
}

impl Dtype {
    /// From the code in an index header (Megatron-LM, `indexed_dataset.py`, `DType`). The error says what is known.
    pub fn from_code(code: u8) -> Result<Dtype, String> {
        match code {
            1 => Ok(Dtype::U8),
            2 => Ok(Dtype::I8),
            3 => Ok(Dtype::I16),
            4 => Ok(Dtype::I32),
            5 => Ok(Dtype::I64),
            8 => Ok(Dtype::U16),
            6 | 7 => Err(format!("its dtype code {code} is a floating-point type, and tokens are integers")),
            other => {
                Err(format!("its dtype code {other} is unknown (1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16)"))
            }
        }
    }

    /// The code in an index header.
    pub fn code(self) -> u8 {
        match self {
            Dtype::U8 => 1,
            Dtype::I8 => 2,
            Dtype::I16 => 3,
            Dtype::I32 => 4,
            Dtype::I64 => 5,
            Dtype::U16 => 8,
        }
    }

    /// Bytes per token.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 => 1,
            Dtype::I16 | Dtype::U16 => 2,
            Dtype::I32 => 4,
            Dtype::I64 => 8,
        }
    }

    /// The narrower of u16 and i32 that holds every token of a vocabulary.
    pub fn for_vocab(vocab: u32) -> Dtype {
        if vocab <= 1 << 16 { Dtype::U16 } else { Dtype::I32 }
    }

    /// Largest value it can hold.
    pub fn max(self) -> i64 {
        match self {
            Dtype::U8 => u8::MAX.into(),
            Dtype::I8 => i8::MAX.into(),
            Dtype::I16 => i16::MAX.into(),
            Dtype::I32 => i32::MAX.into(),
            Dtype::I64 => i64::MAX,
            Dtype::U16 => u16::MAX.into(),
        }
    }

    /// Decodes whole tokens from `bytes` onto the end of `out`; a cut-off last token is left out.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut Vec<i64>) {
        match self {
            Dtype::U8 => out.extend(bytes.iter().map(|&b| i64::from(b))),
            Dtype::I8 => out.extend(bytes.iter().map(|&b| i64::from(b as i8))),
            Dtype::I16 => out.extend(bytes.as_chunks().0.iter().map(|&b| i64::from(i16::from_le_bytes(b)))),
            Dtype::U16 => out.extend(bytes.as_chunks().0.iter().map(|&b| i64::from(u16::from_le_bytes(b)))),
            Dtype::I32 => out.extend(bytes.as_chunks().0.iter().map(|&b| i64::from(i32::from_le_bytes(b)))),
            Dtype::I64 => out.extend(bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b))),
        }
    }

    /// Appends one token's bytes, or gives the token back when the type cannot hold it.
    pub(crate) fn encode(self, token: u32, out: &mut Vec<u8>) -> Result<(), u32> {
        if i64::from(token) > self.max() {
            return Err(token);
        }
        out.extend_from_slice(&u64::from(token).to_le_bytes()[..self.bytes()]);
        Ok(())
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::U8 => "u8",
            Dtype::I8 => "i8",
            Dtype::I16 => "i16",
            Dtype::I32 => "i32",
            Dtype::I64 => "i64",
            Dtype::U16 => "u16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_tokens_round_trip() {
        for dtype in [Dtype::U8, Dtype::I8, Dtype::I16, Dtype::I32, Dtype::I64, Dtype::U16] {
            assert_eq!(Dtype::from_code(dtype.code()), Ok(dtype));
            let largest = u32::try_from(dtype.max()).unwrap_or(u32::MAX);
            let mut bytes = Vec::new();
            for token in [0, 1, largest] {
                dtype.encode(token, &mut bytes).unwrap();
            }
            if largest < u32::MAX {
                assert_eq!(dtype.encode(largest + 1, &mut bytes), Err(largest + 1), "{dtype}");
            }
            assert_eq!(bytes.len(), 3 * dtype.bytes());
            let mut tokens = Vec::new();
            dtype.decode(&bytes, &mut tokens);
            assert_eq!(tokens, [0, 1, i64::from(largest)], "{dtype}");
        }
        for code in [0, 6, 7, 9, 255] {
            assert!(Dtype::from_code(code).is_err());
        }
    }
}
