//! Pictures of masks while they evolve: `masks.jsonl`.

use crate::{MaskLine, Picture};
use sparsity_core::Mask;
use std::collections::BTreeMap;

/// The line of a layer after a step.
pub fn mask_line(step: u64, layer: String, mask: &Mask) -> MaskLine {
    MaskLine {
        step,
        layer,
        neurons: mask.neurons() as u64,
        dense_fan_in: mask.dense_fan_in() as u64,
        picture: picture(mask),
        fan_in: fan_in(mask),
    }
}

fn picture(mask: &Mask) -> Picture {
    let (neurons, inputs) = (mask.neurons(), mask.dense_fan_in());
    let (height, width) = (neurons.min(Picture::SIDE), inputs.min(Picture::SIDE));
    let (mut active, mut all) = (vec![0_usize; height * width], vec![0_usize; height * width]);
    for neuron in 0..neurons {
        for input in 0..inputs {
            let cell = neuron * height / neurons * width + input * width / inputs;
            active[cell] += usize::from(mask.is_active(neuron, input));
            all[cell] += 1;
        }
    }
    // Rounded up, so that a cell with any active weight is never black.
    let density = active.iter().zip(&all).map(|(a, n)| (a * 255).div_ceil(*n) as u8).collect();
    Picture { height, width, density }
}

fn fan_in(mask: &Mask) -> Vec<(u64, u64)> {
    let mut counts = BTreeMap::new();
    for neuron in 0..mask.neurons() {
        *counts.entry(mask.fan_in(neuron) as u64).or_default() += 1;
    }
    counts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_masks_are_drawn_exactly_and_large_ones_by_their_density() {
        let mask = Mask::from_bytes(2, 3, &[1, 0, 1, 0, 0, 0]).unwrap();
        let drawn = picture(&mask);
        assert_eq!((drawn.height, drawn.width), (2, 3));
        assert_eq!(drawn.density, [255, 0, 255, 0, 0, 0]);
        assert_eq!(fan_in(&mask), [(0, 1), (2, 1)]);

        // Every cell of 2×2 positions has one active weight, but those of the first row have two.
        let bytes: Vec<u8> =
            (0..128 * 128).map(|i| u8::from(i % 2 == 0 && (i / 128 % 2 == 0 || i < 256))).collect();
        let drawn = picture(&Mask::from_bytes(128, 128, &bytes).unwrap());
        assert_eq!((drawn.height, drawn.width), (64, 64));
        let cells = drawn.density;
        assert!(cells[..64].iter().all(|cell| *cell == 128));
        assert!(cells[64..].iter().all(|cell| *cell == 64));
    }

    #[test]
    fn a_side_that_is_no_multiple_of_the_cells_is_spread_over_them() {
        // 96 neurons in 64 rows: cells of one and of two neurons by turns, so half of the active ones are in pairs.
        let bytes: Vec<u8> = (0..96).map(|neuron| u8::from(neuron % 3 == 0)).collect();
        let drawn = picture(&Mask::from_bytes(96, 1, &bytes).unwrap());
        let cells: Vec<u8> = [128, 0].repeat(32);
        assert_eq!((drawn.height, drawn.width, drawn.density), (64, 1, cells));
        let line = mask_line(7, "fc".into(), &Mask::from_bytes(96, 1, &bytes).unwrap());
        assert_eq!(
            (line.step, line.neurons, line.dense_fan_in, line.fan_in),
            (7, 96, 1, vec![(0, 64), (1, 32)])
        );
    }
}
