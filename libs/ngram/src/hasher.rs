//! The polynomial hash of n-grams (arXiv 2601.21204 §3.1; docs/model.md, "Row ids").
//!
//! ```text
//! id[p][i] = ( t_p + Σ_{d=1}^{n-1} ctx(p,d)·(V^d mod rows[i]) ) mod rows[i],   i = (n−2)·K + k
//! ctx(p,d) = t_{p−d}, or 0 where p−d lies before the segment of p
//! ```
//! A segment ends with its EOS. An ignored token becomes 0 in the context and cuts it; at its own position every
//! id is 0, and the model must use its plain word embedding there. All arithmetic is exact in u64: powers are below
//! 2^32, and where the unreduced sum could pass 2^64 every term is reduced by itself.

use polygram_domain::model::{MAX_ORDER, NgramSpec};

use crate::error::NgramError;
use crate::modulus::Modulus;

/// Context tokens that the longest supported n-gram looks back at.
pub(crate) const MAX_DEPTH: usize = MAX_ORDER as usize - 1;

/// The tokens before a position, nearest first; 0 where there is none.
pub(crate) type Context = [u64; MAX_DEPTH];

/// The hash of one model: sizes, powers and reciprocals, computed once.
#[derive(Clone, Debug)]
pub struct Hasher {
    vocab: u32,
    eos: u32,
    ignored: TokenSet,
    orders: Vec<OrderTables>,
    rows: Vec<u32>,
    sums: Sums,
}

/// Whether unreduced sums stay below 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sums {
    Narrow,
    Wide,
}

/// The K tables of one order.
#[derive(Clone, Debug)]
struct OrderTables {
    /// n − 1.
    depth: usize,
    /// Rows of each head.
    moduli: Vec<Modulus>,
    /// `[K, depth]`: V^d mod rows, d = 1..=depth.
    powers: Vec<u64>,
}

/// A set of tokens as a bit map up to its largest member.
#[derive(Clone, Debug, Default)]
struct TokenSet(Vec<u64>);

impl TokenSet {
    fn of(tokens: &[u32]) -> TokenSet {
        let words = tokens.iter().max().map_or(0, |&t| t as usize / 64 + 1);
        let mut map = vec![0u64; words];
        for &token in tokens {
            map[token as usize / 64] |= 1 << (token % 64);
        }
        TokenSet(map)
    }

    #[inline(always)]
    fn contains(&self, token: u32) -> bool {
        self.0.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }
}

impl Hasher {
    /// The hash of `spec`, whose documents end with the token `eos`. Refuses illegal and equal table sizes.
    pub fn new(spec: &NgramSpec, eos: u32) -> Result<Hasher, NgramError> {
        let rows = legal_rows(spec)?;
        let heads = spec.heads as usize;
        let vocab = u64::from(spec.hash_vocab_size);
        let mut orders = Vec::with_capacity(rows.len() / heads);
        for (order, rows) in rows.chunks_exact(heads).enumerate() {
            let depth = order + 1;
            let moduli: Vec<Modulus> = rows.iter().map(|&m| Modulus::new(m)).collect();
            let mut powers = Vec::with_capacity(heads * depth);
            for modulus in &moduli {
                let mut power = 1u64;
                for _ in 0..depth {
                    power = u64::from(modulus.reduce(power * vocab));
                    powers.push(power);
                }
            }
            orders.push(OrderTables { depth, moduli, powers });
        }
        let largest = rows.iter().copied().max().unwrap_or(1);
        let terms = 1 + u128::from(spec.max_order - 1) * u128::from(largest - 1);
        let sums = if terms * u128::from(vocab) < 1 << 64 { Sums::Narrow } else { Sums::Wide };
        Ok(Hasher {
            vocab: spec.hash_vocab_size,
            eos,
            ignored: TokenSet::of(&spec.ignored_tokens),
            orders,
            rows,
            sums,
        })
    }

    /// Tables per site, C.
    pub fn tables(&self) -> usize {
        self.rows.len()
    }

    /// N-gram orders, N − 1.
    pub fn orders(&self) -> usize {
        self.orders.len()
    }

    /// Rows of each table at its site, order-major: `[C]`.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Token that closes a segment.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Whether a token is left out of n-grams: it uses its plain word embedding, undivided.
    pub fn ignores(&self, token: u32) -> bool {
        self.ignored.contains(token)
    }

