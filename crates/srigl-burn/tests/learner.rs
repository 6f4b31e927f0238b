//! Burn's own `Learner` trains a sparse model without knowing it, checkpoints included.

use burn::data::dataloader::{DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::constant::ConstantLr;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::SgdConfig;
use burn::optim::momentum::MomentumConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_train::logger::InMemoryMetricLogger;
use burn_train::{
    ClassificationOutput, ExecutionStrategy, InferenceStep, Learner, MultiDeviceOptim, SupervisedTraining,
    TrainOutput, TrainStep,
};
use srigl_burn::methods::Srigl;
use srigl_burn::{AnyMethod, Mask, NamedTensor, Sparsified, SparsityConfig, state_dict};
use srigl_models::{Classifier, Mlp, MlpConfig};
use std::sync::Arc;

/// SRigL that ablates much.
fn ablating() -> AnyMethod {
    Srigl { gamma_sal: 0.9, ..Default::default() }.into()
}

#[derive(Module, Debug)]
struct Net {
    mlp: Mlp,
}

#[derive(Clone, Debug)]
struct Batch {
    images: Tensor<4>,
    labels: Tensor<1, Int>,
}

#[derive(Clone)]
struct Batches;

impl Batcher<usize, Batch> for Batches {
    fn batch(&self, items: Vec<usize>, device: &Device) -> Batch {
        let n = items.len();
        let pixel =
            |item: usize, p: usize| if p % 10 == item % 10 { 1.0 } else { (p * item % 7) as f32 / 7.0 };
        let pixels: Vec<f32> = items.iter().flat_map(|&i| (0..784).map(move |p| pixel(i, p))).collect();
        let labels: Vec<i32> = items.iter().map(|i| (i % 10) as i32).collect();
        Batch {
            images: Tensor::from_data(TensorData::new(pixels, [n, 1, 28, 28]), device),
            labels: Tensor::from_data(TensorData::new(labels, [n]), device),
        }
    }
}

impl Net {
    fn classify(&self, batch: Batch) -> ClassificationOutput {
        let logits = self.mlp.forward(batch.images);
        let loss = CrossEntropyLossConfig::new()
            .init(&logits.device())
            .forward(logits.clone(), batch.labels.clone());
        ClassificationOutput::new(loss, logits, batch.labels)
    }
}

impl TrainStep for Net {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let output = self.classify(batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Net {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        self.classify(batch)
    }
}

#[test]
fn the_learner_keeps_a_sparse_model_sparse() {
    let device = Device::flex().autodiff();
    let srigl = SparsityConfig::new(0.9, 100).with_delta_t(5).with_method(ablating());
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
    let net = Net { mlp: MlpConfig::new().init(&device) };
    let Sparsified { model: net, optim, topology } = srigl.sparsify(net, sgd.build()).unwrap();
    let updates = topology.updates();

    let loader = || {
        let items: Vec<usize> = (0..256).collect();
        DataLoaderBuilder::new(Batches).batch_size(32).shuffle(7).build(InMemDataset::new(items))
    };
    let folder = tempfile::tempdir().unwrap();
    let learner = Learner::new(net, optim, ConstantLr::new(0.05));
    let result = SupervisedTraining::new(folder.path(), loader(), loader())
        .num_epochs(4)
        .with_default_checkpointers()
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .launch(learner);

    let tensors = state_dict(&result.model);
    for layer in topology.layers() {
        let name = format!("{}.weight", layer.name);
        let weights = &tensors.iter().find(|t| t.name == name).unwrap().values;
        let mut masked = weights.clone();
        layer.mask.apply(&mut masked);
        assert_eq!(&masked, weights, "{name}");
        assert!(layer.stats().fan_in.is_some(), "{name}: constant fan-in");
    }
    // 4 epochs of 8 steps: updates at 5, 10, …, 30 of the two layers that ERK makes sparse.
    assert_eq!(updates.drain().len(), 12);
    assert!(topology.layers()[0].itop() > topology.layers()[0].mask.density(), "the topology moved");
}

/// Weights and masks of `net` after training on `items` in this order.
fn trained(
    net: &Net,
    strategy: ExecutionStrategy,
    items: Vec<usize>,
    accumulation: usize,
) -> (Vec<NamedTensor>, Vec<Arc<Mask>>) {
    let srigl = SparsityConfig::new(0.9, 100).with_delta_t(2).with_method(ablating());
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
    let Sparsified { model: net, optim, topology } = srigl.sparsify(net.clone(), sgd.build()).unwrap();
    let loader = |items| DataLoaderBuilder::new(Batches).batch_size(8).build(InMemDataset::new(items));
    let folder = tempfile::tempdir().unwrap();
    let mut training = SupervisedTraining::new(folder.path(), loader(items), loader(vec![0]));
    if accumulation > 1 {
        training = training.grads_accumulation(accumulation);
    }
    let result = training
        .num_epochs(2)
        .with_training_strategy(strategy.into())
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .launch(Learner::new(net, optim, ConstantLr::new(0.02)));
    (state_dict(&result.model), topology.layers().into_iter().map(|layer| layer.mask).collect())
}

/// Data-parallel training on two devices takes the steps of one device that adds up the gradients of both halves.
#[test]
fn two_devices_train_like_one() {
    // Deprecated by Burn, but a second CPU device.
    #[allow(deprecated)]
    let other = Device::ndarray().autodiff();
    let flex = || Device::flex().autodiff();
    // The first device gets the first half of the images. In turns of a batch, one device sees them in the same order.
    let items: Vec<usize> = (0..64).collect();
    let (first, second) = items.split_at(32);
    let turns: Vec<usize> =
        first.chunks(8).zip(second.chunks(8)).flat_map(|(a, b)| [a, b].concat()).collect();

    let net = Net { mlp: MlpConfig::new().init(&flex()) };
    let both = ExecutionStrategy::multi(vec![flex(), other], MultiDeviceOptim::OptimMainDevice);
    let (weights, masks) = trained(&net, both, items, 1);
    let (expected, expected_masks) = trained(&net, ExecutionStrategy::single(flex()), turns, 2);
    assert_eq!(masks, expected_masks);
    for (tensor, expected) in weights.iter().zip(&expected) {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
        assert!(tensor.values.iter().zip(&expected.values).all(close), "{}", tensor.name);
    }
}
