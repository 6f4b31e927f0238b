//! What is timed: layers and models, cases, engines, targets, and the results.

use serde::{Deserialize, Serialize};
use srigl_report::chart::{Colour, GREY, HUES, INK};

/// The layer of the paper's figure: `encoder.layers.encoder_layer_11.mlp.3` of ViT-B/16.
pub const PAPER_LAYER: Subject = Subject::Linear { inputs: 3072, outputs: 768 };
/// A typical convolution of ResNet-50's third stage; timed only beside the other engines.
pub const CONV: Subject = Subject::Conv { inputs: 256, outputs: 256, kernel: 3, side: 14 };
/// The networks that are timed as a whole, beside the other engines and on two threads.
pub const MODELS: [Subject; 2] = [
    Subject::Model { name: "resnet50", label: "ResNet-50" },
    Subject::Model { name: "vit-b-16", label: "ViT-B/16" },
];
/// Seed of weights and inputs.
pub const SEED: u64 = 0;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A matrix `[outputs, inputs]`.
    Linear {
        /// Numbers of one input.
        inputs: usize,
        /// Neurons.
        outputs: usize,
    },
    /// Square, stride 1, output as large as the input.
    Conv {
        /// Channels of the input.
        inputs: usize,
        /// Channels of the output.
        outputs: usize,
        /// Height and width of the kernel; odd.
        kernel: usize,
        /// Height and width of the image.
        side: usize,
    },
    /// A whole network on an image of 224×224, by its name in `srigl` and in words.
    Model {
        /// As `srigl bench model` knows it.
        name: &'static str,
        /// For people.
        label: &'static str,
    },
}

impl Subject {
    /// It in words.
    pub fn label(self) -> String {
        match self {
            Self::Linear { inputs, outputs } => format!("linear {inputs} → {outputs}"),
            Self::Conv { inputs, outputs, kernel, side } => {
                format!("convolution {kernel}×{kernel}, {inputs} → {outputs}, {side}×{side}")
            }
            Self::Model { label, .. } => label.into(),
        }
    }

    /// The arguments of `srigl bench` that select it.
    fn args(self) -> Vec<String> {
        let words = match self {
            Self::Linear { inputs, outputs } => format!("layer --in {inputs} --out {outputs}"),
            Self::Conv { inputs, outputs, kernel, side } => {
                format!("layer --conv {inputs} {outputs} {kernel} --size {side} --stride 1")
            }
            Self::Model { name, .. } => format!("model {name}"),
        };
        words.split(' ').map(String::from).collect()
    }

    /// Whether it is a whole network.
    pub fn is_model(self) -> bool {
        matches!(self, Self::Model { .. })
    }
}

/// One measurement: what, how sparse, how much at once, on how many threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// What is run.
    pub subject: Subject,
    /// Share of zero weights.
    pub sparsity: f64,
    /// Inputs at once.
    pub batch: usize,
    /// Threads of every engine.
    pub threads: usize,
}

impl Case {
    /// The case in words.
    pub fn label(&self) -> String {
        let Self { subject, batch, threads, .. } = self;
        let (subject, sparsity) = (subject.label(), percent(self.sparsity));
        format!("{subject}, {sparsity}, batch {batch}, {}", threads_label(*threads))
    }

    /// Arguments of `srigl bench`.
    pub fn args(&self) -> Vec<String> {
        let mut args = self.subject.args();
        let numbers = [
            ("--sparsity", self.sparsity.to_string()),
            ("--batch", self.batch.to_string()),
            ("--threads", self.threads.to_string()),
            ("--seed", SEED.to_string()),
        ];
        args.extend(numbers.into_iter().flat_map(|(flag, value)| [flag.into(), value]));
        args
    }
}

/// How long one call takes, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Half of the samples are faster.
    pub median_ms: f64,
    /// One in ten is faster.
    pub p10_ms: f64,
    /// Nine in ten are faster.
    pub p90_ms: f64,
    /// How many there are.
    pub samples: u64,
}

