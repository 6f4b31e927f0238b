//! The contenders of `srigl bench … --device`: dense and condensed layers and networks in Burn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use burn::backend::ProfileOptions;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use condensed::{Network, Shape, Window};
use futures_lite::future::block_on;
use srigl_burn::{CondensedConv2d, CondensedLinear, CondensedNetwork};

use super::layer::Layer;
use super::{Contender, DeviceTime, TOLERANCE};

/// Dense products of f32 may round their inputs to TF32, which has 10 bits.
pub const TF32_TOLERANCE: f64 = 1e-2;
/// bf16 has 8 bits; in a network errors add up.
pub const BF16_TOLERANCE: f64 = 0.1;

/// f32, and bf16 on devices that have it.
fn float_types(device: &Device) -> impl Iterator<Item = FloatDType> {
    [FloatDType::F32, FloatDType::BF16].into_iter().filter(|dtype| device.supports_dtype(*dtype))
}

/// Bytes of a call on a layer: weights, indices, inputs and outputs, each once.
pub fn layer_bytes(layer: &Layer, numbers: usize, float: usize, index: Option<usize>) -> usize {
    match index {
        None => float * (layer.weights.len() + numbers),
        Some(index) => (float + index) * layer.sparse.values().len() + float * numbers,
    }
}

/// Bytes of an index of the condensed layer: two where all fit, as in `srigl-burn`.
fn index_bytes(layer: &Layer, sample: Shape, window: Option<Window>) -> usize {
    let places = match window {
        None => layer.spec.dense_fan_in(),
        Some(Window { padding, .. }) => {
            sample.features * (sample.height + 2 * padding[0]) * (sample.width + 2 * padding[1])
        }
    };
    if places <= 1 << 16 { 2 } else { 4 }
}

/// A layer, dense and condensed.
pub fn layer(
    layer: &Layer,
    sample: Shape,
    window: Option<Window>,
    input: &[f32],
    outputs: usize,
    place: Place,
) -> Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    for dtype in float_types(place.device) {
        let [mut dense, mut condensed] = match window {
            None => linear_pair(layer, input, dtype, place)?,
            Some(window) => conv_pair(layer, sample, window, input, dtype, place)?,
        };
        let (numbers, float) = (input.len() + outputs, DType::from(dtype).size());
        dense.bytes = Some(layer_bytes(layer, numbers, float, None));
        condensed.bytes = Some(layer_bytes(layer, numbers, float, Some(index_bytes(layer, sample, window))));
        contenders.extend([dense, condensed]);
    }
    Ok(contenders)
}

fn linear_pair(layer: &Layer, input: &[f32], dtype: FloatDType, place: Place) -> Result<[Contender; 2]> {
    let (neurons, fan_in) = (layer.spec.neurons(), layer.spec.dense_fan_in());
    let x = place.tensor(input, [layer.batch, fan_in], dtype);
    let weight = place.tensor(&layer.weights, [neurons, fan_in], dtype).transpose();
    let bias = place.tensor(&layer.bias, [1, neurons], dtype);
    let condensed = CondensedLinear::new(&layer.sparse, Some(&layer.bias))?;
    let also = x.clone();
    Ok([
        place.contender("dense", "Burn's matmul", dtype, move || {
            x.clone().matmul(weight.clone()) + bias.clone()
        }),
        place.contender("condensed", "CondensedLinear", dtype, move || condensed.forward(also.clone())),
    ])
}

fn conv_pair(
    layer: &Layer,
    sample: Shape,
    window: Window,
    input: &[f32],
    dtype: FloatDType,
    place: Place,
) -> Result<[Contender; 2]> {
    let x = place.tensor(input, [layer.batch, sample.features, sample.height, sample.width], dtype);
    let dims: [usize; 4] =
        layer.spec.dims.clone().try_into().map_err(|dims| anyhow!("{dims:?} are no convolution's"))?;
    let weight = place.tensor(&layer.weights, dims, dtype);
    let bias = place.tensor(&layer.bias, [layer.bias.len()], dtype);
    let options = ConvOptions::new(window.stride, window.padding, window.dilation, 1);
    let condensed = CondensedConv2d::new(layer.sparse.clone(), Some(&layer.bias), window, 1)?;
    let also = x.clone();
    Ok([
        place.contender("dense", "Burn's conv2d", dtype, move || {
            conv2d(x.clone(), weight.clone(), Some(bias.clone()), options.clone())
        }),
        place.contender("condensed", "CondensedConv2d", dtype, move || condensed.forward(also.clone())),
    ])
}

