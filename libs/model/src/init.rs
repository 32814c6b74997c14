//! Initial values of dense parameters: normal numbers by Box and Muller's transform of Philox words, a function of (seed,
//! tensor, element) alone. Transcendental functions are `libm`'s, so that every machine has the same bits.

use polygram_domain::RankLayout;
use polygram_domain::layout::Init;
use polygram_domain::philox::{Purpose, Stream};

/// Elements that one thread makes at a time; a multiple of 4.
const PIECE: usize = 1 << 16;

/// Fills `weights` (flat, in the layout's order).
pub(crate) fn fill(layout: &RankLayout, seed: u64, weights: &mut [f32]) {
    let stream = Stream::new(seed, Purpose::DenseInit);
    let threads = tch::get_num_threads().max(1) as usize;
    for entry in layout.entries() {
        let tensor = entry.number;
        let values = &mut weights[entry.range.clone()];
        match entry.spec.init {
            Init::Ones => values.fill(1.0),
            Init::Zeros => values.fill(0.0),
            Init::Normal(deviation) if values.len() <= PIECE || threads == 1 => {
                normals(stream, tensor, 0, deviation, values);
            }
            Init::Normal(deviation) => {
                let share = values.len().div_ceil(threads).next_multiple_of(4);
                std::thread::scope(|scope| {
                    for (index, part) in values.chunks_mut(share).enumerate() {
                        scope.spawn(move || normals(stream, tensor, index * share, deviation, part));
                    }
                });
            }
        }
    }
}

/// Elements `first..` of `tensor`; `first` is a multiple of 4, for one block of four words makes four elements.
fn normals(stream: Stream, tensor: usize, first: usize, deviation: f64, values: &mut [f32]) {
    for (block, four) in values.chunks_mut(4).enumerate() {
        let words = stream.words(tensor as u64, (first / 4 + block) as u64);
        let [a, b] = pair(words[0], words[1]);
        let [c, d] = pair(words[2], words[3]);
        for (value, normal) in four.iter_mut().zip([a, b, c, d]) {
            *value = (normal * deviation) as f32;
        }
    }
}

/// Two independent standard normal numbers of two words.
fn pair(first: u32, second: u32) -> [f64; 2] {
    const UNIT: f64 = 1.0 / 4_294_967_296.0;
    let radius = libm::sqrt(-2.0 * libm::log((f64::from(first) + 1.0) * UNIT));
    let angle = 2.0 * std::f64::consts::PI * f64::from(second) * UNIT;
    [radius * libm::cos(angle), radius * libm::sin(angle)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_their_moments_and_depend_on_the_index_alone() {
        let stream = Stream::new(11, Purpose::DenseInit);
        let mut values = vec![0.0f32; 40_000];
        normals(stream, 3, 0, 0.5, &mut values);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 0.25).abs() < 0.01, "mean {mean}, variance {variance}");
        let mut part = vec![0.0f32; 10];
        normals(stream, 3, 1000, 0.5, &mut part);
        assert_eq!(part, values[1000..1010]);
    }
}
