//! One cell as the segments want it: tensors on the device, made from checked plain buffers.

use tch::{Device, Tensor};

use crate::cell::{CellInput, RowShape};
use crate::decoder::Model;
use crate::error::Result;
use crate::kernels::Products;

/// One cell as the segments want it.
pub(crate) struct CellContext<'a> {
    pub(crate) batch: i64,
    pub(crate) seq_len: i64,
    pub(crate) products: Products,
    pub(crate) device: Device,
    /// `[P]` i64.
    pub(crate) tokens: Tensor,
    /// The same on the host.
    pub(crate) token_rows: &'a [u32],
    pub(crate) rows: Option<CellRows<'a>>,
    /// `[P, 1]` bool: positions whose word embedding stays plain; `None` where the model has no such tokens.
    pub(crate) plain_words: Option<Tensor>,
    /// `[T, 1, rope / 2]` complex.
    pub(crate) rotation: Tensor,
}

/// The unique rows of a cell.
pub(crate) struct CellRows<'a> {
    /// `[S, U, w]` f32.
    pub(crate) values: Tensor,
    /// `[P·C]` i64: index into U.
    pub(crate) inverse: Tensor,
    /// The same on the host.
    pub(crate) inverse_rows: &'a [u32],
    pub(crate) unique: usize,
    pub(crate) width: usize,
}

impl CellContext<'_> {
    /// P.
    pub(crate) fn positions(&self) -> i64 {
        self.batch * self.seq_len
    }
}

impl Model {
    /// Moves a checked cell to the device.
    pub(crate) fn context<'a>(&mut self, input: &CellInput<'a>) -> Result<CellContext<'a>> {
        let device = self.options.device;
        let batch = input.batch;
        let to_device = |values: &[u32]| -> Result<Tensor> {
            let wide: Vec<i64> = values.iter().map(|&value| i64::from(value)).collect();
            Ok(Tensor::f_from_slice(&wide)?.f_to_device(device)?)
        };
        let shape = RowShape::of(&self.spec);
        let rows = match shape.sites {
            0 => None,
            sites => Some(CellRows {
                values: Tensor::f_from_slice(input.rows_suw)?.f_to_device(device)?.f_view([
                    sites as i64,
                    input.unique as i64,
                    shape.width as i64,
                ])?,
                inverse: to_device(input.inverse_pc)?,
                inverse_rows: input.inverse_pc,
                unique: input.unique,
                width: shape.width,
            }),
        };
        let ignored = &self.spec.ngram.ignored_tokens;
        let plain_words = if ignored.is_empty() || shape.sites == 0 {
            None
        } else {
            let mask: Vec<bool> = batch.tokens_bt().iter().map(|token| ignored.contains(token)).collect();
            Some(Tensor::f_from_slice(&mask)?.f_to_device(device)?.f_unsqueeze(-1)?)
        };
        Ok(CellContext {
            batch: batch.batch() as i64,
            seq_len: batch.seq_len() as i64,
            products: self.options.products,
            device,
            tokens: to_device(batch.tokens_bt())?,
            token_rows: batch.tokens_bt(),
            rows,
            plain_words,
            rotation: self.rotation(batch.seq_len())?,
        })
    }

    /// cos + i·sin of every position, `[T, 1, rope / 2]`.
    fn rotation(&mut self, seq_len: usize) -> Result<Tensor> {
        if let Some((_, rotation)) = self.rotation.as_ref().filter(|(known, _)| *known == seq_len) {
            return Ok(rotation.shallow_clone());
        }
        let (cos, sin) = self.rotary.tables(seq_len);
        let shape = [seq_len as i64, 1, i64::from(self.spec.attention.qk_rope_head_dim) / 2];
        let tensor = |values: &[f32]| Tensor::f_from_slice(values)?.f_view(shape);
        let rotation = Tensor::f_complex(&tensor(&cos)?, &tensor(&sin)?)?.f_to_device(self.options.device)?;
        self.rotation = Some((seq_len, rotation.shallow_clone()));
        Ok(rotation)
    }
}
