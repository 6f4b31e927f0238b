//! Train sparse, condense, compare: `cargo run -p srigl-burn --example condense`.

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};
use srigl_burn::condensed::{Engine, Shape, save};
use srigl_burn::{CondensedLinear, Sparsified, SparsityConfig, lower};
use srigl_models::{Classifier, Mlp, MlpConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex().autodiff();
    let srigl = SparsityConfig::new(0.9, 2).with_delta_t(1);
    let Sparsified { model: mut net, mut optim, topology } =
        srigl.sparsify(MlpConfig::new().init(&device), SgdConfig::new().build())?;
    let images = Tensor::<4>::random([32, 1, 28, 28], Distribution::Default, &device);
    let labels = Tensor::<1, Int>::from_data([3; 32], &device);
    for _ in 0..2 {
        let loss = CrossEntropyLossConfig::new().init(&device);
        let loss = loss.forward(net.forward(images.clone()), labels.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        net = optim.step(0.1, net, gradients);
    }
    let net: Mlp = net.valid();
    let images = images.inner();
    let logits: Vec<f32> = net.forward(images.clone()).into_data().try_into_vec()?;

    // A layer at a time, inside a Burn model …
    let layers = topology.layers();
    let weight = net.fc1.condensed()?.expect("it is sparse");
    let bias: Vec<f32> =
        net.fc1.bias.as_ref().map_or(Ok(vec![]), |bias| bias.val().into_data().try_into_vec())?;
    let fc1 = CondensedLinear::new(&weight, Some(&bias))?;
    println!("{fc1}");

    // … or the whole network, in a file that runs without Burn.
    let masks = layers.into_iter().map(|layer| (layer.name, (*layer.mask).clone()));
    let network = lower(&net, Shape { features: 1, height: 28, width: 28 }, masks, str::to_string)?.fold()?;
    let path = std::env::temp_dir().join("mlp.condensed.safetensors");
    save(&network, &path)?;
    let mut engine = Engine::new(&network)?;
    println!("{engine:?}");
    let mut condensed = vec![0.0; logits.len()];
    engine.run(32, &images.into_data().try_into_vec::<f32>()?, &mut condensed)?;
    let difference = condensed.iter().zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest difference of a logit: {difference:.1e}; the network is in {}", path.display());
    std::fs::remove_file(path)?;
    Ok(())
}
