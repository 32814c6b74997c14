//! Queries, keys and values as attention wants them, from what the projections of multi-head latent attention give:
//! rotated ([`crate::rope`]), with one rotated key for all heads, and of one width.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::parallel::{for_blocks, rows_per_block};
use super::rows::Rows;
use super::{Products, are_plain, elementary::rounded_if, vectorized};
use crate::error::Result;

/// Dimensions of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) count: i64,
    /// Of queries and keys, not rotated.
    pub(crate) nope: i64,
    /// Of queries and keys, rotated.
    pub(crate) rope: i64,
    pub(crate) value: i64,
}

impl Heads {
    /// Width of queries, keys and values: fused attention wants one for all, so the narrower ones end in zeros.
    pub(crate) fn width(self) -> i64 {
        (self.nope + self.rope).max(self.value)
    }
}

/// `[B, T, h, width]` each.
#[derive(Debug)]
pub(crate) struct Attended {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

/// From `q` `[P, h·(nope + rope)]`, the shared key `[P, rope]` and `kv` `[P, h·(nope + value)]`. `rotation` is
/// `[T, 1, rope / 2]` complex; operands of products.
pub(crate) fn assemble(
    heads: Heads,
    (q, shared, kv): (&Tensor, &Tensor, &Tensor),
    rotation: &Tensor,
    products: Products,
) -> Result<Attended> {
    let t = rotation.size()[0];
    let b = q.size()[0] / t;
    if !are_plain(&[q, shared, kv]) {
        return composed(heads, (q, shared, kv), (rotation, b, t), products);
    }
    let empty = || Tensor::f_empty([b, t, heads.count, heads.width()], (Kind::Float, q.device()));
    let attended = Attended { q: empty()?, k: empty()?, v: empty()? };
    let flat = |x: &Tensor| x.f_view([b * t, heads.count * heads.width()]);
    let (to_q, to_k, to_v) = (flat(&attended.q)?, flat(&attended.k)?, flat(&attended.v)?);
    let angles = rotation.f_view_as_real()?.f_view([t, heads.rope])?;
    let task = Task {
        sizes: Sizes::of(heads),
        angles: Rows::of(&angles)?,
        projected: [Rows::of(q)?, Rows::of(shared)?, Rows::of(kv)?],
        attended: [Rows::of(&to_q)?, Rows::of(&to_k)?, Rows::of(&to_v)?],
        rounds: products.rounds(),
    };
    let per_block = rows_per_block(task.attended[0].width());
    for_blocks(task.attended[0].count(), per_block, |block| assemble_block(block, &task));
    Ok(attended)
}

/// Backward of [`assemble`] from gradients `[B, T, h, width]`: those of q and kv, and that of the shared key is written to
/// `by_shared`, `[P, rope]`. Operands of products.
pub(crate) fn disassemble(
    heads: Heads,
    by: &Attended,
    rotation: &Tensor,
    by_shared: &Tensor,
    products: Products,
) -> Result<(Tensor, Tensor)> {
    let t = rotation.size()[0];
    let positions = by.q.size()[0] * t;
    if !are_plain(&[&by.q, &by.k, &by.v, by_shared]) {
        return composed_backward(heads, by, rotation, by_shared, products);
    }
    let flat = |x: &Tensor| x.f_contiguous()?.f_view([positions, heads.count * heads.width()]);
    let (from_q, from_k, from_v) = (flat(&by.q)?, flat(&by.k)?, flat(&by.v)?);
    let empty = |width| Tensor::f_empty([positions, heads.count * width], (Kind::Float, from_q.device()));
    let (by_q, by_kv) = (empty(heads.nope + heads.rope)?, empty(heads.nope + heads.value)?);
    let angles = rotation.f_view_as_real()?.f_view([t, heads.rope])?;
    let task = Task {
        sizes: Sizes::of(heads),
        angles: Rows::of(&angles)?,
        projected: [Rows::of(&by_q)?, Rows::of(by_shared)?, Rows::of(&by_kv)?],
        attended: [Rows::of(&from_q)?, Rows::of(&from_k)?, Rows::of(&from_v)?],
        rounds: products.rounds(),
    };
    let per_block = rows_per_block(task.attended[0].width());
    for_blocks(task.attended[0].count(), per_block, |block| disassemble_block(block, &task));
    Ok((by_q, by_kv))
}

#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
    width: usize,
}

