//! Pictures of masks while they evolve: `masks.jsonl`.

use super::folder::JsonLines;
use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use srigl_burn::{Mask, Topology};
use std::collections::BTreeMap;

/// Height and width of the largest picture, in cells.
const MAX_CELLS: usize = 64;

/// One line: a layer after a step.
#[derive(Serialize)]
struct MaskLine {
    step: u64,
    layer: String,
    neurons: usize,
    dense_fan_in: usize,
    picture: Picture,
    /// Fan-in, and how many neurons have it.
    fan_in: Vec<(usize, usize)>,
}

/// A mask `[N, M]` with positions joined to at most 64×64 cells.
#[derive(Serialize)]
struct Picture {
    height: usize,
    width: usize,
    /// Base64 of `[height, width]` bytes: the share of active weights in a cell, 255 for all.
    density: String,
}

/// Writes a line for each layer.
pub fn write_pictures(lines: &mut JsonLines, step: u64, topology: &Topology) -> Result<()> {
    for layer in topology.layers() {
        let mask = &layer.mask;
        lines.write(&MaskLine {
            step,
            neurons: mask.neurons(),
            dense_fan_in: mask.dense_fan_in(),
            picture: picture(mask),
            fan_in: fan_in(mask),
            layer: layer.name,
        })?;
    }
    Ok(())
}

fn picture(mask: &Mask) -> Picture {
    let (neurons, inputs) = (mask.neurons(), mask.dense_fan_in());
    let (height, width) = (neurons.min(MAX_CELLS), inputs.min(MAX_CELLS));
    let (mut active, mut all) = (vec![0_usize; height * width], vec![0_usize; height * width]);
    for neuron in 0..neurons {
        for input in 0..inputs {
            let cell = neuron * height / neurons * width + input * width / inputs;
            active[cell] += usize::from(mask.is_active(neuron, input));
            all[cell] += 1;
        }
    }
    // Rounded up, so that a cell with any active weight is never black.
    let bytes: Vec<u8> = active.iter().zip(&all).map(|(a, n)| (a * 255).div_ceil(*n) as u8).collect();
    Picture { height, width, density: BASE64_STANDARD.encode(bytes) }
}

fn fan_in(mask: &Mask) -> Vec<(usize, usize)> {
    let mut counts = BTreeMap::new();
    for neuron in 0..mask.neurons() {
        *counts.entry(mask.fan_in(neuron)).or_default() += 1;
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
        assert_eq!(BASE64_STANDARD.decode(drawn.density).unwrap(), [255, 0, 255, 0, 0, 0]);
        assert_eq!(fan_in(&mask), [(0, 1), (2, 1)]);

        // Every cell of 2×2 positions has one active weight, but those of the first row have two.
        let bytes: Vec<u8> =
            (0..128 * 128).map(|i| u8::from(i % 2 == 0 && (i / 128 % 2 == 0 || i < 256))).collect();
        let drawn = picture(&Mask::from_bytes(128, 128, &bytes).unwrap());
        assert_eq!((drawn.height, drawn.width), (64, 64));
        let cells = BASE64_STANDARD.decode(drawn.density).unwrap();
        assert!(cells[..64].iter().all(|cell| *cell == 128));
        assert!(cells[64..].iter().all(|cell| *cell == 64));
    }
}
