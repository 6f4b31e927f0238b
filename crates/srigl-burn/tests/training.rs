//! Sparse training of whole modules, in a custom loop and in Burn's `Learner`.

use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, OptimizerRecord, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Int, Tensor, TensorData};
use srigl_burn::methods::{Dense, Gmp, METHODS, Mest, Rigl, Settings, Snfs, SrSte, Srigl, TopKast};
use srigl_burn::{
    AnyMethod, Distribution, Error, InitialMask, LayerSpec, NmPattern, Sparsified, SparsityConfig, Topology,
    Updates, sparse_layers, state_dict,
};
use srigl_models::{Classifier, MlpConfig, MnistCnnConfig, ResNet8Config};

#[allow(deprecated)]
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

/// Images `[n, 1, 28, 28]` and labels of a learnable toy task.
fn batch(n: usize, step: usize, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let label = |i: usize| (i * 7 + step * 3) % 10;
    let pixel = |i: usize, p: usize| {
        let noise = ((i * 31 + p * 17 + step * 101) % 23) as f32 / 23.0;
        if p % 10 == label(i) { 1.0 + noise } else { noise }
    };
    let images: Vec<f32> = (0..n * 784).map(|k| pixel(k / 784, k % 784)).collect();
    let labels: Vec<i32> = (0..n).map(|i| label(i) as i32).collect();
    let images = Tensor::from_data(TensorData::new(images, [n, 1, 28, 28]), device);
    (images, Tensor::from_data(TensorData::new(labels, [n]), device))
}

fn gradients<M: Classifier>(model: &M, n: usize, step: usize, device: &Device) -> GradientsParams {
    let (images, labels) = batch(n, step, device);
    let loss =
        burn::nn::loss::CrossEntropyLossConfig::new().init(device).forward(model.forward(images), labels);
    GradientsParams::from_grads(loss.backward(), model)
}

/// Inactive weights are exactly 0, active neurons have one fan-in, and the masks are the announced ones.
fn assert_invariants<M: Module>(model: &M, topology: &Topology, constant_fan_in: bool) {
    let tensors = state_dict(model);
    for layer in topology.layers() {
        let name = format!("{}.weight", layer.name);
        let weights = &tensors.iter().find(|t| t.name == name).unwrap().values;
        let mut masked = weights.clone();
        layer.mask.apply(&mut masked);
        assert_eq!(&masked, weights, "{name}");
        if constant_fan_in {
            assert!(layer.stats().fan_in.is_some(), "{name}: fan-in varies");
        }
        assert_eq!(layer.mask.count_not_in(&layer.ever_active), 0);
    }
}

fn config(method: impl Into<AnyMethod>) -> SparsityConfig {
    SparsityConfig::new(0.9, 30).with_method(method.into()).with_delta_t(4).with_seed(3)
}

/// SRigL that ablates much.
fn srigl() -> Srigl {
    Srigl { gamma_sal: 0.9, ..Default::default() }
}

#[test]
fn every_method_keeps_its_invariants_on_every_device() {
    for device in devices().map(Device::autodiff) {
        let named = METHODS.iter().filter(|info| info.sparse && info.name != "srigl");
        let named = named.map(|info| info.build(&Settings::default()).unwrap());
        let one_of_ten = NmPattern::new(1, 10).unwrap();
        let structured = [
            AnyMethod::from(Rigl).with_nm(one_of_ten).unwrap(),
            AnyMethod::from(srigl()).with_group(4).unwrap(),
            SrSte { nm: one_of_ten, ..SrSte::default() }.into(),
        ];
        for method in named.chain(structured).chain([srigl().into()]) {
            let (info, sparsity) = (method.info(), method.nm().map_or(0.9, |nm| nm.share_of_zeros()));
            let sparsity = method.sparsity_at(sparsity, 0.0);
            let model = MlpConfig::new().init(&device);
            let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new())).build();
            let first = gradients(&model, 16, 0, &device);
            let config = config(method);
            let sparse = match info.initial {
                InitialMask::Sensitivity => config.sparsify_by_gradients(model, sgd, &first),
                _ => config.sparsify(model, sgd),
            };
            let Sparsified { mut model, mut optim, topology } = sparse.unwrap();
            let initial = topology.layers();
            assert!((topology.sparsity() - sparsity).abs() < 0.005, "{}: {}", info.name, topology.sparsity());
            for step in 1..12 {
                let grads = gradients(&model, 16, step, &device);
                model = optim.step(0.05, model, grads);
                assert_invariants(&model, &topology, info.constant_fan_in);
            }
            let moved = topology.layers().iter().zip(&initial).any(|(now, before)| now.mask != before.mask);
            assert_eq!(moved, info.changes());
        }
    }
}

