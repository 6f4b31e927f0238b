//! Train sparse, condense, compare: `cargo run --example condense`.

use burn::module::Module;
use burn::nn::Linear;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution, Int, Tensor};
use srigl_burn::{CondensedLinear, SriglConfig};
use srigl_models::{Classifier, Mlp, MlpConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex().autodiff();
    let srigl = SriglConfig::new(0.9).with_delta_t(1).with_end_step(2);
    let (mut net, mut optim, topology) =
        srigl.sparsify_observed(MlpConfig::new().init(&device), SgdConfig::new().build())?;
    let images = Tensor::<4>::random([32, 1, 28, 28], Distribution::Default, &device);
    let labels = Tensor::<1, Int>::from_data([3; 32], &device);
    for _ in 0..2 {
        let loss = CrossEntropyLossConfig::new().init(&device);
        let loss = loss.forward(net.forward(images.clone()), labels.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        net = optim.step(0.1, net, gradients);
    }

    let net: Mlp = net.valid();
    let masks = topology.layers();
    let condense = |name: &str, layer: &Linear| {
        let mask = &masks.iter().find(|l| l.name == name).expect("a sparse layer").mask;
        CondensedLinear::from_linear(layer, mask)
    };
    let (fc1, fc2, fc3) =
        (condense("fc1", &net.fc1)?, condense("fc2", &net.fc2)?, condense("fc3", &net.fc3)?);
    println!("{fc1}\n{fc2}\n{fc3}");

    let images = images.inner();
    let dense = net.forward(images.clone());
    let condensed = fc3.forward(relu(fc2.forward(relu(fc1.forward(images.flatten::<2>(1, 3))))));
    let error = (condensed - dense.clone()).powf_scalar(2.0).sum() / dense.powf_scalar(2.0).sum();
    println!("relative error: {:.1e}", error.sqrt().into_scalar::<f32>());
    Ok(())
}
