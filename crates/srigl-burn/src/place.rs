//! Where numbers go.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// A device and the float type to compute in there.
pub(crate) struct Place<'a> {
    pub device: &'a Device,
    pub dtype: DType,
}

impl Place<'_> {
    pub fn tensor<const D: usize>(&self, values: Vec<f32>, dims: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, dims), (self.device, self.dtype))
    }
}