/// What runs a layer or a model, by its name in results; aliases are those of `srigl bench`. The first three are our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// All weights, the fastest way that `srigl` knows.
    Dense,
    /// Compressed sparse rows.
    Csr,
    /// The constant fan-in form.
    Condensed,
    /// `F.linear`, `F.conv2d`, or torchvision's model.
    #[serde(alias = "torch f32")]
    TorchDense,
    /// `F.linear` with a CSR weight.
    #[serde(alias = "torch csr linear")]
    TorchCsrLinear,
    /// `csr @ x`.
    #[serde(alias = "torch csr product")]
    TorchCsrProduct,
    /// The condensed formula in PyTorch.
    #[serde(alias = "torch condensed")]
    TorchCondensed,
    /// Dense: a model of one node, or all of it.
    #[serde(alias = "onnxruntime")]
    OnnxRuntime,
    /// The same model; it finds the zeros on its own.
    #[serde(rename = "deepsparse")]
    DeepSparse,
}

impl Engine {
    /// All of them, in the order of the columns.
    pub const ALL: [Self; 9] = [
        Self::Dense,
        Self::Csr,
        Self::Condensed,
        Self::TorchDense,
        Self::TorchCsrLinear,
        Self::TorchCsrProduct,
        Self::TorchCondensed,
        Self::OnnxRuntime,
        Self::DeepSparse,
    ];

    /// The name for tables and legends.
    pub fn label(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Csr => "CSR",
            Self::Condensed => "condensed",
            Self::TorchDense => "PyTorch dense",
            Self::TorchCsrLinear => "PyTorch CSR, F.linear",
            Self::TorchCsrProduct => "PyTorch CSR, csr @ x",
            Self::TorchCondensed => "PyTorch condensed",
            Self::OnnxRuntime => "ONNX Runtime",
            Self::DeepSparse => "DeepSparse",
        }
    }

    /// Colours of Okabe and Ito, as in the other figure; ours is the red.
    pub fn colour(self) -> Colour {
        match self {
            Self::Dense => INK,
            Self::Csr => GREY,
            Self::Condensed => HUES[1],
            Self::TorchDense => HUES[0],
            Self::TorchCsrLinear => HUES[4],
            Self::TorchCsrProduct => [0, 60, 100],
            Self::TorchCondensed => HUES[2],
            Self::OnnxRuntime => HUES[5],
            Self::DeepSparse => HUES[3],
        }
    }
}

/// All cases, in the order of the tables: by layer and threads, then by sparsity and batch.
pub fn cases(quick: bool, peers: bool, cores: usize) -> Vec<Case> {
    let sparsities: &[f64] = if quick { &[0.9, 0.99] } else { &[0.8, 0.9, 0.95, 0.99] };
    let batches: &[usize] = if quick { &[1, 256] } else { &[1, 16, 64, 256] };
    let threads: &[usize] = if quick { &[1] } else { &[1, 2] };
    let mut cases = Vec::new();
    let threads = || threads.iter().copied().filter(|&threads| threads <= cores);
    for threads in threads() {
        for &sparsity in sparsities {
            cases.extend(batches.iter().map(|&batch| Case {
                subject: PAPER_LAYER,
                sparsity,
                batch,
                threads,
            }));
        }
    }
    if peers {
        let case = |subject, threads| Case { subject, sparsity: 0.9, batch: 1, threads };
        cases.extend(threads().map(|threads| case(CONV, threads)));
        if cores >= 2 {
            cases.extend(MODELS.map(|model| case(model, 2)));
        }
    }
    cases
}

/// One engine in one case.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// What was timed.
    pub engine: Engine,
    /// What ran, in words.
    pub how: String,
    /// Against the dense result.
    pub relative_error: f64,
    /// How long it took.
    pub timing: Timing,
}

/// A case and what was measured; empty if it failed.
pub struct Measured {
    /// What was timed.
    pub case: Case,
    /// In the order of [`Engine::ALL`].
    pub results: Vec<Measurement>,
}

