//! One cell as the segments want it: tensors on the device, made from checked plain buffers.

use polygram_domain::ModelSpec;
use tch::{Device, Tensor};

use crate::cell::{CellInput, RowShape};
use crate::error::Result;
use crate::kernels::Products;
use crate::options::Options;

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

impl<'a> CellContext<'a> {
    /// Moves a checked cell to the device. `rotation` is that of its positions.
    pub(crate) fn new(
        spec: &ModelSpec,
        options: &Options,
        input: &CellInput<'a>,
        rotation: Tensor,
    ) -> Result<CellContext<'a>> {
        let device = options.device;
        let batch = input.batch;
        let to_device = |values: &[u32]| -> Result<Tensor> {
            let wide: Vec<i64> = values.iter().map(|&value| i64::from(value)).collect();
            Ok(Tensor::f_from_slice(&wide)?.f_to_device(device)?)
        };
        let shape = RowShape::of(spec);
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
        let ignored = &spec.ngram.ignored_tokens;
        let plain_words = if ignored.is_empty() || shape.sites == 0 {
            None
        } else {
            let mask: Vec<bool> = batch.tokens_bt().iter().map(|token| ignored.contains(token)).collect();
            Some(Tensor::f_from_slice(&mask)?.f_to_device(device)?.f_unsqueeze(-1)?)
        };
        Ok(CellContext {
            batch: batch.batch() as i64,
            seq_len: batch.seq_len() as i64,
            products: options.products,
            device,
            tokens: to_device(batch.tokens_bt())?,
            token_rows: batch.tokens_bt(),
            rows,
            plain_words,
            rotation,
        })
    }

    /// P.
    pub(crate) fn positions(&self) -> i64 {
        self.batch * self.seq_len
    }
}