    /// Row ids of one sequence that begins a segment.
    ///
    /// `tokens` is `[T]`, `out` `[T, C]` row-major. On an error `out` is untouched.
    pub fn ids_into(&self, tokens: &[u32], out: &mut [u32]) -> Result<(), NgramError> {
        self.check(tokens, out)?;
        self.fill(tokens, &mut Context::default(), out);
        Ok(())
    }

    /// Row ids of packed documents: segments also begin at the positions `starts` (rising, below T), whether or not
    /// an EOS stands before them. Position 0 always begins one.
    ///
    /// `tokens` is `[T]`, `out` `[T, C]` row-major. On an error `out` is untouched.
    pub fn packed_ids_into(
        &self,
        tokens: &[u32],
        starts: &[usize],
        out: &mut [u32],
    ) -> Result<(), NgramError> {
        self.check(tokens, out)?;
        let mut previous = None;
        for &start in starts {
            if start >= tokens.len() || previous.is_some_and(|p| start <= p) {
                return Err(NgramError::SegmentStart { start, tokens: tokens.len() });
            }
            previous = Some(start);
        }
        let mut from = 0;
        for to in starts.iter().copied().chain([tokens.len()]) {
            let ids = &mut out[from * self.tables()..to * self.tables()];
            self.fill(&tokens[from..to], &mut Context::default(), ids);
            from = to;
        }
        Ok(())
    }

    /// Row ids `[T, C]` of one sequence, in a new buffer.
    pub fn ids(&self, tokens: &[u32]) -> Result<Vec<u32>, NgramError> {
        let mut out = vec![0; tokens.len() * self.tables()];
        self.ids_into(tokens, &mut out)?;
        Ok(out)
    }

    /// Continues a segment whose last tokens are in `context`, and leaves the context after the last token there.
    pub(crate) fn continue_into(
        &self,
        tokens: &[u32],
        context: &mut Context,
        out: &mut [u32],
    ) -> Result<(), NgramError> {
        self.check(tokens, out)?;
        self.fill(tokens, context, out);
        Ok(())
    }

    fn check(&self, tokens: &[u32], out: &[u32]) -> Result<(), NgramError> {
        let expected = tokens.len() * self.tables();
        if out.len() != expected {
            return Err(NgramError::Shape { what: "the id buffer", actual: out.len(), expected });
        }
        if tokens.iter().fold(0, |largest, &t| largest.max(t)) < self.vocab {
            return Ok(());
        }
        match tokens.iter().position(|&t| t >= self.vocab && !self.ignores(t)) {
            None => Ok(()),
            Some(position) => {
                Err(NgramError::TokenOutOfRange { position, token: tokens[position], vocab: self.vocab })
            }
        }
    }

    fn fill(&self, tokens: &[u32], context: &mut Context, out: &mut [u32]) {
        match (self.sums, self.orders.len()) {
            (Sums::Narrow, 1) => self.fill_narrow::<1>(tokens, context, out),
            (Sums::Narrow, 2) => self.fill_narrow::<2>(tokens, context, out),
            (Sums::Narrow, 3) => self.fill_narrow::<3>(tokens, context, out),
            (Sums::Narrow, 4) => self.fill_narrow::<4>(tokens, context, out),
            (Sums::Narrow, _) => self.fill_narrow::<MAX_DEPTH>(tokens, context, out),
            (Sums::Wide, _) => self.fill_wide(tokens, context, out),
        }
    }

    /// `DEPTH` is at least N − 1: how much of the context is kept.
    fn fill_narrow<const DEPTH: usize>(&self, tokens: &[u32], context: &mut Context, out: &mut [u32]) {
        for (&token, ids) in tokens.iter().zip(out.chunks_exact_mut(self.tables())) {
            if self.ignores(token) {
                ids.fill(0);
                *context = Context::default();
                continue;
            }
            let mut rest = ids;
            for order in &self.orders {
                let (ids, tail) = rest.split_at_mut(order.moduli.len());
                rest = tail;
                match order.depth {
                    1 => order.sums::<1>(token, context, ids),
                    2 => order.sums::<2>(token, context, ids),
                    3 => order.sums::<3>(token, context, ids),
                    4 => order.sums::<4>(token, context, ids),
                    _ => order.long_sums(token, context, ids),
                }
            }
            if token == self.eos {
                *context = Context::default();
            } else {
                context.copy_within(0..DEPTH - 1, 1);
                context[0] = u64::from(token);
            }
        }
    }

