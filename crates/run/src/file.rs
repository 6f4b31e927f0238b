//! The files of a run, by their names.

/// Settings, [`Config`](crate::Config): same settings and inputs, same result.
pub const CONFIG: &str = "config.json";
/// Which images and weights it reads, by digest: [`Inputs`](crate::Inputs).
pub const INPUTS: &str = "inputs.json";
/// A line per epoch, [`Epoch`](crate::Epoch).
pub const METRICS: &str = "metrics.jsonl";
/// A line per topology update and layer, [`TopologyLine`](crate::TopologyLine).
pub const TOPOLOGY: &str = "topology.jsonl";
/// A line per picture of a layer's mask, [`MaskLine`](crate::MaskLine).
pub const MASKS: &str = "masks.jsonl";
/// The last checkpoint: all that a training needs to go on. The crate `srigl-train` reads and writes it.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The checkpoint before it.
pub const PREVIOUS: &str = "checkpoint.previous.safetensors";
/// A checkpoint that could not be used.
pub const DAMAGED: &str = "checkpoint.damaged.safetensors";
/// The model after the best epoch: weights with masks in PyTorch's names, a [`Store`](crate::Store).
pub const BEST: &str = "best.safetensors";
/// The same at the end.
pub const MODEL: &str = "model.safetensors";
/// The outcome of a finished run, [`RunResult`](crate::RunResult).
pub const RESULT: &str = "result.json";
/// The file that a writer holds locked. It says who that is, and is gone when the run ends.
pub(crate) const LOCK: &str = "run.lock";

/// Files that grow.
pub(crate) const LOGS: [&str; 3] = [METRICS, TOPOLOGY, MASKS];

/// Files that are written at once.
pub(crate) const WHOLE: [&str; 8] = [CONFIG, INPUTS, CHECKPOINT, PREVIOUS, DAMAGED, BEST, MODEL, RESULT];
