//! Memory that starts on a cache line, and what operations need of it while they run.

use srigl_tensors::memory::{self, TooLarge};

/// Floats, zero at first, aligned to 64 bytes so that no vector load crosses a cache line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer(Vec<Line>);

/// Floats of a cache line.
const LINE: usize = 16;

#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

impl Buffer {
    /// At least `floats` floats from now on. If that is more than before, all are zero; if there is no memory for it, none
    /// are left.
    pub fn grow(&mut self, floats: u64) -> Result<(), TooLarge> {
        // More than fits a `usize` is more than fits any memory.
        let lines = usize::try_from(floats.div_ceil(LINE as u64)).unwrap_or(usize::MAX);
        if lines > self.0.len() {
            // The old memory goes first: nobody reads it again.
            self.0 = Vec::new();
            self.0 = memory::filled(Line::default(), lines)?;
        }
        Ok(())
    }
}

impl From<&[f32]> for Buffer {
    fn from(floats: &[f32]) -> Self {
        let mut buffer = Self(vec![Line::default(); floats.len().div_ceil(LINE)]);
        buffer[..floats.len()].copy_from_slice(floats);
        buffer
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// What operations use while they run, beside inputs and results.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts<T> {
    /// What a convolution gathers of one image.
    pub packed: T,
    /// Sums of the positions that each thread works on.
    pub tiles: T,
    /// Sums of a dense layer at all positions.
    pub wide: T,
    /// Inputs of a linear layer, column by column: a block of them for each thread, or all; of a single convolution the image in planes.
    pub columns: T,
    /// Results of a linear layer, neuron by neuron, of as many tiles as threads work on at a time.
    pub sums: T,
    /// Scores of attention.
    pub scores: T,
}

/// The memory itself, kept between calls.
pub(crate) type Scratch = Parts<Buffer>;

/// How many floats of it; `u64::MAX` stands for more than a number holds.
pub(crate) type Room = Parts<u64>;

impl Scratch {
    /// At least so much memory from now on.
    pub fn grow(&mut self, room: &Room) -> Result<(), TooLarge> {
        let Self { packed, tiles, wide, columns, sums, scores } = self;
        let buffers = [packed, tiles, wide, columns, sums, scores];
        buffers.into_iter().zip(room.each()).try_for_each(|(buffer, floats)| buffer.grow(floats))
    }
}

impl Room {
    fn each(&self) -> [u64; 6] {
        [self.packed, self.tiles, self.wide, self.columns, self.sums, self.scores]
    }

    /// Enough for one as for the other.
    pub fn or(&self, other: &Self) -> Self {
        Self {
            packed: self.packed.max(other.packed),
            tiles: self.tiles.max(other.tiles),
            wide: self.wide.max(other.wide),
            columns: self.columns.max(other.columns),
            sums: self.sums.max(other.sums),
            scores: self.scores.max(other.scores),
        }
    }

    /// All of it.
    pub fn floats(&self) -> u64 {
        self.each().into_iter().fold(0, u64::saturating_add)
    }
}

/// The product of sizes, `u64::MAX` if no number holds it.
pub(crate) fn floats(sizes: &[usize]) -> u64 {
    memory::product(sizes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_large_enough_stays() {
        let mut buffer = Buffer::default();
        buffer.grow(33).unwrap();
        assert_eq!(*buffer, [0.0; 48], "whole cache lines");
        buffer[7] = 1.0;
        buffer.grow(48).unwrap();
        assert_eq!((buffer.len(), buffer[7]), (48, 1.0));
        buffer.grow(49).unwrap();
        assert_eq!(*buffer, [0.0; 64]);
    }
}
