//! The same with Burn's `Learner`, which does not know that the model is sparse:
//! `cargo run -p srigl-burn --example learner`.

mod common;

use burn::data::dataloader::{DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::constant::ConstantLr;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{SgdConfig, momentum::MomentumConfig};
use burn::tensor::{Device, Int, Tensor};
use burn_train::logger::InMemoryMetricLogger;
use burn_train::metric::{AccuracyMetric, LossMetric};
use burn_train::{ClassificationOutput, InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep};
use srigl_burn::{Sparsified, SparsityConfig};
use srigl_models::{Classifier, Mlp, MlpConfig};

#[derive(Module, Debug)]
struct Net {
    mlp: Mlp,
}

/// One image and its label.
#[derive(Clone, Debug)]
struct Item {
    image: Vec<f32>,
    label: i32,
}

#[derive(Clone, Debug)]
struct Batch {
    images: Tensor<4>,
    labels: Tensor<1, Int>,
}

#[derive(Clone)]
struct Batches;

impl Batcher<Item, Batch> for Batches {
    fn batch(&self, items: Vec<Item>, device: &Device) -> Batch {
        let images: Vec<f32> = items.iter().flat_map(|item| item.image.iter().copied()).collect();
        let labels: Vec<i32> = items.iter().map(|item| item.label).collect();
        let n = items.len();
        Batch {
            images: Tensor::<1>::from_data(images.as_slice(), device).reshape([n, 1, 28, 28]),
            labels: Tensor::from_data(labels.as_slice(), device),
        }
    }
}

impl Net {
    fn classify(&self, batch: Batch) -> ClassificationOutput {
        let logits = self.mlp.forward(batch.images);
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        ClassificationOutput::new(loss.forward(logits.clone(), batch.labels.clone()), logits, batch.labels)
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

fn main() -> anyhow::Result<()> {
    let images = common::fashion_mnist()?;
    let mut items = Vec::new();
    for batch in images.train_epoch(0, 0, 1000, 0) {
        let batch = batch?;
        let pixels = batch.images.chunks(28 * 28);
        items.extend(
            pixels.zip(&batch.labels).map(|(p, label)| Item { image: p.to_vec(), label: *label as i32 }),
        );
    }
    let test = items.split_off(items.len() - 5000);
    let loader =
        |items| DataLoaderBuilder::new(Batches).batch_size(128).shuffle(7).build(InMemDataset::new(items));

    let device = Device::flex().autodiff();
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new().with_dampening(0.0))).build();
    let net = Net { mlp: MlpConfig::new().init(&device) };
    let Sparsified { model, optim, topology } = SparsityConfig::new(0.9, 320).sparsify(net, sgd)?;

    let folder = std::env::temp_dir().join("srigl-burn-learner");
    let result = SupervisedTraining::new(&folder, loader(items), loader(test))
        .metrics((AccuracyMetric::new(), LossMetric::new()))
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .num_epochs(1)
        .launch(Learner::new(model, optim, ConstantLr::new(0.05)));

    println!("test accuracy {:.2} %", 100.0 * common::accuracy(&result.model.mlp, &images)?);
    println!("sparsity {:.2} %", 100.0 * topology.sparsity());
    std::fs::remove_dir_all(&folder).ok();
    Ok(())
}
