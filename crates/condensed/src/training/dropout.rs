use crate::math::vectorised;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

/// Numbers that one stream of random bits decides on.
const BLOCK: usize = 1 << 12;

/// Sets a share of the numbers to 0, chosen by `seed`, and divides the others by what is left (Srivastava et al. 2014). The same
/// call makes the gradient by its result that by its input.
///
/// The choice depends on nothing but `seed` and the place of a number.
///
/// # Panics
/// If `share` is not in `[0, 1)`.
pub fn dropout(x: &mut [f32], share: f64, seed: u64) {
    assert!((0.0..1.0).contains(&share), "a share to drop in [0, 1), not {share}");
    let (least, scale) = ((share * 2f64.powi(32)) as u32, (1.0 / (1.0 - share)) as f32);
    x.par_chunks_mut(BLOCK).enumerate().for_each_init(
        || vec![0; 4 * BLOCK],
        |bytes: &mut Vec<u8>, (block, x)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(block as u64);
            let bytes = &mut bytes[..4 * x.len()];
            random.fill_bytes(bytes);
            drop_some(x, bytes.as_chunks().0, least, scale);
        },
    );
}

vectorised! {
    fn drop_some(x: &mut [f32], random: &[[u8; 4]], least: u32, scale: f32) {
        for (x, random) in x.iter_mut().zip(random) {
            // A product, so that NaN stays.
            *x *= if u32::from_le_bytes(*random) >= least { scale } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_dropped_as_asked_for_and_the_rest_makes_up_for_them() {
        for share in [0.0, 0.1, 0.5, 0.9] {
            let mut x = vec![1.0; 100_000];
            dropout(&mut x, share, 7);
            let kept = x.iter().filter(|x| **x != 0.0).count() as f64 / 100_000.0;
            assert!((kept - (1.0 - share)).abs() < 0.01, "{kept} kept at {share}");
            assert!(x.iter().all(|x| *x == 0.0 || (f64::from(*x) * (1.0 - share) - 1.0).abs() < 1e-6));
            let mut again = vec![1.0; 100_000];
            dropout(&mut again, share, 7);
            assert_eq!(x, again);
            dropout(&mut again, share, 8);
            assert!(share == 0.0 || x != again);
        }
    }

    #[test]
    fn any_number_of_threads_drops_the_same() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut x = vec![1.0; 3 * BLOCK + 5];
            pool.install(|| dropout(&mut x, 0.3, 1));
            x
        };
        assert_eq!(on(1), on(3));
        // Blocks differ.
        let x = on(2);
        assert_ne!(x[..BLOCK], x[BLOCK..2 * BLOCK]);
    }
}