/// A whole network, dense and condensed.
pub fn model(
    dense: &Network,
    condensed: &Network,
    batch: usize,
    input: &[f32],
    place: Place,
) -> Result<Vec<Contender>> {
    let Shape { features, height, width } = dense.input_shape();
    let mut contenders = Vec::new();
    for dtype in float_types(place.device) {
        let x = place.tensor(input, [batch, features, height, width], dtype);
        for (kind, engine, network) in
            [("dense", "Burn's layers", dense), ("condensed", "CondensedNetwork", condensed)]
        {
            let (network, x) = (CondensedNetwork::new(network, dtype, place.device)?, x.clone());
            let mut contender = place.contender(kind, engine, dtype, move || network.forward(x.clone()));
            // The first convolution and attention are dense in the condensed one, too.
            contender.tolerance = contender.tolerance.max(TF32_TOLERANCE);
            contenders.push(contender);
        }
    }
    Ok(contenders)
}

/// Gigabytes per second of a large copy: how fast a device's memory is, bytes read and written together.
pub fn memory_rate(device: &Device) -> Result<f64> {
    const NUMBERS: usize = 1 << 27;
    const COPIES: usize = 4;
    let source = Tensor::<1>::ones([NUMBERS], (device, DType::F32));
    let mut fastest = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        // Kept until they are there: fusion leaves out unused results.
        let copies: Vec<Tensor<1>> = (0..COPIES).map(|_| source.clone().add_scalar(1.0)).collect();
        device.sync().map_err(failed)?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
        let last = copies.into_iter().map(|copy| copy.slice(NUMBERS - 1..NUMBERS).into_scalar::<f32>());
        anyhow::ensure!(last.into_iter().all(|value| value == 2.0), "the device copies wrongly");
    }
    Ok((2 * COPIES * NUMBERS * size_of::<f32>()) as f64 / fastest / 1e9)
}

/// What a device says of work that it could not do.
pub fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

/// Where contenders compute.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub device: &'a Device,
    /// Whether it has a clock of its own, and caches.
    pub is_gpu: bool,
}

impl Place<'_> {
    fn tensor<const D: usize>(self, values: &[f32], dims: [usize; D], dtype: FloatDType) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), dims), (self.device, dtype.into()))
    }

    /// A contender whose result stays on the device.
    fn contender<const D: usize>(
        self,
        kind: &str,
        engine: &str,
        dtype: FloatDType,
        forward: impl Fn() -> Tensor<D> + Send + Sync + 'static,
    ) -> Contender {
        let name = if dtype == FloatDType::F32 { kind.to_string() } else { format!("{kind} bf16") };
        let forward = Arc::new(forward);
        let last = Arc::new(Mutex::new(None));
        let (also, result, device) = (forward.clone(), last.clone(), self.device.clone());
        let mut contender = Contender::new(&name, engine, move |calls, _, _| {
            for _ in 0..calls {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(forward());
            }
            device.sync().map_err(failed)
        });
        contender.read = Some(Box::new(move |output| {
            let result = result.lock().unwrap_or_else(PoisonError::into_inner).take();
            let result = result.context("nothing has run")?.into_data().convert::<f32>();
            output.copy_from_slice(result.as_slice::<f32>().map_err(|error| anyhow!("{error:?}"))?);
            Ok(())
        }));
        if self.is_gpu {
            contender.device_time = Some(device_time(self.device.clone(), move || also()));
        }
        contender.tolerance = match (kind, dtype) {
            (_, FloatDType::BF16) => BF16_TOLERANCE,
            ("dense", _) => TF32_TOLERANCE,
            _ => TOLERANCE,
        };
        contender
    }
}

/// Times single calls by the device's clock.
fn device_time<const D: usize>(
    device: Device,
    forward: impl Fn() -> Tensor<D> + Send + Sync + 'static,
) -> DeviceTime {
    // 256 MiB: more than any cache, and long enough that the call is in the queue before its turn.
    let source = Tensor::<1>::ones([1 << 26], (&device, DType::F32));
    Box::new(move || {
        let busy = source.clone().add_scalar(1.0);
        device.flush().map_err(failed)?;
        let options = ProfileOptions::default().flush();
        let (result, window) = device.profile_with(options, &forward).map_err(failed)?;
        let ticks = block_on(window.resolve()).context("the device's clock saw nothing")?;
        drop((busy, result));
        Ok(ticks.duration().as_secs_f64())
    })
}
