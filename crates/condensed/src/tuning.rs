//! The numbers that were found by measuring (`docs/performance.md`), and what is asked of the machine.

use std::sync::LazyLock;

/// Vectors that a tile of a batch holds.
pub(crate) const BATCH_TILE: usize = 64;

/// Planes of a training layer that one task works on: enough to share out, and their sums fit the second-level cache.
pub(crate) const PART: usize = 128;

/// Sums of such planes that are kept before they are put in their places, in floats.
pub(crate) const SUMS: usize = 32 << 10;

/// Values that one task puts in the kernels' order.
pub(crate) const PACKED: usize = 8 << 10;

/// Tasks that the gradient by values is cut into, so that the order of its sums does not depend on the number of threads.
pub(crate) const SAMPLERS: usize = 16;

/// From this batch on, tiles are faster than one vector after the other.
pub(crate) const BATCH: usize = 4;

/// Weights that a neuron should have in a block, lest the visit cost more than the work.
pub(crate) const VISIT: usize = 8;

/// Channels from which on a dense convolution is a product of matrices for each tap, and not worth a kernel
/// that reads its weights one by one.
pub(crate) const GEMM: usize = 16;

/// Rows and columns of a product of matrices that one thread works on at most. Larger tiles copy less before they start, smaller ones
/// keep more threads busy.
pub(crate) const PRODUCT: [usize; 2] = [192, 512];

/// Registers of positions of neurons which share inputs that blocks are sized for: with so many the inputs of a block fit the cache, where
/// a kernel takes no more of them at a time.
pub(crate) const SHARED: usize = 2;

/// Neurons that share inputs: more than so many are better worked on together.
pub(crate) const PAIR: usize = 2;

/// Registers of images whose gradients by values are summed together: more would not fit the cache.
pub(crate) const SHEAF: usize = 16;

/// Positions that a tile of a plane has at most, in floats.
pub(crate) const TILE_FLOATS: usize = 112;

/// One part in so many of a network's multiplications may be in layers that gain from a batch, and samples still go through it
/// one by one.
pub(crate) const BATCH_GAINS: u64 = 20;

/// Planes that one task lays out, pools or finishes at least.
pub(crate) const SHEETS_PER_TASK: usize = 16;
pub(crate) const PLANES_PER_TASK: usize = 8;
pub(crate) const FINISHED_PER_TASK: usize = 32;

/// First-level data cache where the machine does not say, in bytes.
const USUAL_CACHE: usize = 32 << 10;

/// Input that fits the first-level cache beside weights and sums, in floats.
pub(crate) fn cached_floats() -> usize {
    static FLOATS: LazyLock<usize> = LazyLock::new(|| {
        let bytes = if cfg!(miri) { None } else { cache_size::l1_cache_size() };
        bytes.filter(|bytes| (8 << 10..=256 << 10).contains(bytes)).unwrap_or(USUAL_CACHE) / size_of::<f32>()
    });
    *FLOATS
}
