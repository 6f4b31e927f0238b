//! Methods that say more than which weights are active: straight-through estimators, sets that get gradient, momentum, weights that move
//! between layers, and masks by gradients.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;
use sparsity_core::methods::Gradients;
use sparsity_core::{
    InitialMask, Layer, LayerSpec, Stream, initial_mask_by_magnitude, initial_masks, initialise_weights,
    redistributed_sparsities, update_layer,
};
use srigl_burn::methods::{AnyMethod, Gmp, Magnitude, Method, Rigl, Snfs, Snip, SrSte, TopKast};
use srigl_burn::{
    Distribution, DropSchedule, Error, Mask, NmPattern, Sparsified, SparsityConfig, WeightInit,
};
use std::path::Path;

/// What the peers' own code makes (`sparsity-core/tests/peers/record.py`).
fn recorded(name: &str) -> Vec<Value> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../sparsity-core/tests/peers/{name}.json"));
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    value.as_array().unwrap().iter().map(|bit| bit.as_u64().unwrap() as u8).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// A layer without bias of these weights `[out, in]`.
fn layer(weights: &[f32], [out, inputs]: [usize; 2], device: &Device) -> Linear {
    let layer = LinearConfig::new(inputs, out).with_bias(false).init(device);
    let rows = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [out, inputs]), device);
    Linear { weight: layer.weight.map(|_| rows.transpose().detach().require_grad()), ..layer }
}

/// `[out, in]`.
fn weights(layer: &Linear) -> Vec<f32> {
    layer.weight.val().transpose().into_data().try_into_vec().unwrap()
}

fn tensor(values: &Value, dims: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(floats(values), dims), device)
}

fn close(got: &[f32], want: &[f32], what: &str) {
    let worst = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && worst < 2e-6, "{what}: {worst}");
}

/// The loss `Σ y·c`, whose gradient by the result is `c`.
fn step(sparse: Sparsified<Linear>, x: &Tensor<2>, c: &Tensor<2>, lr: f64) -> (Sparsified<Linear>, Vec<f32>) {
    let Sparsified { model, mut optim, topology } = sparse;
    let y = model.forward(x.clone());
    let output = y.clone().into_data().try_into_vec().unwrap();
    let gradients = GradientsParams::from_grads((y * c.clone()).sum().backward(), &model);
    let model = optim.step(lr, model, gradients);
    (Sparsified { model, optim, topology }, output)
}

/// Steps of SGD with momentum and weight decay are those of the authors' code of SR-STE under PyTorch: outputs, masks and what the network
/// sees of the weights.
#[test]
fn steps_of_sr_ste_are_those_of_its_authors_under_pytorch() {
    let device = Device::flex().autodiff();
    let mut steps = 0;
    for case in recorded("sr_ste").iter().filter(|case| case["layer"] == "linear") {
        let dims = [6, 16];
        let [n, m] = ["n", "m"].map(|key| case[key].as_u64().unwrap() as usize);
        let nm = NmPattern::new(n, m).unwrap();
        let momentum = MomentumConfig::new().with_momentum(number(&case["momentum"])).with_dampening(0.0);
        let decay = WeightDecayConfig::new(number(&case["weight_decay"]) as f32);
        let sgd = SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(decay)).build();
        let config = SparsityConfig::new(0.5, 1)
            .with_method(SrSte { nm, ..SrSte::default() }.into())
            .with_weight_init(WeightInit::Keep);
        let mut sparse = config.sparsify(layer(&floats(&case["weight"]), dims, &device), sgd).unwrap();
        let (x, c) =
            (tensor(&case["input"], [5, 16], &device), tensor(&case["output_grad"], [5, 6], &device));
        let mut dense = floats(&case["weight"]);
        for recorded in case["steps"].as_array().unwrap() {
            let mask = Mask::from_bytes(6, 16, &bytes(&recorded["mask"])).unwrap();
            assert_eq!(*sparse.topology.layers()[0].mask, mask);
            mask.apply(&mut dense);
            close(&weights(&sparse.model), &dense, "what the network sees");
            let output;
            (sparse, output) = step(sparse, &x, &c, number(&case["lr"]));
            if !recorded["output"].is_null() {
                close(&output, &floats(&recorded["output"]), "output");
            }
            dense = floats(&recorded["weight_after"]);
            steps += 1;
        }
    }
    assert_eq!(steps, 7);
}