#[test]
fn convolutions_and_residual_blocks_become_sparse() {
    for (device, n) in devices().map(Device::autodiff).into_iter().zip([8, 2]) {
        let Sparsified { model: mut cnn, mut optim, topology } = config(srigl())
            .sparsify(MnistCnnConfig::new().init(&device), AdamWConfig::new().build())
            .unwrap();
        for step in 1..6 {
            let grads = gradients(&cnn, n, step, &device);
            cnn = optim.step(0.001, cnn, grads);
            assert_invariants(&cnn, &topology, true);
        }
        let Sparsified { model: mut net, mut optim, topology } =
            config(srigl()).sparsify(ResNet8Config::new().init(&device), SgdConfig::new().build()).unwrap();
        for step in 1..6 {
            let grads = gradients(&net, n, step, &device);
            net = optim.step(0.01, net, grads);
            assert_invariants(&net, &topology, true);
        }
    }
}

#[test]
fn masks_are_the_same_on_flex_and_ndarray() {
    let masks = devices().map(Device::autodiff).map(|device| {
        let method = config(srigl());
        let Sparsified { topology, .. } =
            method.sparsify(MlpConfig::new().init(&device), SgdConfig::new().build()).unwrap();
        topology.layers().into_iter().map(|l| l.mask).collect::<Vec<_>>()
    });
    assert_eq!(masks[0], masks[1]);
}

#[test]
fn dense_is_the_plain_optimizer() {
    let device = Device::flex().autodiff();
    let model = MlpConfig::new().init(&device);
    let (mut plain, mut plain_optim) = (model.clone(), SgdConfig::new().init());
    let Sparsified { model: mut dense, mut optim, .. } =
        config(Dense).sparsify(model, SgdConfig::new().build()).unwrap();
    for step in 0..3 {
        plain = plain_optim.step(0.1, plain.clone(), gradients(&plain, 8, step, &device));
        dense = optim.step(0.1, dense.clone(), gradients(&dense, 8, step, &device));
    }
    assert_eq!(state_dict(&plain), state_dict(&dense));
}