impl Sizes {
    fn of(heads: Heads) -> Sizes {
        let whole = |size: i64| size as usize;
        Sizes {
            heads: whole(heads.count),
            nope: whole(heads.nope),
            rope: whole(heads.rope),
            value: whole(heads.value),
            width: whole(heads.width()),
        }
    }
}

/// What is written is written here alone, and every row is in one block.
struct Task<'a> {
    sizes: Sizes,
    /// cos, sin in turns.
    angles: Rows<'a>,
    /// q, shared key, kv.
    projected: [Rows<'a>; 3],
    /// q, k, v.
    attended: [Rows<'a>; 3],
    rounds: bool,
}

/// Pairs of `from`, as complex numbers, times those of `angles`.
#[inline(always)]
fn rotate(from: &[f32], angles: &[f32], to: &mut [f32], rounds: bool) {
    for ((from, angle), to) in from.chunks_exact(2).zip(angles.chunks_exact(2)).zip(to.chunks_exact_mut(2)) {
        to[0] = rounded_if(rounds, from[0] * angle[0] - from[1] * angle[1]);
        to[1] = rounded_if(rounds, from[0] * angle[1] + from[1] * angle[0]);
    }
}

/// The way back: times the conjugates.
#[inline(always)]
fn rotate_back(from: &[f32], angles: &[f32], to: &mut [f32], rounds: bool) {
    for ((from, angle), to) in from.chunks_exact(2).zip(angles.chunks_exact(2)).zip(to.chunks_exact_mut(2)) {
        to[0] = rounded_if(rounds, from[0] * angle[0] + from[1] * angle[1]);
        to[1] = rounded_if(rounds, from[1] * angle[0] - from[0] * angle[1]);
    }
}

#[inline(always)]
fn copy(from: &[f32], to: &mut [f32], rounds: bool) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = rounded_if(rounds, from);
    }
}

vectorized! {
    fn assemble_block(block: Range<usize>, task: &Task<'_>) {
        let Sizes { heads, nope, rope, value, width } = task.sizes;
        let rounds = task.rounds;
        for index in block {
            let angles = task.angles.row(index % task.angles.count());
            let [q, shared, kv] = task.projected.map(|rows| rows.row(index));
            // SAFETY: as the task says.
            let [to_q, to_k, to_v] = task.attended.map(|rows| unsafe { rows.row_mut(index) });
            for head in 0..heads {
                let q = &q[head * (nope + rope)..][..nope + rope];
                let kv = &kv[head * (nope + value)..][..nope + value];
                let at = head * width..(head + 1) * width;
                let (to_q, to_k, to_v) = (&mut to_q[at.clone()], &mut to_k[at.clone()], &mut to_v[at]);
                copy(&q[..nope], &mut to_q[..nope], rounds);
                rotate(&q[nope..], angles, &mut to_q[nope..nope + rope], rounds);
                copy(&kv[..nope], &mut to_k[..nope], rounds);
                match head {
                    0 => rotate(shared, angles, &mut to_k[nope..nope + rope], rounds),
                    _ => to_k[nope..nope + rope].fill(0.0),
                }
                copy(&kv[nope..], &mut to_v[..value], rounds);
                to_q[nope + rope..].fill(0.0);
                to_k[nope + rope..].fill(0.0);
                to_v[value..].fill(0.0);
            }
            let (first, others) = to_k.split_at_mut(width);
            for other in others.chunks_exact_mut(width) {
                other[nope..nope + rope].copy_from_slice(&first[nope..nope + rope]);
            }
        }
    }
}

