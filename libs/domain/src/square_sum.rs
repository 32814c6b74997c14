//! Sums of squares of gradients in their canonical order: blocks of each named tensor, in f64.
//!
//! Whoever holds a run of whole blocks can sum them; the sums of all blocks, added tensor by tensor in order, are the
//! same bits however the blocks were divided.

/// Elements of one block of a tensor.
pub const BLOCK: usize = 4096;

/// Sum of squares of one block: eight running sums, element i to sum i mod 8, joined pairwise, an order that vector
/// units can keep. Not finite if any element is not.
pub fn block_square_sum(block: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    for chunk in block.chunks(8) {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Sum of squares of one tensor: its blocks added in order.
pub fn tensor_square_sum(values: &[f32]) -> f64 {
    values.chunks(BLOCK).map(block_square_sum).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_squares() {
        let values: Vec<f32> = (0..10_000).map(|i| (i % 17) as f32 - 8.0).collect();
        let wanted: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert_eq!(tensor_square_sum(&values), wanted, "small integers add exactly in any order");
        assert!(tensor_square_sum(&[1.0, f32::NAN]).is_nan());
        assert!(tensor_square_sum(&[f32::INFINITY]).is_infinite());
        assert_eq!(tensor_square_sum(&[]), 0.0);
    }
}