/// Saves after 7 of 14 steps, in the middle of a gathering window, loads into a fresh model and optimizer with other
/// random weights, and goes on: everything must come out bit for bit as without the interruption.
#[test]
fn a_record_resumes_bit_for_bit() {
    let methods = [
        srigl().into(),
        Snfs.into(),
        Mest::default().into(),
        Gmp.into(),
        TopKast::default().into(),
        SrSte::default().into(),
        AnyMethod::from(Rigl).with_nm(NmPattern::TWO_OF_FOUR).unwrap(),
    ];
    for (device, method) in
        devices().map(Device::autodiff).iter().flat_map(|d| methods.each_ref().map(|m| (d, m)))
    {
        let start = |seed| {
            let config = config(method.clone()).with_grad_accumulation(3).with_seed(seed);
            let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
            config.sparsify(MlpConfig::new().init(device), sgd.build()).unwrap()
        };
        let run = |sparse: Sparsified<_>, steps: std::ops::Range<usize>| {
            let Sparsified { mut model, mut optim, topology } = sparse;
            for step in steps {
                let grads = gradients(&model, 8, step, device);
                model = optim.step(0.05, model, grads);
            }
            Sparsified { model, optim, topology }
        };
        let straight = run(start(3), 0..7);
        let model = straight.model.clone().into_record().into_bytes().unwrap();
        let optim = straight.optim.to_record().into_bytes().unwrap();
        let masks =
            |t: &Topology| t.layers().into_iter().map(|l| (l.mask, l.ever_active)).collect::<Vec<_>>();
        let saved = masks(&straight.topology);
        let updates = straight.topology.updates();
        let straight = run(straight, 7..14);

        let resumed = start(99);
        // GMP starts with all weights, and has pruned some.
        assert_ne!(masks(&resumed.topology), saved, "{method:?}");
        let records = (ModuleRecord::from_bytes(model).unwrap(), OptimizerRecord::from_bytes(optim).unwrap());
        let resumed = resumed.load_records(records.0, records.1).unwrap();
        assert_eq!(masks(&resumed.topology), saved, "the topology is right at once");
        let resumed_updates = resumed.topology.updates();
        let resumed = run(resumed, 7..14);

        assert_eq!(state_dict(&straight.model), state_dict(&resumed.model), "{method:?}");
        assert_eq!(masks(&straight.topology), masks(&resumed.topology));
        let reports = |updates: &Updates| updates.drain().into_iter().map(|e| e.report).collect::<Vec<_>>();
        let expected = reports(&updates);
        assert!(!expected.is_empty());
        assert_eq!(reports(&resumed_updates), expected);
    }
}

/// Burn skips what does not fit in a record of an optimizer; nobody should go on without masks.
#[test]
fn a_record_without_masks_is_an_error() {
    let device = Device::flex().autodiff();
    let sgd = || SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
    let model = || MlpConfig::new().init(&device);
    let mut dense = config(Dense).sparsify(model(), sgd().build()).unwrap();
    let grads = gradients(&dense.model, 8, 0, &device);
    dense.model = dense.optim.step(0.05, dense.model, grads);
    let record = dense.optim.to_record();
    let sparse = config(srigl()).with_condensed(Some(false)).sparsify(model(), sgd().build()).unwrap();
    let error = sparse.load_records(dense.model.into_record(), record).err().unwrap();
    assert!(matches!(error, Error::OptimizerRecord { ref layer } if layer == "fc1"), "{error}");
}

/// Trained for some steps, with its records.
fn trained(device: &Device, seed: u64) -> (ModuleRecord, OptimizerRecord) {
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
    let mut sparse =
        config(Rigl).with_seed(seed).sparsify(MlpConfig::new().init(device), sgd.build()).unwrap();
    for step in 0..9 {
        let grads = gradients(&sparse.model, 8, step, device);
        sparse.model = sparse.optim.step(0.05, sparse.model, grads);
    }
    (sparse.model.into_record(), sparse.optim.to_record())
}

/// Whatever is missing or does not belong together: no topology starts anew in silence.
#[test]
fn records_that_do_not_belong_together_are_an_error() {
    let device = Device::flex().autodiff();
    let fresh = || {
        let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
        config(Rigl).with_seed(1).sparsify(MlpConfig::new().init(&device), sgd.build()).unwrap()
    };
    let (model, optim) = trained(&device, 1);
    assert!(fresh().load_records(model, optim).is_ok());
    // The weights of a trained model without their masks.
    let error = fresh().load_records(trained(&device, 1).0, OptimizerRecord::default()).err().unwrap();
    assert!(matches!(error, Error::OtherMask { ref layer } if layer == "fc1"), "{error}");
    // The masks of another training.
    let error = fresh().load_records(trained(&device, 1).0, fresh().optim.to_record()).err().unwrap();
    assert!(matches!(error, Error::OtherMask { .. }), "{error}");
    // Another optimizer has no room for the momentum of dense weights.
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
    let mut dense = config(Dense).sparsify(MlpConfig::new().init(&device), sgd.build()).unwrap();
    let grads = gradients(&dense.model, 8, 0, &device);
    dense.model = dense.optim.step(0.05, dense.model, grads);
    let (model, optim) = (dense.model.into_record(), dense.optim.to_record());
    let adam = config(Dense).sparsify(MlpConfig::new().init(&device), AdamWConfig::new().build()).unwrap();
    let error = adam.load_records(model, optim).err().unwrap();
    assert!(matches!(error, Error::OptimizerRecordParts { lost: 1.., .. }), "{error}");
}