vectorized! {
    fn disassemble_block(block: Range<usize>, task: &Task<'_>) {
        let Sizes { heads, nope, rope, value, width } = task.sizes;
        let rounds = task.rounds;
        let mut sum = vec![0.0f32; rope];
        for index in block {
            let angles = task.angles.row(index % task.angles.count());
            let [by_q, by_k, by_v] = task.attended.map(|rows| rows.row(index));
            // SAFETY: as the task says.
            let [to_q, to_shared, to_kv] = task.projected.map(|rows| unsafe { rows.row_mut(index) });
            sum.fill(0.0);
            for head in 0..heads {
                let at = head * width..(head + 1) * width;
                let (by_q, by_k, by_v) = (&by_q[at.clone()], &by_k[at.clone()], &by_v[at]);
                let to_q = &mut to_q[head * (nope + rope)..][..nope + rope];
                let to_kv = &mut to_kv[head * (nope + value)..][..nope + value];
                copy(&by_q[..nope], &mut to_q[..nope], rounds);
                rotate_back(&by_q[nope..nope + rope], angles, &mut to_q[nope..], rounds);
                copy(&by_k[..nope], &mut to_kv[..nope], rounds);
                copy(&by_v[..value], &mut to_kv[nope..], rounds);
                for (sum, &by) in sum.iter_mut().zip(&by_k[nope..nope + rope]) {
                    *sum += by;
                }
            }
            rotate_back(&sum, angles, to_shared, rounds);
        }
    }
}

/// `x` `[B, T, heads, rope]` times `rotation`, in f32.
fn rotated(x: &Tensor, rotation: &Tensor) -> Result<Tensor> {
    let size = x.size();
    let mut pairs = size.clone();
    if let Some(last) = pairs.pop() {
        pairs.extend([last / 2, 2]);
    }
    let pairs = x.f_to_kind(Kind::Float)?.f_reshape(&pairs)?;
    let complex = Tensor::f_complex(&pairs.f_select(-1, 0)?, &pairs.f_select(-1, 1)?)?;
    Ok(complex.f_mul(rotation)?.f_view_as_real()?.f_reshape(&size[..])?)
}

fn composed(
    heads: Heads,
    (q, shared, kv): (&Tensor, &Tensor, &Tensor),
    (rotation, b, t): (&Tensor, i64, i64),
    products: Products,
) -> Result<Attended> {
    let Heads { count: h, nope, rope, value } = heads;
    let padded = |parts: &[Tensor]| -> Result<Tensor> {
        let x = Tensor::f_cat(parts, -1)?;
        let lacks = heads.width() - x.size()[3];
        products.operand(&if lacks > 0 { x.f_constant_pad_nd([0, lacks])? } else { x })
    };
    let single = |x: &Tensor| x.f_to_kind(Kind::Float);
    let q = single(q)?.f_reshape([b, t, h, nope + rope])?.f_split_with_sizes([nope, rope], -1)?;
    let kv = single(kv)?.f_reshape([b, t, h, nope + value])?.f_split_with_sizes([nope, value], -1)?;
    let shared = rotated(&shared.f_reshape([b, t, 1, rope])?, rotation)?.f_expand([b, t, h, rope], false)?;
    Ok(Attended {
        q: padded(&[q[0].shallow_clone(), rotated(&q[1], rotation)?])?,
        k: padded(&[kv[0].shallow_clone(), shared])?,
        v: padded(&[kv[1].shallow_clone()])?,
    })
}

