//! Names of the files of a run.

/// Settings.
pub const CONFIG: &str = "config.json";
/// What images and weights it reads.
pub const INPUTS: &str = "inputs.json";
/// A line per epoch.
pub const METRICS: &str = "metrics.jsonl";
/// A line per topology update and layer.
pub const TOPOLOGY: &str = "topology.jsonl";
/// A line per picture of a mask.
pub const MASKS: &str = "masks.jsonl";
/// The last checkpoint.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The checkpoint before it.
pub const PREVIOUS: &str = "checkpoint.previous.safetensors";
/// A checkpoint that could not be used.
pub const DAMAGED: &str = "checkpoint.damaged.safetensors";
/// The model after the best epoch.
pub const BEST: &str = "best.safetensors";
/// The model at the end.
pub const MODEL: &str = "model.safetensors";
/// The outcome of a finished run.
pub const RESULT: &str = "result.json";
/// The file that a writer holds locked. It says who that is, and is gone when the run ends.
pub(crate) const LOCK: &str = "run.lock";

/// Files that grow.
pub(crate) const LOGS: [&str; 3] = [METRICS, TOPOLOGY, MASKS];

/// Files that are written at once.
pub(crate) const WHOLE: [&str; 8] = [CONFIG, INPUTS, CHECKPOINT, PREVIOUS, DAMAGED, BEST, MODEL, RESULT];
