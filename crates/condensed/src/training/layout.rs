//! How samples lie in memory while a layer works on them: images innermost, so that a register holds the same position of
//! several images. Every tap of every window then reads whole registers, whatever stride, padding or dilation there is.

use crate::kernels::{Isa, transpose};
use rayon::prelude::*;

/// Slots of planes, and which of them hold the planes' positions. A slot has room for the same position of as many images as
/// are worked on together.
#[derive(Debug)]
pub(super) struct Layout {
    /// Positions of a plane.
    positions: usize,
    /// Slots of a plane.
    pub slots: usize,
    /// Planes that are moved at once: small ones would not fill registers.
    together: usize,
    /// The slots of the positions of so many planes.
    places: Vec<u32>,
    /// The slots of a plane that have no position.
    gaps: Vec<u32>,
}

/// Positions that are moved at once at least.
const MOVED: usize = 64;

impl Layout {
    /// Of so many planes with these slots for their positions.
    pub fn new(planes: usize, slots: usize, positions: &[usize]) -> Self {
        // Planes at distances of large powers of two would share few places in the cache.
        let slots = if slots == 1 { 1 } else { slots | 1 };
        let together = MOVED.div_ceil(positions.len().max(1)).min(planes.max(1));
        let planes = (0..together).flat_map(|plane| positions.iter().map(move |slot| plane * slots + slot));
        let places = planes.map(|slot| slot as u32).collect();
        let mut is_gap = vec![true; slots];
        positions.iter().for_each(|&slot| is_gap[slot] = false);
        let gaps = (0..slots).filter(|&slot| is_gap[slot]).map(|slot| slot as u32).collect();
        Self { positions: positions.len(), slots, together, places, gaps }
    }

    /// The slot of the first position.
    pub fn first(&self) -> usize {
        self.places.first().map_or(0, |&slot| slot as usize)
    }

    /// Lays out the planes of some images `[images, planes, positions]`, `unit` floats for each slot. Slots without a position,
    /// and images that are not there, are 0.
    pub fn fill(&self, isa: Isa, images: usize, from: &[f32], to: &mut [f32], unit: usize) {
        let image = from.len() / images;
        let chunk = self.together * self.positions;
        to.par_chunks_mut(self.together * self.slots * unit).enumerate().with_min_len(8).for_each(
            |(i, to)| {
                let from = &from[i * chunk..];
                let columns = chunk.min(image - i * chunk);
                if images < unit {
                    to.fill(0.0);
                } else {
                    self.clear_gaps(to, unit);
                }
                transpose(
                    isa,
                    (from, |b| b * image),
                    (to, |c| self.places[c] as usize * unit),
                    images,
                    columns,
                );
            },
        );
    }

    /// Sets slots without a position to 0.
    fn clear_gaps(&self, to: &mut [f32], unit: usize) {
        for plane in to.chunks_exact_mut(self.slots * unit) {
            for &slot in &self.gaps {
                let slot = &mut plane[slot as usize * unit..][..unit];
                // Most are one small register, which are stored sooner than a function is called.
                match slot.as_mut_array::<8>() {
                    Some(slot) => *slot = [0.0; 8],
                    None => slot.fill(0.0),
                }
            }
        }
    }

    /// The first `positions` of some planes that have been laid out so, to `to[b · image + plane · distance + p]`.
    pub fn read(
        &self,
        isa: Isa,
        (images, unit): (usize, usize),
        (from, planes, positions): (&[f32], usize, usize),
        (to, image, distance): (&mut [f32], usize, usize),
    ) {
        // Planes that follow each other in the result are one.
        let together = if positions == distance { self.together } else { 1 };
        for first in (0..planes).step_by(together) {
            let (from, to) = (&from[first * self.slots * unit..], &mut to[first * distance..]);
            let rows = together.min(planes - first) * positions;
            transpose(isa, (from, |r| self.places[r] as usize * unit), (to, |b| b * image), rows, images);
        }
    }
}
