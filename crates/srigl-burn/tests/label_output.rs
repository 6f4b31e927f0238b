//! The output layer of extreme classification behind a network of Burn's, against the same in dense operations.

mod devices;

use burn::module::Param;
use burn::tensor::activation::{relu, softplus};
use burn::tensor::{Distribution, Tensor, TensorData, Tolerance};
use sparsity_core::{Stream, random_row};
use srigl_burn::LabelOutput;
use srigl_burn::condensed::training::{LabelLayer, LabelLoss, LabelSizes};

const LABELS: usize = 30;
const INPUTS: usize = 12;

fn layer() -> LabelLayer {
    let sizes = LabelSizes { inputs: INPUTS, labels: LABELS, fan_in: 5, group: 2 };
    let stream = Stream { seed: 4, layer: 0, step: 0 };
    let weights = |label: usize, values: &mut [f32]| {
        values
            .iter_mut()
            .zip(0..)
            .for_each(|(value, k)| *value = ((label * 5 + k * 7) % 13) as f32 / 6.0 - 1.0);
        label as f32 / 20.0 - 1.0
    };
    LabelLayer::new(sizes, |group, row| random_row(row, INPUTS, stream, group), weights).unwrap()
}

/// Loss and gradient by the features are those of Burn's operations on all logits, and features are trained by it.
#[test]
fn its_loss_brings_the_gradient_by_the_features() {
    let labels: [&[u32]; 3] = [&[0, 7], &[], &[29]];
    for device in devices::all().into_iter().map(burn::tensor::Device::autodiff) {
        for loss in [LabelLoss::BinaryCrossEntropy, LabelLoss::SquaredHinge] {
            let x =
                Tensor::<2>::random([3, INPUTS], Distribution::Uniform(-1.0, 1.0), &device).require_grad();
            let layer = layer();
            let (mut weight, mut bias, mut y) = ([0.0; LABELS * INPUTS], [0.0; LABELS], [0.0; 3 * LABELS]);
            for label in 0..LABELS {
                let (values, of_label) = layer.weights(label);
                bias[label] = of_label;
                for (input, value) in layer.inputs(label / 2).iter().zip(values) {
                    weight[label * INPUTS + usize::from(*input)] = *value;
                }
            }
            for (sample, labels) in labels.iter().enumerate() {
                labels.iter().for_each(|label| y[sample * LABELS + *label as usize] = 1.0);
            }
            let tensor = |numbers: &[f32], dims: [usize; 2]| {
                Tensor::<2>::from_data(TensorData::new(numbers.to_vec(), dims), &device)
            };
            let z =
                x.clone().matmul(tensor(&weight, [LABELS, INPUTS]).transpose()) + tensor(&bias, [1, LABELS]);
            let y = tensor(&y, [3, LABELS]);
            let dense = match loss {
                LabelLoss::BinaryCrossEntropy => softplus(z.clone(), 1.0) - y * z,
                LabelLoss::SquaredHinge => relu(z * (y * -2.0 + 1.0) + 1.0).square(),
            };
            let dense = dense.sum() / 3.0;
            let mut output = LabelOutput::new(layer, loss).unwrap();
            let ours = output.step(x.clone(), &labels, 0.1).unwrap();
            let close = Tolerance::rel_abs(1e-4, 1e-5);
            ours.to_data().assert_approx_eq::<f32>(&dense.to_data(), close);
            let (ours, dense) = (ours.backward(), dense.backward());
            let gradient = x.grad(&ours).unwrap();
            gradient.to_data().assert_approx_eq::<f32>(&x.grad(&dense).unwrap().to_data(), close);
            let before = crate::layer();
            assert_ne!(output.layer().weights(7), before.weights(7), "it has made a step");
            let best = output.top(2, x).unwrap();
            assert!(best.iter().all(|best| best.len() == 2 && best[0].1 >= best[1].1));
        }
    }
}

/// With its moments and its number of steps it goes on as if it had not stopped.
#[test]
fn it_goes_on_with_its_moments() {
    let device = burn::tensor::Device::flex().autodiff();
    let x = Tensor::<2>::random([2, INPUTS], Distribution::Default, &device);
    let labels: [&[u32]; 2] = [&[1], &[8]];
    let mut output = LabelOutput::new(layer(), LabelLoss::SquaredHinge).unwrap();
    _ = output.step(x.clone(), &labels, 0.1).unwrap();
    assert_eq!(output.steps(), 1);
    let (layer, moments) = output.parts();
    let (layer, moments) = (layer.clone(), moments.clone());
    let mut again = LabelOutput::going_on(layer, moments, LabelLoss::SquaredHinge, 1);
    for output in [&mut output, &mut again] {
        _ = output.step(x.clone(), &labels, 0.1).unwrap();
    }
    assert_eq!(output.layer(), again.layer());
}

/// What is in front of it learns: features without weights in between.
#[test]
fn features_and_labels_find_each_other() {
    let device = burn::tensor::Device::flex().autodiff();
    let mut output = LabelOutput::new(layer(), LabelLoss::BinaryCrossEntropy).unwrap();
    let labels: [&[u32]; 3] = [&[1], &[8], &[20]];
    let mut x = Param::from_tensor(Tensor::<2>::random([3, INPUTS], Distribution::Default, &device));
    let mut losses = Vec::new();
    for _ in 0..60 {
        let loss = output.step(x.val(), &labels, 0.02).unwrap();
        losses.push(loss.clone().into_scalar::<f32>());
        let gradient = x.val().grad(&loss.backward()).unwrap();
        let next = x.val().inner() - gradient * 0.3;
        x = Param::from_tensor(Tensor::from_inner(next).require_grad());
    }
    assert!(losses[59] < 0.2 * losses[0], "{losses:?}");
    let best = output.top(1, x.val()).unwrap();
    assert_eq!(best.iter().map(|best| best[0].0).collect::<Vec<_>>(), [1, 8, 20]);
}