    fn fill_wide(&self, tokens: &[u32], context: &mut Context, out: &mut [u32]) {
        for (&token, ids) in tokens.iter().zip(out.chunks_exact_mut(self.tables())) {
            if self.ignores(token) {
                ids.fill(0);
                *context = Context::default();
                continue;
            }
            for (order, ids) in
                self.orders.iter().zip(ids.chunks_exact_mut(self.rows.len() / self.orders.len()))
            {
                order.reduced_sums(token, context, ids);
            }
            if token == self.eos {
                *context = Context::default();
            } else {
                context.copy_within(0..MAX_DEPTH - 1, 1);
                context[0] = u64::from(token);
            }
        }
    }
}

impl OrderTables {
    #[inline(always)]
    fn sums<const DEPTH: usize>(&self, token: u32, context: &Context, ids: &mut [u32]) {
        let (powers, _) = self.powers.as_chunks::<DEPTH>();
        for ((id, modulus), powers) in ids.iter_mut().zip(&self.moduli).zip(powers) {
            let mut sum = u64::from(token);
            for d in 0..DEPTH {
                sum += context[d] * powers[d];
            }
            *id = modulus.reduce(sum);
        }
    }

    fn long_sums(&self, token: u32, context: &Context, ids: &mut [u32]) {
        let powers = self.powers.chunks_exact(self.depth);
        for ((id, modulus), powers) in ids.iter_mut().zip(&self.moduli).zip(powers) {
            let terms = powers.iter().zip(context).map(|(power, token)| power * token);
            *id = modulus.reduce(u64::from(token) + terms.sum::<u64>());
        }
    }

    /// Each product is below 2^64 − 2^33, so a 32-bit remainder may be added before the next reduction.
    fn reduced_sums(&self, token: u32, context: &Context, ids: &mut [u32]) {
        let powers = self.powers.chunks_exact(self.depth);
        for ((id, modulus), powers) in ids.iter_mut().zip(&self.moduli).zip(powers) {
            *id = powers.iter().zip(context).fold(modulus.reduce(u64::from(token)), |sum, (power, token)| {
                modulus.reduce(u64::from(sum) + power * token)
            });
        }
    }
}

/// Row ids of B sequences of T tokens, each beginning a segment.
///
/// `tokens_bt` is `[B, T]`; the answer is `[B·T, C]` row-major. An error's position counts from the first sequence.
pub fn batch_ids(hasher: &Hasher, tokens_bt: &[u32], seq_len: usize) -> Result<Vec<u32>, NgramError> {
    if seq_len == 0 || !tokens_bt.len().is_multiple_of(seq_len) {
        let expected = tokens_bt.len().checked_div(seq_len).unwrap_or(0) * seq_len;
        return Err(NgramError::Shape { what: "the token buffer", actual: tokens_bt.len(), expected });
    }
    let mut ids_pc = vec![0; tokens_bt.len() * hasher.tables()];
    let ids = ids_pc.chunks_exact_mut(seq_len * hasher.tables().max(1));
    for (sequence, (tokens, ids)) in tokens_bt.chunks_exact(seq_len).zip(ids).enumerate() {
        hasher.ids_into(tokens, ids).map_err(|error| match error {
            NgramError::TokenOutOfRange { position, token, vocab } => {
                NgramError::TokenOutOfRange { position: sequence * seq_len + position, token, vocab }
            }
            other => other,
        })?;
    }
    Ok(ids_pc)
}

/// Rows of each of the site's tables, all legal and all different.
pub(crate) fn legal_rows(spec: &NgramSpec) -> Result<Vec<u32>, NgramError> {
    let illegal =
        |what, value: u32, wanted| Err(NgramError::IllegalNumber { what, value: value.into(), wanted });
    if !(2..=MAX_ORDER).contains(&spec.max_order) {
        return illegal("ngram.max_order", spec.max_order, "2 to 16");
    }
    if !(1..=64).contains(&spec.heads) {
        return illegal("ngram.heads", spec.heads, "1 to 64");
    }
    if spec.hash_vocab_size == 0 {
        return illegal("ngram.hash_vocab_size", 0, "at least 1");
    }
    let mut rows: Vec<u32> = Vec::with_capacity(spec.tables_per_site() as usize);
    for table in 0..spec.tables_per_site() {
        let size = spec.rows_of(table);
        match u32::try_from(size) {
            Ok(legal) if (1..u32::MAX).contains(&legal) => {
                if let Some(first) = rows.iter().position(|&r| r == legal) {
                    return Err(NgramError::EqualSizes { first: first as u32, second: table, rows: size });
                }
                rows.push(legal);
            }
            _ => return Err(NgramError::IllegalSize { table, rows: size }),
        }
    }
    Ok(rows)
}
