//! The contenders of `srigl bench … --device`: dense and condensed layers and networks in Burn.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use condensed::{Network, Shape, Window};
use srigl_burn::{CondensedConv2d, CondensedLinear, CondensedNetwork};

use super::layer::Layer;
use super::{Contender, TOLERANCE};

/// Dense products of f32 may round their inputs to TF32, which has 10 bits.
pub const TF32_TOLERANCE: f64 = 1e-2;
/// bf16 has 8 bits; in a network errors add up.
pub const BF16_TOLERANCE: f64 = 0.1;

/// f32, and bf16 on devices that have it.
fn float_types(device: &Device) -> impl Iterator<Item = FloatDType> {
    [FloatDType::F32, FloatDType::BF16].into_iter().filter(|dtype| device.supports_dtype(*dtype))
}

fn name(kind: &str, dtype: FloatDType) -> String {
    if dtype == FloatDType::F32 { kind.into() } else { format!("{kind} bf16") }
}

fn float_bytes(dtype: FloatDType) -> usize {
    if dtype == FloatDType::F32 { 4 } else { 2 }
}

/// A layer, dense and condensed. The bytes of a call are weights, indices, inputs and outputs, each once.
pub fn layer(
    layer: &Layer,
    sample: Shape,
    window: Option<Window>,
    input: &[f32],
    outputs: usize,
    device: &Device,
) -> Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    for dtype in float_types(device) {
        let [mut dense, mut condensed] = match window {
            None => linear_pair(layer, input, dtype, device)?,
            Some(window) => conv_pair(layer, sample, window, input, dtype, device)?,
        };
        let values = |weights: usize| float_bytes(dtype) * (weights + input.len() + outputs);
        let weights = layer.sparse.values().len();
        dense.bytes = Some(values(layer.weights.len()));
        // Indices take two bytes each.
        condensed.bytes = Some(values(weights) + 2 * weights);
        contenders.extend([dense, condensed]);
    }
    Ok(contenders)
}

fn linear_pair(layer: &Layer, input: &[f32], dtype: FloatDType, device: &Device) -> Result<[Contender; 2]> {
    let (neurons, fan_in) = (layer.spec.neurons(), layer.spec.dense_fan_in());
    let place = Place { device, dtype };
    let x = place.tensor(input, [layer.batch, fan_in]);
    // Burn stores `[in, out]`.
    let weight = Param::from_tensor(place.tensor(&layer.weights, [neurons, fan_in]).swap_dims(0, 1));
    let bias = Some(Param::from_tensor(place.tensor(&layer.bias, [neurons])));
    let dense = Linear { weight, bias };
    let condensed = CondensedLinear::new(&layer.sparse, Some(&layer.bias))?;
    let also = x.clone();
    Ok([
        place.contender("dense", "Burn's Linear", move || dense.forward(x.clone())),
        place.contender("condensed", "CondensedLinear", move || condensed.forward(also.clone())),
    ])
}

fn conv_pair(
    layer: &Layer,
    sample: Shape,
    window: Window,
    input: &[f32],
    dtype: FloatDType,
    device: &Device,
) -> Result<[Contender; 2]> {
    let place = Place { device, dtype };
    let x = place.tensor(input, [layer.batch, sample.features, sample.height, sample.width]);
    let dims: [usize; 4] =
        layer.spec.dims.clone().try_into().map_err(|dims| anyhow!("{dims:?} are no convolution's"))?;
    let weight = place.tensor(&layer.weights, dims);
    let bias = place.tensor(&layer.bias, [layer.bias.len()]);
    let options = ConvOptions::new(window.stride, window.padding, window.dilation, 1);
    let condensed = CondensedConv2d::new(layer.sparse.clone(), Some(&layer.bias), window, 1)?;
    let also = x.clone();
    Ok([
        place.contender("dense", "Burn's conv2d", move || {
            conv2d(x.clone(), weight.clone(), Some(bias.clone()), options.clone())
        }),
        place.contender("condensed", "CondensedConv2d", move || condensed.forward(also.clone())),
    ])
}

/// A whole network, dense and condensed.
pub fn model(
    dense: &Network,
    condensed: &Network,
    batch: usize,
    input: &[f32],
    device: &Device,
) -> Result<Vec<Contender>> {
    let Shape { features, height, width } = dense.shapes()?[0];
    let mut contenders = Vec::new();
    for dtype in float_types(device) {
        let place = Place { device, dtype };
        let x = place.tensor(input, [batch, features, height, width]);
        for (kind, engine, network) in
            [("dense", "Burn's layers", dense), ("condensed", "CondensedNetwork", condensed)]
        {
            let (network, x) = (CondensedNetwork::new(network, dtype, device)?, x.clone());
            let mut contender = place.contender(kind, engine, move || network.forward(x.clone()));
            if kind == "condensed" && dtype == FloatDType::F32 {
                // The first convolution and attention are dense in it.
                contender.tolerance = TF32_TOLERANCE;
            }
            contenders.push(contender);
        }
    }
    Ok(contenders)
}

/// Gigabytes per second of a large copy: how fast a device's memory is, bytes read and written together.
pub fn memory_rate(device: &Device) -> Result<f64> {
    const NUMBERS: usize = 1 << 27;
    const COPIES: usize = 10;
    let source = Tensor::<1>::zeros([NUMBERS], (device, DType::F32));
    let mut fastest = f64::INFINITY;
    for _ in 0..COPIES {
        let start = Instant::now();
        // Kept until it is there: fusion leaves out what nobody will read.
        let copy = source.clone().add_scalar(1.0);
        device.sync().map_err(|error| anyhow!("{error}"))?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
        drop(copy);
    }
    Ok((2 * NUMBERS * size_of::<f32>()) as f64 / fastest / 1e9)
}

/// Where a contender computes, and in what.
struct Place<'a> {
    device: &'a Device,
    dtype: FloatDType,
}

impl Place<'_> {
    fn tensor<const D: usize>(&self, values: &[f32], dims: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), dims), (self.device, self.dtype.into()))
    }

    /// A contender whose result stays on the device.
    fn contender<const D: usize>(
        &self,
        kind: &str,
        engine: &str,
        forward: impl Fn() -> Tensor<D> + 'static,
    ) -> Contender {
        let last = Rc::new(RefCell::new(None));
        let (result, device) = (last.clone(), self.device.clone());
        let mut contender = Contender::new(&name(kind, self.dtype), engine, move |calls, _, _| {
            for _ in 0..calls {
                *last.borrow_mut() = Some(forward());
            }
            device.sync().map_err(|error| anyhow!("{error}"))
        });
        contender.read = Some(Box::new(move |output| {
            let result = result.borrow_mut().take().context("nothing has run")?;
            let values: Vec<f32> =
                result.into_data().convert::<f32>().try_into_vec().map_err(|e| anyhow!("{e:?}"))?;
            output.copy_from_slice(&values);
            Ok(())
        }));
        contender.tolerance = match (kind, self.dtype) {
            (_, FloatDType::BF16) => BF16_TOLERANCE,
            ("dense", _) => TF32_TOLERANCE,
            _ => TOLERANCE,
        };
        contender
    }
}
