//! What a sparse network costs: multiplications, additions and parameters, counted from shapes alone.
//!
//! No kernel is measured here. A layer with dense fan-in `M`, sparsity `S` and `o` outputs per example has
//! `v = M·(1 − S)` active inputs per output, **not rounded**, and costs
//!
//! - `v·o` multiplications and `(v − 1)·o` additions for the products and their sum,
//! - `o` additions for the bias, counted whether or not the layer has one,
//! - `o` multiplications for the activation, after a convolution only,
//! - `N·M·(1 − S) + N` parameters, and `N·M/32` more for a bit mask (in words of 32 bits) if `S > 0`.
//!
//! This is the rule behind the published ResNet-50 table of SRigL. It is crude on purpose: batch norm,
//! pooling and residual additions are free, and a layer whose `v` falls below 1 earns negative additions.
//!
//! ```
//! use sparsity_core::counting::{CountedLayer, inference_cost};
//!
//! let layers = [CountedLayer::linear("fc1", [300, 784]), CountedLayer::linear("fc2", [10, 300])];
//! let dense = inference_cost(&layers, &[0.0, 0.0])?;
//! let sparse = inference_cost(&layers, &[0.9, 0.5])?;
//! assert_eq!(dense.flops(), 2.0 * (300.0 * 784.0 + 10.0 * 300.0));
//! assert!(sparse.flops() < 0.11 * dense.flops());
//! # Ok::<(), sparsity_core::Error>(())
//! ```

use crate::Error;
use std::iter::Sum;
use std::ops::Add;

/// What kind of layer a [`CountedLayer`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// A convolution followed by an activation, which is counted.
    Conv,
    /// A linear layer; no activation is counted.
    Linear,
}

/// The shape of one layer, as far as its cost depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedLayer {
    /// The layer's name, for display only.
    pub name: String,
    /// Convolution or linear.
    pub kind: LayerKind,
    /// Shape of the weight: `[out, in, kh, kw]` or `[out, in]`.
    pub dims: Vec<usize>,
    /// How often each neuron is evaluated per example: `H'·W'` of a convolution's output, 1 for a linear layer.
    pub out_positions: usize,
}

impl CountedLayer {
    /// A convolution with weight `[out, in, kh, kw]` and `out_positions = H'·W'`.
    pub fn conv(name: impl Into<String>, dims: [usize; 4], out_positions: usize) -> Self {
        Self { name: name.into(), kind: LayerKind::Conv, dims: dims.to_vec(), out_positions }
    }

    /// A linear layer with weight `[out, in]`, evaluated once per example.
    pub fn linear(name: impl Into<String>, dims: [usize; 2]) -> Self {
        Self { name: name.into(), kind: LayerKind::Linear, dims: dims.to_vec(), out_positions: 1 }
    }

    /// The cost of one example at the given sparsity, by the rule of [this module](self).
    ///
    /// # Errors
    /// [`Error::Sparsity`] if `sparsity` is outside `[0, 1)`.
    pub fn cost(&self, sparsity: f64) -> Result<Cost, Error> {
        if !(0.0..1.0).contains(&sparsity) {
            return Err(Error::Sparsity(sparsity));
        }
        let neurons = self.dims[0] as f64;
        let dense_fan_in = self.dims[1..].iter().product::<usize>() as f64;
        let weights = neurons * dense_fan_in;
        let outputs = neurons * self.out_positions as f64;
        let active_inputs = dense_fan_in * (1.0 - sparsity);

        let activation = if self.kind == LayerKind::Conv { outputs } else { 0.0 };
        let bias = outputs;
        let bit_mask = if sparsity > 0.0 { weights / 32.0 } else { 0.0 };
        Ok(Cost {
            multiplications: active_inputs * outputs + activation,
            additions: (active_inputs - 1.0) * outputs + bias,
            parameters: weights * (1.0 - sparsity) + neurons + bit_mask,
        })
    }
}

/// The cost of a network (or layer) for one example. Fractional, since active inputs are not rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Multiplications per example.
    pub multiplications: f64,
    /// Additions per example.
    pub additions: f64,
    /// Values to store: active weights, biases, and the bit masks as 32-bit words.
    pub parameters: f64,
}