fn composed_backward(
    heads: Heads,
    by: &Attended,
    rotation: &Tensor,
    by_shared: &Tensor,
    products: Products,
) -> Result<(Tensor, Tensor)> {
    let Heads { count: h, nope, rope, value } = heads;
    let positions = by.q.size()[0] * by.q.size()[1];
    let back = rotation.f_conj()?.f_resolve_conj()?;
    let part = |x: &Tensor, start: i64, len: i64| x.f_to_kind(Kind::Float)?.f_narrow(-1, start, len);
    let flat = |parts: &[Tensor], width: i64| {
        products.operand(&Tensor::f_cat(parts, -1)?.f_reshape([positions, h * width])?)
    };
    let by_q = [part(&by.q, 0, nope)?, rotated(&part(&by.q, nope, rope)?, &back)?];
    let by_kv = [part(&by.k, 0, nope)?, part(&by.v, 0, value)?];
    let sum = part(&by.k, nope, rope)?.f_sum_dim_intlist(&[2i64][..], true, None::<Kind>)?;
    let found = products.operand(&rotated(&sum, &back)?.f_reshape([positions, rope])?)?;
    by_shared.shallow_clone().f_copy_(&found)?;
    Ok((flat(&by_q, nope + rope)?, flat(&by_kv, nope + value)?))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// The two forms agree, forward and backward, for narrow and wide values; and backward is the transpose of forward:
    /// ⟨assemble(x), y⟩ = ⟨x, disassemble(y)⟩, for both are linear.
    #[test]
    fn both_forms_agree_and_backward_is_the_transpose() {
        tch::manual_seed(7);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        for (b, t, heads) in [
            (1, 1, Heads { count: 1, nope: 1, rope: 2, value: 1 }),
            (2, 5, Heads { count: 3, nope: 4, rope: 6, value: 7 }),
            (3, 4, Heads { count: 2, nope: 3, rope: 4, value: 20 }),
            (2, 3, Heads { count: 2, nope: 8, rope: 8, value: 16 }),
        ] {
            let Heads { count: h, nope, rope, value } = heads;
            let angles = random(&[t, 1, rope / 2]);
            let rotation = Tensor::complex(&angles.cos(), &angles.sin());
            let wide = random(&[b * t, 9 + rope]);
            let (q, shared) = (random(&[b * t, h * (nope + rope)]), wide.narrow(1, 9, rope));
            let kv = random(&[b * t, h * (nope + value)]);
            let plain = assemble(heads, (&q, &shared, &kv), &rotation, Products::F32).unwrap();
            let other = composed(heads, (&q, &shared, &kv), (&rotation, b, t), Products::F32).unwrap();
            for (plain, other) in [(&plain.q, &other.q), (&plain.k, &other.k), (&plain.v, &other.v)] {
                assert_eq!(plain.size(), other.size());
                assert!((plain - other).abs().max().double_value(&[]) < 1e-5, "{heads:?}");
            }
            let size = [b, t, h, heads.width()];
            let by = Attended { q: random(&size), k: random(&size), v: random(&size) };
            let into = random(&[b * t, 5 + rope]);
            let by_shared = into.narrow(1, 5, rope);
            let (by_q, by_kv) = disassemble(heads, &by, &rotation, &by_shared, Products::F32).unwrap();
            let inner = |x: &Tensor, y: &Tensor| (x * y).sum(Kind::Double).double_value(&[]);
            let forward = inner(&plain.q, &by.q) + inner(&plain.k, &by.k) + inner(&plain.v, &by.v);
            let backward = inner(&q, &by_q) + inner(&shared, &by_shared) + inner(&kv, &by_kv);
            assert!((forward - backward).abs() < 1e-3, "{heads:?}: {forward} and {backward}");
            let other_shared = by_shared.zeros_like();
            let (other_q, other_kv) =
                composed_backward(heads, &by, &rotation, &other_shared, Products::F32).unwrap();
            for (plain, other) in [(&by_q, &other_q), (&by_kv, &other_kv), (&by_shared, &other_shared)] {
                assert!((plain - other).abs().max().double_value(&[]) < 1e-5, "{heads:?}");
            }
        }
    }
}
