//! What sparse training costs over dense training: `cargo run --example overhead`.
//!
//! Trains the MNIST CNN of the paper (batch 128) dense and with SRigL at 90 %, one step of each in turn, so that
//! both see the same machine. The inputs are random: the time of a step does not depend on them. Every 100th sparse
//! step includes a topology update of all layers.

use burn::module::Module;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};
use srigl_burn::{SparseMethod, SriglConfig};
use srigl_models::{Classifier, MnistCnnConfig};
use std::time::Instant;

const BATCH: usize = 128;

struct Contender<M> {
    model: M,
    optim: ModuleOptimizer,
    seconds: Vec<f64>,
}

impl<M: Classifier> Contender<M> {
    fn new(model: M, method: SparseMethod) -> Self {
        let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new()));
        let srigl = SriglConfig::new(0.9).with_method(method).with_end_step(u64::MAX);
        let (model, optim) = srigl.sparsify(model, sgd.build()).expect("valid configuration");
        Self { model, optim, seconds: Vec::new() }
    }

    fn step(&mut self, images: &Tensor<4>, labels: &Tensor<1, Int>) {
        let started = Instant::now();
        let loss = burn::nn::loss::CrossEntropyLossConfig::new().init(&images.device());
        let loss = loss.forward(self.model.forward(images.clone()), labels.clone());
        let grads = GradientsParams::from_grads(loss.backward(), &self.model);
        self.model = self.optim.step(0.01, self.model.clone(), grads);
        self.seconds.push(started.elapsed().as_secs_f64());
    }

    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// Mean, topology updates included, without the slowest twentieth of ordinary steps, which other programs on the machine slowed down.
    fn mean(&self) -> f64 {
        let (updates, mut ordinary): (Vec<_>, Vec<_>) =
            self.seconds.iter().enumerate().partition(|(i, _)| (i + 1).is_multiple_of(100));
        ordinary.sort_by(|a, b| a.1.total_cmp(b.1));
        ordinary.truncate(ordinary.len() * 19 / 20);
        let sum = |steps: &[(usize, &f64)]| steps.iter().map(|(_, s)| **s).sum::<f64>();
        0.99 * sum(&ordinary) / ordinary.len() as f64 + 0.01 * sum(&updates) / updates.len() as f64
    }
}

fn main() {
    let steps: usize = std::env::args().nth(1).map_or(300, |n| n.parse().expect("number of steps"));
    let device = Device::flex().autodiff();
    let images = Tensor::random([BATCH, 1, 28, 28], Distribution::Default, &device);
    let labels = Tensor::<1, Int>::from_data([3; BATCH], &device);
    let model = MnistCnnConfig::new().init(&device);
    println!("MNIST CNN, {} parameters, batch {BATCH}, {steps} steps each, alternating", model.num_params());

    let mut dense = Contender::new(model.clone(), SparseMethod::Dense);
    let mut srigl = Contender::new(model, SparseMethod::Srigl);
    for _ in 0..steps.next_multiple_of(100) {
        dense.step(&images, &labels);
        srigl.step(&images, &labels);
    }
    println!("| per step       | dense ms | SRigL ms | overhead |");
    println!("|----------------|----------|----------|----------|");
    for (what, a, b) in
        [("median", dense.median(), srigl.median()), ("trimmed mean", dense.mean(), srigl.mean())]
    {
        println!("| {what:14} | {:8.2} | {:8.2} | {:+7.2} % |", 1e3 * a, 1e3 * b, 100.0 * (b / a - 1.0));
    }
}