/// Steps of plain SGD are those of torch_topkast, which has no decay in them.
#[test]
fn steps_of_top_kast_are_those_of_a_peer() {
    let device = Device::flex().autodiff();
    for case in recorded("top_kast") {
        let (x, c) =
            (tensor(&case["input"], [5, 16], &device), tensor(&case["output_grad"], [5, 6], &device));
        let steps = case["steps"].as_array().unwrap();
        let config = SparsityConfig::new(number(&case["forward_sparsity"]), 100)
            .with_method(TopKast { backward: 2.0, decay: 0.0 }.into())
            .with_delta_t(1)
            .with_weight_init(WeightInit::Keep);
        let dense = floats(&steps[0]["weight"]);
        let mut sparse = config.sparsify(layer(&dense, [6, 16], &device), SgdConfig::new().build()).unwrap();
        for recorded in steps {
            let mask = Mask::from_bytes(6, 16, &bytes(&recorded["forward_mask"])).unwrap();
            assert_eq!(*sparse.topology.layers()[0].mask, mask);
            let mut seen = floats(&recorded["weight"]);
            mask.apply(&mut seen);
            close(&weights(&sparse.model), &seen, "what the network sees");
            (sparse, _) = step(sparse, &x, &c, number(&case["lr"]));
        }
    }
}

