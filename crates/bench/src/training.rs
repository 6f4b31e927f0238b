//! The contenders of `srigl bench layer --training`: forward and backward through one layer.
//!
//! The result of each is `y`, and the gradients by the input, by the active weights and by the bias, one after the other.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::tensor::module::{conv2d, linear};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use condensed::training::{self, Scratch};
use condensed::{CondensedWeight, Shape, Window};
use rayon::ThreadPool;

use super::Contender;
use super::layer::Layer;

/// One layer with all that a step of it reads.
pub struct Step<'a> {
    pub layer: &'a Layer,
    pub sample: Shape,
    /// None of a linear layer.
    pub window: Option<Window>,
    pub input: &'a [f32],
    /// By the result.
    pub gradient: &'a [f32],
}

impl Step<'_> {
    /// Numbers of the result.
    pub fn outputs(&self) -> usize {
        self.gradient.len() + self.input.len() + self.layer.sparse.values().len() + self.layer.bias.len()
    }

    /// Ours.
    pub fn contenders(&self, pool: &Arc<ThreadPool>) -> Result<Vec<Contender>> {
        let Layer { sparse, bias, .. } = self.layer;
        let dy = self.gradient.to_vec();
        let condensed = self.condensed("condensed", (sparse, bias, dy), pool)?;
        let mut contenders = vec![self.in_burn("dense", pool)?, self.in_burn("masked", pool)?, condensed];
        contenders.extend(self.apart(pool)?);
        Ok(contenders)
    }

    /// The same neurons in an order in which none lies beside another of its group.
    fn apart(&self, pool: &Arc<ThreadPool>) -> Result<Option<Contender>> {
        let Some(apart) = self.layer.apart()? else { return Ok(None) };
        let (batch, neurons, inputs) = (self.layer.batch, self.layer.bias.len(), self.input.len());
        let positions = self.gradient.len() / (batch * neurons);
        let mut dy = self.gradient.to_vec();
        apart.scatter(&mut dy, positions);
        let (results, weights) = (dy.len(), apart.sparse.values().len());
        let mut contender = self.condensed("apart", (&apart.sparse, &apart.bias, dy), pool)?;
        contender.read = Some(Box::new(move |output| {
            let (y, output) = output.split_at_mut(results);
            let (dvalues, dbias) = output[inputs..].split_at_mut(weights);
            apart.restore(y, positions);
            apart.restore(dvalues, weights / neurons);
            apart.restore(dbias, 1);
            Ok(())
        }));
        Ok(Some(contender))
    }

    fn condensed(
        &self,
        name: &str,
        (sparse, bias, dy): (&CondensedWeight, &[f32], Vec<f32>),
        pool: &Arc<ThreadPool>,
    ) -> Result<Contender> {
        let Self { layer, sample, window, .. } = self;
        let pattern = sparse.pattern();
        let kernels = match window {
            None => training::Layer::linear(pattern)?,
            Some(window) => training::Layer::conv2d(pattern, *window, 1, *sample)?,
        };
        let (values, bias) = (sparse.values().to_vec(), bias.to_vec());
        let (batch, pool) = (layer.batch, pool.clone());
        let mut scratch = Scratch::default();
        Ok(Contender::new(name, "training::Layer", move |calls, x, output| {
            let (y, output) = output.split_at_mut(dy.len());
            let (dx, output) = output.split_at_mut(x.len());
            let (dvalues, dbias) = output.split_at_mut(values.len());
            pool.install(|| {
                for _ in 0..calls {
                    kernels.forward(&values, Some(&bias), batch, x, y, &mut scratch)?;
                    kernels.backward(&values, batch, x, &dy, Some(dx), dvalues, &mut scratch)?;
                    kernels.bias_gradient(batch, &dy, dbias);
                }
                Ok(())
            })
        }))
    }

    /// Burn's dense layer, as the program trains with masks over it: `masked` also clears the gradient of what is inactive.
    fn in_burn(&self, name: &str, pool: &Arc<ThreadPool>) -> Result<Contender> {
        let device = Device::flex().autodiff();
        let Self { layer, sample, window, input, gradient } = self;
        let Shape { features, height, width } = *sample;
        let (neurons, fan_in) = (layer.spec.neurons(), layer.spec.dense_fan_in());
        let tensor = |numbers: &[f32], dims: &[usize]| TensorData::new(numbers.to_vec(), dims.to_vec());
        let result = match window {
            Some(window) => window.output_size(*sample)?,
            None => [1, 1],
        };
        // A linear layer is a convolution of images of one pixel, but for what is called.
        let x = tensor(input, &[layer.batch, features, height, width]);
        let dy =
            Tensor::<4>::from_data(tensor(gradient, &[layer.batch, neurons, result[0], result[1]]), &device);
        let kernel = window.map_or([1, 1], |window| window.kernel);
        let dims = [neurons, fan_in / kernel[0] / kernel[1], kernel[0], kernel[1]];
        let weight = Tensor::<4>::from_data(tensor(&layer.weights, &dims), &device).require_grad();
        let bias = Tensor::<1>::from_data(tensor(&layer.bias, &[neurons]), &device).require_grad();
        let inactive: Vec<bool> = layer.weights.iter().map(|weight| *weight == 0.0).collect();
        let cleared = Tensor::<4, Bool>::from_data(
            TensorData::new(inactive.clone(), dims),
            &device.clone().without_autodiff(),
        );
        let is_masked = name == "masked";
        let options = window
            .map(|Window { stride, padding, dilation, .. }| ConvOptions::new(stride, padding, dilation, 1));
        let x = Tensor::<4>::from_data(x, &device).require_grad();

        let results = Rc::new(RefCell::new(None));
        let (last, threads) = (results.clone(), pool.clone());
        let run = move || {
            let y = match &options {
                Some(options) => conv2d(x.clone(), weight.clone(), Some(bias.clone()), options.clone()),
                None => {
                    let [batch, features, ..] = x.dims();
                    let weight = weight.clone().reshape([neurons, features]).transpose();
                    let y = linear(x.clone().reshape([batch, features]), weight, Some(bias.clone()));
                    y.reshape([batch, neurons, 1, 1])
                }
            };
            // Burn begins a backward pass with ones, so the gradient has to come from a product.
            let gradients = (y.clone() * dy.clone()).sum().backward();
            let of_weight = weight.grad(&gradients)?;
            let of_weight = if is_masked { of_weight.mask_fill(cleared.clone(), 0.0) } else { of_weight };
            Some((y.inner(), x.grad(&gradients)?, of_weight, bias.grad(&gradients)?))
        };
        let engine = if is_masked { "Burn's layer, and a mask over its gradient" } else { "Burn's layer" };
        let mut contender = Contender::new(name, engine, move |calls, _, _| {
            let result = threads.install(|| (0..calls).fold(None, |_, _| run()));
            *last.borrow_mut() = Some(result.context("a tensor without a gradient")?);
            Ok(())
        });
        contender.read = Some(Box::new(move |output| {
            let result = results.borrow_mut().take();
            let (y, dx, of_weight, dbias) = result.context("nothing has been run")?;
            let numbers =
                |data: TensorData| data.try_into_vec::<f32>().map_err(|_| anyhow::anyhow!("not in f32"));
            let of_weight = numbers(of_weight.into_data())?.into_iter().zip(&inactive);
            let of_active = of_weight.filter(|(_, inactive)| !**inactive).map(|(number, _)| number);
            let mut all = numbers(y.into_data())?;
            all.extend(numbers(dx.into_data())?);
            all.extend(of_active);
            all.extend(numbers(dbias.into_data())?);
            ensure!(all.len() == output.len(), "{} numbers for {}", all.len(), output.len());
            output.copy_from_slice(&all);
            Ok(())
        }));
        Ok(contender)
    }
}
