//! A two-dimensional convolution.

use super::weights::{self, Form};
use super::{Cost, Layer, LayerMut, Operation, Passing, Run, Stored};
use crate::buffer::{Room, floats};
use crate::engine::{Call, Place, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::planes::PlaneLayer;
use crate::{Error, NodeError, Shape, Weight, Window};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes that a tap of the window takes at most while a convolution is planned.
const PACKED_TAP: usize = 64;

/// A two-dimensional convolution, as in PyTorch, but for absent weights: see [`LinearKernel::run`].
///
/// [`LinearKernel::run`]: crate::LinearKernel::run
#[derive(Clone, PartialEq)]
pub struct Conv2d {
    /// Weights `[out channels, in channels / groups · kh · kw]`.
    pub weight: Weight,
    /// Bias `[out channels]`.
    pub bias: Vec<f32>,
    /// Window.
    pub window: Window,
    /// Groups of channels that do not mix.
    pub groups: usize,
}

impl fmt::Debug for Conv2d {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conv2d")
            .field("channels", &self.bias.len())
            .field("weight", &self.weight)
            .field("window", &self.window)
            .field("groups", &self.groups)
            .finish()
    }
}

impl Operation for Conv2d {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        let Self { weight, bias, window, groups } = self;
        let input = inputs[0];
        let (output, fan_in) = window.convolution(input, *groups, bias.len())?;
        weights::check(weight, bias, fan_in)?;
        window.check_gathered(input, [output.height, output.width])?;
        Ok(output)
    }

    fn cost(&self, _input: Shape, output: Shape) -> Cost {
        weights::cost(&self.weight, &self.bias, output.positions())
    }

    fn plan(&self, planning: &Planning) -> Result<Box<dyn Run>, Error> {
        let &Planning { input, isa, threads } = planning;
        let Self { weight, bias, window, groups } = self;
        Ok(Box::new(match weight {
            Weight::Dense(weight) => {
                PlaneLayer::dense_conv(isa, weight, bias, window, *groups, input, threads)
            }
            Weight::Condensed(weight) => {
                PlaneLayer::conv(isa, &weight.rows(), bias, window, *groups, input, threads)
            }
        }))
    }

    fn packed(&self, input: Shape) -> u64 {
        let Self { weight, bias, window, groups } = self;
        let taps = floats(&[window.kernel[0], window.kernel[1], PACKED_TAP]);
        weights::packed(weight, bias, PlaneLayer::by_products(*groups, input)).saturating_add(taps)
    }

    fn gathered(&self, input: Shape, output: Shape) -> u64 {
        let [height, width] = self.window.kernel;
        floats(&[input.features, height, width, output.positions()])
    }

    fn layer(&self) -> Option<Layer<'_>> {
        let padded = self.window.padding != [0, 0];
        Some(Layer { weight: &self.weight, bias: &self.bias, padded, whole: self.groups == 1 })
    }

    fn layer_mut(&mut self) -> Option<LayerMut<'_>> {
        Some(LayerMut { weight: &mut self.weight, bias: &mut self.bias })
    }

    fn pass_constants(&self, _features: &mut Vec<(usize, Option<f32>)>, _positions: usize) -> Passing {
        if self.groups == 1 { Passing::Ends } else { Passing::Stops }
    }
}

impl Run for PlaneLayer {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, second, out, relu, scratch, .. } = call;
        let (size, result) = (from.sample(), to.sample());
        for sample in 0..batch {
            let second = second.map(|s| &s[sample * result..][..result]);
            let out = &mut out[sample * result..][..result];
            PlaneLayer::run(self, &x[sample * size..], out, second, relu, scratch);
        }
    }

    fn room(&self, _from: Place, _to: Place, _batch: usize) -> Room {
        PlaneLayer::room(self)
    }

    fn bytes(&self) -> usize {
        PlaneLayer::bytes(self)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attributes {
    weight: Form,
    window: Window,
    groups: usize,
}

impl Stored for Conv2d {
    type Attributes = Attributes;

    fn write(&self, node: &mut NodeWriter) -> Attributes {
        node.vector("bias", &self.bias);
        let weight = weights::write(&self.weight, self.bias.len(), node);
        Attributes { weight, window: self.window, groups: self.groups }
    }

    fn read(attributes: Attributes, node: &mut NodeTensors) -> Result<Self, Error> {
        let Attributes { weight, window, groups } = attributes;
        let bias = node.vector("bias")?;
        Ok(Self { weight: weights::read(weight, bias.len(), node)?, bias, window, groups })
    }
}