/// Weights that get gradient and are not seen have `λ/D` of themselves in it.
#[test]
fn unseen_weights_decay_by_more() {
    let device = Device::flex().autodiff();
    // Of 8 weights the first two are seen, and the first four get gradient.
    let dense = [0.31, 0.32, -0.3, -0.29, 0.2, 0.1, 0.1, 0.1];
    let config = SparsityConfig::new(0.75, 100)
        .with_method(TopKast { backward: 2.0, decay: 0.01 }.into())
        .with_delta_t(1)
        .with_weight_init(WeightInit::Keep);
    let sparse = config.sparsify(layer(&dense, [1, 8], &device), SgdConfig::new().build()).unwrap();
    assert_eq!(weights(&sparse.model), [0.31, 0.32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let (x, c) = (Tensor::<2>::ones([1, 8], &device) * 0.5, Tensor::<2>::ones([1, 1], &device));
    let (sparse, _) = step(sparse, &x, &c, 0.1);
    // The unseen ones are the largest now: w − 0.1 · (0.5 + 0.04·w).
    let third = |w: f32| w - 0.1 * (0.5 + 0.04 * w);
    close(
        &weights(&sparse.model),
        &[0.0, 0.0, third(-0.3), third(-0.29), 0.0, 0.0, 0.0, 0.0],
        "after a step",
    );
}

/// A model of two layers whose gradients are given.
#[derive(Module, Debug)]
struct Two {
    a: Linear,
    b: Linear,
}

fn noise(seed: usize, count: usize, scale: f32) -> Vec<f32> {
    let value = |i: usize| {
        let mixed = (i as u64 + 1).wrapping_mul(seed as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|i| scale * value(i)).collect()
}

const DIMS: [usize; 2] = [10, 20];

fn two(device: &Device) -> Two {
    let [a, b] = [1, 2].map(|seed| layer(&noise(seed, 200, 1.0), DIMS, device));
    Two { a, b }
}

/// One gradient for each layer at a step, `[out, in]`; the second's is six times as large.
fn gradient(step: usize, index: usize) -> Vec<f32> {
    noise(100 * index + step, 200, [1.0, 6.0][index])
}

fn train_two(
    sparse: Sparsified<Two>,
    steps: std::ops::RangeInclusive<usize>,
    device: &Device,
) -> Sparsified<Two> {
    let Sparsified { mut model, mut optim, topology } = sparse;
    for step in steps {
        let mut gradients = GradientsParams::new();
        for (index, layer) in [&model.a, &model.b].into_iter().enumerate() {
            let rows = Tensor::<2>::from_data(TensorData::new(gradient(step, index), DIMS), &device.clone());
            gradients.register(layer.weight.id, rows.transpose());
        }
        model = optim.step(1e-3, model, gradients);
    }
    Sparsified { model, optim, topology }
}

/// By the core library: momentum of all steps; shares as they were one step before the update.
#[test]
fn snfs_moves_weights_to_the_layer_with_more_momentum() {
    let device = Device::flex();
    let config = SparsityConfig::new(0.75, 100)
        .with_method(Snfs.into())
        .with_distribution(Distribution::Uniform)
        .with_delta_t(4)
        .with_drop_schedule(DropSchedule::Constant);
    let start = || config.sparsify(two(&device.clone().autodiff()), SgdConfig::new().build()).unwrap();
    let before = train_two(start(), 1..=3, &device);
    let masks: Vec<Mask> = before.topology.layers().iter().map(|layer| (*layer.mask).clone()).collect();
    let Gradients::Momentum { beta } = Snfs.info().gradients else { panic!("momentum") };
    let momentum = |steps: usize, index: usize| {
        let mut sum = vec![0.0f32; 200];
        for step in 1..=steps {
            sum.iter_mut().zip(gradient(step, index)).for_each(|(sum, g)| *sum = *sum * beta as f32 + g);
        }
        sum
    };
    let last = |steps: usize| [0, 1].map(|index| momentum(steps, index));
    let (at_three, at_four) = (last(3), last(4));
    let mut seen = [&before.model.a, &before.model.b].map(weights);
    for (index, weights) in seen.iter_mut().enumerate() {
        let mut step = gradient(4, index);
        masks[index].apply(&mut step);
        weights.iter_mut().zip(step).for_each(|(w, g)| *w -= g * 1e-3);
    }
    let layer = |index: usize, grads| Layer {
        name: ["a", "b"][index],
        weights: &seen[index],
        grads,
        mask: &masks[index],
        sparsity: 0.75,
        ablate: true,
    };
    let layers = [0, 1].map(|index| layer(index, &at_three[index][..]));
    let sparsities = redistributed_sparsities(&Snfs, 0.3, &layers).unwrap();
    let expected = [0, 1].map(|index| {
        let layer = Layer { sparsity: sparsities[index], ..layer(index, &at_four[index][..]) };
        update_layer(&Snfs, 0.3, &layer, Stream { seed: 0, layer: index as u64, step: 4 }).unwrap().mask
    });
    let after = train_two(before, 4..=4, &device);
    let got: Vec<Mask> = after.topology.layers().iter().map(|layer| (*layer.mask).clone()).collect();
    assert_eq!(got, expected);
    assert_eq!(got.iter().map(Mask::nnz).sum::<usize>(), 100);
    assert!(got[1].nnz() > got[0].nnz() + 8, "{} and {}", got[0].nnz(), got[1].nnz());
    // Weights that are given away stay away, as long as it lasts.
    let later = train_two(after, 5..=15, &device);
    let counts: Vec<usize> = later.topology.layers().iter().map(|layer| layer.mask.nnz()).collect();
    assert!(counts.iter().sum::<usize>() == 100 && counts[1] > got[1].nnz(), "{counts:?}");
}

/// Also where each step is an update, a step before the next.
#[test]
fn snfs_loses_no_weight_with_an_update_after_each_step() {
    let device = Device::flex().autodiff();
    let config = SparsityConfig::new(0.75, 100).with_method(Snfs.into()).with_delta_t(1);
    let config = config.with_distribution(Distribution::Uniform).with_drop_fraction(1.0);
    let mut sparse = config.sparsify(two(&device), SgdConfig::new().build()).unwrap();
    let updates = sparse.topology.updates();
    for step in 1..=12 {
        sparse = train_two(sparse, step..=step, &Device::flex());
        let counts: Vec<usize> = sparse.topology.layers().iter().map(|layer| layer.mask.nnz()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 100, "step {step}: {counts:?}");
    }
    assert!(updates.drain().iter().all(|event| event.report.is_ok()));
}

/// Masks by `|W · ∂L/∂W|` of both layers together, and the weights stay as they are.
#[test]
fn snip_keeps_what_a_batch_is_sensitive_to() {
    let device = Device::flex().autodiff();
    let model = two(&device);
    let config = SparsityConfig::new(0.5, 100).with_method(Snip.into());
    let refused = config.sparsify(two(&device), SgdConfig::new().build());
    assert!(matches!(refused, Err(Error::NoGradient { layer }) if layer == "a"));
    let mut gradients = GradientsParams::new();
    for (index, layer) in [&model.a, &model.b].into_iter().enumerate() {
        let rows = Tensor::<2>::from_data(TensorData::new(gradient(1, index), DIMS), &Device::flex());
        gradients.register(layer.weight.id, rows.transpose());
    }
    let dense = [&model.a, &model.b].map(weights);
    let products =
        [0, 1].map(|i| dense[i].iter().zip(gradient(1, i)).map(|(w, g)| w * g).collect::<Vec<f32>>());
    let specs = ["a", "b"].map(|name| LayerSpec::new(name, DIMS).unwrap());
    let target = (0.5, Distribution::default());
    let expected = initial_masks(&Snip, &specs, &products, InitialMask::Sensitivity, target, 0).unwrap();
    let sparse = config.sparsify_by_gradients(model, SgdConfig::new().build(), &gradients).unwrap();
    for (i, layer) in [&sparse.model.a, &sparse.model.b].into_iter().enumerate() {
        let mut seen = dense[i].clone();
        expected[i].1.apply(&mut seen);
        assert_eq!(weights(layer), seen);
        assert_eq!(*sparse.topology.layers()[i].mask, expected[i].1);
    }
}

/// Pruning by magnitude chooses among weights that are drawn as those of a dense layer.
#[test]
fn weights_are_drawn_before_the_largest_are_chosen() {
    let device = Device::flex().autodiff();
    let config = SparsityConfig::new(0.75, 100)
        .with_method(Magnitude.into())
        .with_distribution(Distribution::Uniform)
        .with_seed(5);
    let sparse = config.sparsify(two(&device), SgdConfig::new().build()).unwrap();
    for (index, layer) in [&sparse.model.a, &sparse.model.b].into_iter().enumerate() {
        let mut drawn = vec![0.0; 200];
        let stream = Stream { seed: 5, layer: index as u64, step: 0 };
        initialise_weights(&mut drawn, &Mask::full(10, 20), WeightInit::KaimingNormal, stream);
        let spec = LayerSpec::new("fc", DIMS).unwrap();
        initial_mask_by_magnitude(&Magnitude, &spec, &drawn, 0.75).unwrap().apply(&mut drawn);
        assert_eq!(weights(layer), drawn);
    }
}

/// GMP prunes along the cube of what is left of the way, and must come to an update.
#[test]
fn gmp_comes_to_its_sparsity_with_the_last_update() {
    let device = Device::flex().autodiff();
    let config = |end: u64| {
        let config = SparsityConfig::new(0.8, end).with_method(Gmp.into()).with_delta_t(5);
        config.with_distribution(Distribution::Uniform)
    };
    let sparse = config(21).sparsify(two(&device), SgdConfig::new().build()).unwrap();
    assert_eq!(sparse.topology.sparsity(), 0.0);
    let updates = sparse.topology.updates();
    train_two(sparse, 1..=30, &Device::flex());
    let pruned = updates.drain().into_iter().filter(|event| event.layer == "a");
    let pruned: Vec<(u64, f64)> =
        pruned.map(|event| (event.step, event.report.unwrap().stats.sparsity)).collect();
    let expected = [(5, 0.4625), (10, 0.7), (15, 0.7875), (20, 0.8)];
    assert_eq!(pruned.len(), 4);
    for ((step, sparsity), (at, target)) in pruned.into_iter().zip(expected) {
        assert!(step == at && (sparsity - target).abs() <= 2.0 / 200.0, "{step}: {sparsity}");
    }
    let refused = config(5).sparsify(two(&device), SgdConfig::new().build());
    assert!(matches!(refused, Err(Error::NoUpdate { method: "gmp", delta_t: 5, end_step: 5 })));
}

/// A pattern, whatever the configuration says of sparsity.
#[test]
fn the_sparsity_follows_from_a_pattern() {
    let device = Device::flex().autodiff();
    let method = AnyMethod::from(Rigl).with_nm(NmPattern::TWO_OF_FOUR).unwrap();
    let config = SparsityConfig::new(0.99, 100).with_method(method).with_keep_dense(vec!["b".into()]);
    let sparse = config.sparsify(two(&device), SgdConfig::new().build()).unwrap();
    let counts: Vec<usize> = sparse.topology.layers().iter().map(|layer| layer.mask.nnz()).collect();
    assert_eq!(counts, [100, 200]);
}
