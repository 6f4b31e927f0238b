//! How Burn stores the weights of a layer, as seen from rows = neurons.

use burn::tensor::{Bool, Device, Tensor, TensorCreationOptions, TensorData, Transaction};
use rayon::prelude::*;
use sparsity_core::Mask;

/// Memory layout of a weight tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `Linear`: `[in, out]`, neurons are columns.
    InOut,
    /// `Conv1d`, `Conv2d`, `Conv3d`: `[out, in, k…]`, neurons are rows.
    OutIn,
}

impl Layout {
    /// The layout of the field `weight` in a Burn module, `None` for modules that stay dense.
    pub fn of_container(container: &str) -> Option<Self> {
        match container {
            "Struct:Linear" | "Struct:SparseLinear" => Some(Self::InOut),
            "Struct:Conv1d" | "Struct:Conv2d" | "Struct:Conv3d" | "Struct:SparseConv2d" => Some(Self::OutIn),
            _ => None,
        }
    }

    /// That of a weight with so many dimensions.
    pub fn of_rank(rank: usize) -> Self {
        if rank == 2 { Self::InOut } else { Self::OutIn }
    }

    /// Whether a Burn module is a layer that trains in condensed form once it is sparse.
    pub fn condenses(container: &str) -> bool {
        matches!(container, "Struct:SparseLinear" | "Struct:SparseConv2d")
    }

    /// Dimensions `[out, in, …]` of a tensor with these dimensions in Burn.
    pub fn out_in_dims(self, dims: &[usize]) -> Vec<usize> {
        match self {
            Self::InOut => dims.iter().rev().copied().collect(),
            Self::OutIn => dims.to_vec(),
        }
    }

    /// Row-major values `[N · M]` of a weight or gradient tensor.
    pub fn to_rows<const D: usize>(self, tensor: Tensor<D>) -> Vec<f32> {
        let [rows] = self.read_rows([tensor]);
        rows
    }

    /// The same for several tensors, in one wait for their device.
    pub fn read_rows<const D: usize, const K: usize>(self, tensors: [Tensor<D>; K]) -> [Vec<f32>; K] {
        let register = |reads: Transaction, tensor: Tensor<D>| match self {
            Self::InOut => reads.register(tensor.swap_dims(0, 1)),
            Self::OutIn => reads.register(tensor),
        };
        let read = tensors.into_iter().fold(Transaction::default(), register).execute();
        let rows = |data: TensorData| data.convert::<f32>().try_into_vec().expect("converted to f32");
        let rows: Vec<Vec<f32>> = read.into_iter().map(rows).collect();
        rows.try_into().expect("one for each tensor")
    }

    /// A tensor of Burn's dimensions `dims` from row-major values `[N · M]`.
    pub fn tensor_of_rows<const D: usize>(
        self,
        rows: Vec<f32>,
        dims: [usize; D],
        place: impl Into<TensorCreationOptions>,
    ) -> Tensor<D> {
        match self {
            Self::InOut => {
                Tensor::from_data(TensorData::new(rows, self.out_in_dims(&dims)), place).swap_dims(0, 1)
            }
            Self::OutIn => Tensor::from_data(TensorData::new(rows, dims), place),
        }
    }

    /// True where the mask is 0, in Burn's dimensions `dims`.
    pub fn inactive<const D: usize>(self, mask: &Mask, dims: [usize; D], device: &Device) -> Tensor<D, Bool> {
        let (n, m) = (mask.neurons(), mask.dense_fan_in());
        let words_per_row = m.div_ceil(64);
        let word = |neuron: usize, block: usize| mask.words()[neuron * words_per_row + block];
        let is_inactive = |word: u64, bit: usize| word >> bit & 1 == 0;
        let mut inactive = vec![false; n * m];
        match self {
            _ if inactive.is_empty() => {}
            Self::OutIn => inactive.par_chunks_mut(m).with_min_len(16).enumerate().for_each(|(i, row)| {
                row.iter_mut()
                    .enumerate()
                    .for_each(|(j, value)| *value = is_inactive(word(i, j / 64), j % 64));
            }),
            // 64 inputs of all neurons at a time: the rows that are written to stay in the cache.
            Self::InOut => inactive.par_chunks_mut(64 * n).enumerate().for_each(|(block, values)| {
                for i in 0..n {
                    let word = word(i, block);
                    values.chunks_mut(n).enumerate().for_each(|(bit, row)| row[i] = is_inactive(word, bit));
                }
            }),
        }
        Tensor::from_data(TensorData::new(inactive, dims), device)
    }
}