/// Where nobody can return an error, as in Burn's `Learner`.
#[test]
#[should_panic(expected = "layer `fc1` has weights where its mask has none, and no state")]
fn a_step_without_the_masks_of_its_weights_panics() {
    let device = Device::flex().autodiff();
    let (record, _) = trained(&device, 1);
    let Sparsified { model, mut optim, .. } =
        config(Rigl).with_seed(2).sparsify(MlpConfig::new().init(&device), SgdConfig::new().build()).unwrap();
    let model = model.load_record(record);
    let grads = gradients(&model, 8, 0, &device);
    optim.step(0.05, model, grads);
}

/// The state keeps the schedule it was made with, unless it gets another.
#[test]
fn a_longer_training_has_its_own_schedule() {
    let device = Device::flex().autodiff();
    let sgd = || SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
    let updates_until_60 = |reschedule: bool| {
        let (model, optim) = trained(&device, 1);
        let longer = SparsityConfig { end_step: 50, ..config(Rigl) };
        let sparse = longer.sparsify(MlpConfig::new().init(&device), sgd().build()).unwrap();
        let mut sparse = match reschedule {
            true => sparse.load_records_and_reschedule(model, optim, longer.schedule()).unwrap(),
            false => sparse.load_records(model, optim).unwrap(),
        };
        let updates = sparse.topology.updates();
        for step in 9..60 {
            let grads = gradients(&sparse.model, 8, step, &device);
            sparse.model = sparse.optim.step(0.01, sparse.model, grads);
        }
        updates.drain().iter().map(|event| event.step).max().unwrap()
    };
    assert_eq!([updates_until_60(false), updates_until_60(true)], [28, 48]);
}

#[test]
fn gradient_accumulation_counts_optimizer_steps() {
    let device = Device::flex().autodiff();
    let sgd = SgdConfig::new().build();
    let Sparsified { mut model, mut optim, topology } =
        config(srigl()).sparsify(MlpConfig::new().init(&device), sgd).unwrap();
    let updates = topology.updates();
    let mut accumulator = GradientsAccumulator::new();
    for backward in 1..=16 {
        let grads = gradients(&model, 8, backward, &device);
        accumulator.accumulate(&model, grads);
        if backward % 4 == 0 {
            model = optim.step(0.01, model, accumulator.grads());
        }
        assert_invariants(&model, &topology, true);
    }
    let steps: Vec<u64> = updates.drain().iter().map(|event| event.step).collect();
    assert_eq!(steps, [4, 4], "one update at the fourth optimizer step; ERK keeps the third layer dense");
}

#[derive(Module, Debug)]
struct Transformer {
    embedding: Embedding,
    norm: LayerNorm,
    attention: MultiHeadAttention,
    layers: Vec<Linear>,
    head: Linear,
}

fn transformer(device: &Device) -> Transformer {
    Transformer {
        embedding: EmbeddingConfig::new(50, 32).init(device),
        norm: LayerNormConfig::new(32).init(device),
        attention: MultiHeadAttentionConfig::new(32, 4).init(device),
        layers: (0..2).map(|_| LinearConfig::new(32, 32).init(device)).collect(),
        head: LinearConfig::new(32, 10).init(device),
    }
}