impl Cost {
    /// Floating-point operations per example: multiplications plus additions.
    pub fn flops(&self) -> f64 {
        self.multiplications + self.additions
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            multiplications: self.multiplications + other.multiplications,
            additions: self.additions + other.additions,
            parameters: self.parameters + other.parameters,
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

/// The cost of one forward pass of one example: the sum of [`CountedLayer::cost`] over the layers.
///
/// `sparsities[l]` is the sparsity of `layers[l]`, e.g. from [`layer_sparsities`](crate::layer_sparsities).
///
/// # Errors
/// [`Error::Sparsity`] if a sparsity is outside `[0, 1)`.
///
/// # Panics
/// If the slices differ in length.
pub fn inference_cost(layers: &[CountedLayer], sparsities: &[f64]) -> Result<Cost, Error> {
    assert_eq!(layers.len(), sparsities.len(), "one sparsity per layer");
    layers.iter().zip(sparsities).map(|(layer, &sparsity)| layer.cost(sparsity)).sum()
}

/// FLOPs of sparse training: `images · (3·f_s·ΔT + 4·f_s + f_d) / (ΔT + 1)`.
///
/// A training step costs three forward passes (one forward, two backward). Of `ΔT + 1` steps, `ΔT` are
/// sparse throughout (`3·f_s`) and one also needs the dense gradient (counted as `4·f_s + f_d`).
///
/// - `dense`, `sparse`: `f_d` and `f_s`, FLOPs of one forward pass, from [`Cost::flops`].
/// - `delta_t`: steps between topology updates, `ΔT`.
/// - `images`: training examples times epochs.
///
/// For dense training the FLOPs are `3·f_d·images`; see [`dense_training_flops`].
pub fn training_flops(dense: f64, sparse: f64, delta_t: usize, images: f64) -> f64 {
    let steps = delta_t as f64;
    images * (3.0 * sparse * steps + 4.0 * sparse + dense) / (steps + 1.0)
}

/// FLOPs of dense training: `3·f_d·images`, one forward and two backward passes per image.
pub fn dense_training_flops(dense: f64, images: f64) -> f64 {
    3.0 * dense * images
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_by_hand() {
        // 4 neurons of fan-in 2·3·3 = 18 at 5·5 positions; half the inputs stay: v = 9, o = 100.
        let cost = CountedLayer::conv("c", [4, 2, 3, 3], 25).cost(0.5).unwrap();
        assert_eq!(cost.multiplications, 9.0 * 100.0 + 100.0);
        assert_eq!(cost.additions, 8.0 * 100.0 + 100.0);
        assert_eq!(cost.parameters, 36.0 + 4.0 + 72.0 / 32.0);
        assert_eq!(cost.flops(), 1900.0);
    }

    #[test]
    fn a_dense_linear_layer_needs_no_mask_and_no_activation() {
        let cost = CountedLayer::linear("l", [10, 100]).cost(0.0).unwrap();
        assert_eq!(cost, Cost { multiplications: 1000.0, additions: 1000.0, parameters: 1010.0 });
    }

    #[test]
    fn layers_add_up() {
        let layers = [CountedLayer::conv("c", [4, 2, 3, 3], 25), CountedLayer::linear("l", [10, 100])];
        let total = inference_cost(&layers, &[0.5, 0.0]).unwrap();
        let sum =
            Cost { multiplications: 1000.0 + 1000.0, additions: 900.0 + 1000.0, parameters: 42.25 + 1010.0 };
        assert_eq!((total, layers[0].cost(0.5).unwrap() + layers[1].cost(0.0).unwrap()), (sum, sum));
    }

    #[test]
    fn sparsities_outside_the_range_are_refused() {
        for sparsity in [-0.1, 1.0, f64::NAN] {
            let result = inference_cost(&[CountedLayer::linear("l", [10, 100])], &[sparsity]);
            assert!(matches!(result, Err(Error::Sparsity(_))));
        }
    }

    #[test]
    fn training_by_hand() {
        assert_eq!(dense_training_flops(10.0, 7.0), 210.0);
        // ΔT = 1: every other step pays 4·2 + 10 instead of 3·2, so (6 + 18) / 2 = 12 per image.
        assert_eq!(training_flops(10.0, 2.0, 1, 5.0), 60.0);
        // ΔT = 3: three of four pay 6, so (18 + 18) / 4 = 9.
        assert_eq!(training_flops(10.0, 2.0, 3, 5.0), 45.0);
    }
}