impl Measured {
    /// Median time in milliseconds; `None` if the engine was not timed.
    pub fn ms(&self, engine: Engine) -> Option<f64> {
        self.results.iter().find(|result| result.engine == engine).map(|result| result.timing.median_ms)
    }

    /// How many times faster the condensed form is than `engine`.
    pub fn speedup_over(&self, engine: Engine) -> Option<f64> {
        Some(self.ms(engine)? / self.ms(Engine::Condensed)?)
    }
}

/// How much faster than another engine the condensed form is meant to be.
pub struct Target {
    /// What is run.
    pub subject: Subject,
    /// Share of zero weights.
    pub sparsity: f64,
    /// Inputs at once.
    pub batch: usize,
    /// Threads of both.
    pub threads: usize,
    /// The engine to beat.
    pub over: Engine,
    /// Time of that engine over the time of the condensed form.
    pub at_least: f64,
}

/// The targets of this project; a condition on PyTorch's CSR stands for both ways to use it.
pub const TARGETS: [Target; 12] = [
    target(PAPER_LAYER, 0.9, 1, Engine::TorchDense, 3.4),
    target(PAPER_LAYER, 0.9, 1, Engine::TorchCsrLinear, 4.0),
    target(PAPER_LAYER, 0.9, 1, Engine::TorchCsrProduct, 4.0),
    target(PAPER_LAYER, 0.9, 256, Engine::TorchDense, 6.0),
    target(PAPER_LAYER, 0.9, 256, Engine::TorchCsrLinear, 20.0),
    target(PAPER_LAYER, 0.9, 256, Engine::TorchCsrProduct, 20.0),
    target(PAPER_LAYER, 0.99, 1, Engine::TorchDense, 20.0),
    target(CONV, 0.9, 1, Engine::OnnxRuntime, 4.0),
    Target { threads: 2, ..target(MODELS[0], 0.9, 1, Engine::OnnxRuntime, 2.4) },
    Target { threads: 2, ..target(MODELS[0], 0.9, 1, Engine::DeepSparse, 1.7) },
    Target { threads: 2, ..target(MODELS[1], 0.9, 1, Engine::OnnxRuntime, 3.0) },
    Target { threads: 2, ..target(MODELS[1], 0.9, 1, Engine::DeepSparse, 1.8) },
];

/// On one thread.
const fn target(subject: Subject, sparsity: f64, batch: usize, over: Engine, at_least: f64) -> Target {
    Target { subject, sparsity, batch, threads: 1, over, at_least }
}

impl Target {
    /// The case it is about.
    pub fn case(&self) -> Case {
        let Self { subject, sparsity, batch, threads, .. } = *self;
        Case { subject, sparsity, batch, threads }
    }
}

/// `90 %` for 0.9.
pub fn percent(share: f64) -> String {
    format!("{} %", (1e6 * share).round() / 1e4)
}

/// `1 thread`, `2 threads`.
pub fn threads_label(threads: usize) -> String {
    if threads == 1 { "1 thread".into() } else { format!("{threads} threads") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid() {
        assert_eq!(cases(false, false, 2).len(), 4 * 4 * 2);
        assert_eq!(cases(false, true, 1).len(), 4 * 4 + 1);
        let quick = cases(true, true, 2);
        assert_eq!(quick.len(), 2 * 2 + 1 + 2);
        assert_eq!(
            quick[4].args().join(" "),
            "layer --conv 256 256 3 --size 14 --stride 1 --sparsity 0.9 --batch 1 --threads 1 --seed 0"
        );
        assert_eq!(quick[5].args().join(" "), "model resnet50 --sparsity 0.9 --batch 1 --threads 2 --seed 0");
        assert_eq!(
            quick[0].args().join(" "),
            "layer --in 3072 --out 768 --sparsity 0.9 --batch 1 --threads 1 --seed 0"
        );
        // Every target is measured, even by --quick.
        for target in &TARGETS {
            assert!(quick.contains(&target.case()));
        }
    }
}
