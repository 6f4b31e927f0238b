//! The contenders of `srigl bench layer --device`: Burn's dense layer and the condensed module.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use condensed::{Shape, Window};
use srigl_burn::{CondensedConv2d, CondensedLinear};

use super::Contender;
use super::layer::Layer;

/// Tolerance of bf16, which has eight bits.
const BF16_TOLERANCE: f64 = 2e-2;

/// Inputs are on the device before the clock runs and results stay there; each sample ends with a wait for the device.
pub fn contenders(
    layer: &Layer,
    sample: Shape,
    window: Option<Window>,
    input: &[f32],
    outputs: usize,
    device: &Device,
) -> Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    for (dtype, dense_name, condensed_name) in
        [(FloatDType::F32, "dense", "condensed"), (FloatDType::BF16, "dense bf16", "condensed bf16")]
    {
        if !device.supports_dtype(dtype) {
            continue;
        }
        let bytes = if dtype == FloatDType::F32 { 4 } else { 2 };
        let mut pair = match window {
            None => {
                let (neurons, fan_in) = (layer.spec.neurons(), layer.spec.dense_fan_in());
                let x = tensor(input, [layer.batch, fan_in], device).cast(dtype);
                // Burn stores `[in, out]`.
                let weight = tensor(&layer.weights, [neurons, fan_in], device).cast(dtype);
                let weight = Param::from_tensor(weight.swap_dims(0, 1));
                let bias = Some(Param::from_tensor(tensor(&layer.bias, [neurons], device).cast(dtype)));
                let dense = Linear { weight, bias };
                let condensed = CondensedLinear::new(&layer.sparse, Some(&layer.bias))?;
                let also = x.clone();
                vec![
                    on_device(dense_name, "Burn's Linear", device, move || dense.forward(x.clone())),
                    on_device(condensed_name, "CondensedLinear", device, move || {
                        condensed.forward(also.clone())
                    }),
                ]
            }
            Some(window) => {
                let dims = [layer.batch, sample.features, sample.height, sample.width];
                let x = tensor(input, dims, device).cast(dtype);
                let dims: [usize; 4] =
                    layer.spec.dims.clone().try_into().map_err(|_| anyhow!("no convolution"))?;
                let weight = tensor(&layer.weights, dims, device).cast(dtype);
                let bias = tensor(&layer.bias, [layer.bias.len()], device).cast(dtype);
                let options = ConvOptions::new(window.stride, window.padding, window.dilation, 1);
                let condensed = CondensedConv2d::new(layer.sparse.clone(), Some(&layer.bias), window, 1)?;
                let also = x.clone();
                vec![
                    on_device(dense_name, "Burn's conv2d", device, move || {
                        conv2d(x.clone(), weight.clone(), Some(bias.clone()), options.clone())
                    }),
                    on_device(condensed_name, "CondensedConv2d", device, move || {
                        condensed.forward(also.clone())
                    }),
                ]
            }
        };
        let sparse = layer.sparse.values().len();
        // Indices of condensed weights take two bytes each.
        for (contender, (weights, indices)) in
            pair.iter_mut().zip([(layer.weights.len(), 0), (sparse, 2 * sparse)])
        {
            contender.bytes = Some(bytes * (weights + input.len() + outputs) + indices);
            if dtype == FloatDType::BF16 {
                contender.tolerance = BF16_TOLERANCE;
            }
        }
        contenders.append(&mut pair);
    }
    Ok(contenders)
}

fn tensor<const D: usize>(values: &[f32], dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

/// A contender whose result stays on the device.
fn on_device<const D: usize>(
    name: &'static str,
    engine: &str,
    device: &Device,
    forward: impl Fn() -> Tensor<D> + 'static,
) -> Contender {
    let last = Rc::new(RefCell::new(None));
    let (result, device) = (last.clone(), device.clone());
    let mut contender = Contender::new(name, engine, move |calls, _, _| {
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
    contender
}