#[test]
fn linear_layers_and_attention_projections_are_found_and_nothing_else() {
    let device = Device::flex().autodiff();
    let found = sparse_layers(&transformer(&device)).unwrap();
    let names: Vec<&str> = found.iter().map(|l| l.name.as_str()).collect();
    let attention = ["attention.query", "attention.key", "attention.value", "attention.output"];
    assert_eq!(names, [&attention[..], &["layers.0", "layers.1", "head"]].concat());
    assert_eq!(found[6], LayerSpec::new("head", [10, 32]).unwrap());

    let Sparsified { model, mut optim, topology } =
        config(srigl()).sparsify(transformer(&device), AdamWConfig::new().build()).unwrap();
    let tokens = Tensor::<2, Int>::ones([2, 5], &device);
    let x = model.norm.forward(model.embedding.forward(tokens));
    let y = model.attention.forward(MhaInput::self_attn(x)).context;
    let y = model.layers.iter().fold(y, |y, layer| layer.forward(y));
    let loss = model.head.forward(y).powf_scalar(2.0).mean();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    let model = optim.step(0.001, model, grads);
    assert_invariants(&model, &topology, true);
}

#[test]
fn patterns_choose_layers() {
    let device = Device::flex();
    let plan = |config: SparsityConfig| {
        let sgd = SgdConfig::new().build();
        config.sparsify(transformer(&device), sgd).map(|sparse| sparse.topology.layers())
    };
    let strings = |patterns: &[&str]| patterns.iter().map(|p| p.to_string()).collect::<Vec<_>>();
    let names =
        |layers: Vec<srigl_burn::TopologyLayer>| layers.into_iter().map(|l| l.name).collect::<Vec<_>>();

    let config = || config(srigl());
    assert_eq!(names(plan(config().with_include(strings(&["layers.*"]))).unwrap()), ["layers.0", "layers.1"]);
    assert_eq!(
        names(plan(config().with_exclude(strings(&["attention.*", "head"]))).unwrap()),
        ["layers.0", "layers.1"]
    );
    let layers = plan(config().with_keep_dense(strings(&["head"]))).unwrap();
    let head = layers.iter().find(|l| l.name == "head").unwrap();
    assert_eq!((head.sparsity, head.mask.density()), (0.0, 1.0));

    let error = plan(config().with_exclude(strings(&["haed"]))).unwrap_err();
    assert!(matches!(error, Error::UnusedPattern { .. }) && error.to_string().contains("haed"), "{error}");
    assert!(matches!(plan(config().with_exclude(strings(&["[a"]))).unwrap_err(), Error::Pattern { .. }));
    assert!(matches!(plan(config().with_exclude(strings(&["*"]))).unwrap_err(), Error::NoLayers));
    let error = plan(SparsityConfig { sparsity: 0.999, ..config() }).unwrap_err().to_string();
    assert!(error.contains("layer `") && error.contains("fan-in would be 0"), "{error}");
}

/// The classifier is never ablated by default; with an empty list every layer may be.
#[test]
fn the_last_layer_is_not_ablated_unless_told() {
    let device = Device::flex().autodiff();
    let active = |no_ablation: Option<Vec<String>>| {
        // ERK would keep the last layer dense.
        let distribution = Distribution::Uniform;
        let config = SparsityConfig {
            no_ablation,
            distribution,
            ..config(Srigl { gamma_sal: 1e6, ..Default::default() })
        };
        let Sparsified { mut model, mut optim, topology } =
            config.sparsify(MlpConfig::new().init(&device), SgdConfig::new().build()).unwrap();
        for step in 0..5 {
            let grads = gradients(&model, 8, step, &device);
            model = optim.step(0.01, model, grads);
        }
        topology.layers().iter().map(|l| l.stats().active).collect::<Vec<_>>()
    };
    let default = active(None);
    assert!(default[0] < 300 && default[1] < 100 && default[2] == 10, "{default:?}");
    let all = active(Some(Vec::new()));
    assert!(all[2] < 10, "{all:?}");
    assert_eq!(active(Some(vec!["fc1".into()]))[0], 300);
}

/// Configurations survive JSON, with every method.
#[test]
fn a_configuration_is_json() {
    for info in METHODS {
        let config = config(info.build(&Settings::default()).unwrap());
        let json = serde_json::to_string(&config).unwrap();
        let read: SparsityConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(read.method, config.method);
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}
