//! `srigl eval`.

use crate::train::data_workers;
use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;
use srigl_data::Loader;
use srigl_models::{Classifier, WithModel};
use srigl_run::{RunFolder, print};
use srigl_train::{Accuracy, Checkpoint, Latest, device, evaluate, model_spec};
use std::path::PathBuf;

/// Arguments of `srigl eval`.
#[derive(Args)]
#[command(after_help = "Example:\n  srigl eval runs/srigl95 --json")]
pub struct EvalArgs {
    /// Run folder of `srigl train`.
    run: PathBuf,

    /// Folder with the data set's files.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// flex, ndarray, cuda or cuda:N.
    #[arg(long, default_value = "flex")]
    device: String,

    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Evaluates the last checkpoint of a run on the test images.
pub fn run(args: EvalArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let (folder, config) = RunFolder::existing(&args.run)?;
    let latest = Checkpoint::latest(&folder)?;
    let run = args.run.display();
    let Latest { checkpoint, lost } =
        latest.with_context(|| format!("{run} has no checkpoint yet: train it first"))?;
    if let Some(lost) = lost {
        print::note(&lost);
    }
    let source = srigl_data::open(config.dataset, args.data.as_deref(), config.allow_empty)?;
    let (trained_on, data) = (&checkpoint.progress.data, source.set().to_string());
    ensure!(
        *trained_on == data,
        "the run was trained on {trained_on}, but the data is {data}: provide it with --data"
    );

    let synthetic = source.set().is_synthetic();
    let workers = data_workers(&source);
    let loader = config.loader(source, workers)?;
    let evaluation = Evaluation { checkpoint: &checkpoint, loader: &loader, device: &device };
    let spec = model_spec(&config.model, loader.shape(), loader.classes())?;
    let Accuracy { loss, top1, top5 } = spec
        .with(&device, evaluation)?
        .with_context(|| format!("the checkpoint of {run} does not hold this model"))?;
    let epoch = checkpoint.progress.epoch;
    if args.json {
        let count = loader.test_images();
        let result = serde_json::json!({
            "epoch": epoch, "test_loss": loss, "test_accuracy": top1, "test_top5": top5, "test_images": count, "data": data,
            "synthetic": synthetic,
        });
        print::json(&result)?;
    } else {
        print::line(&format!(
            "{} after epoch {epoch}: test loss {loss:.4}, test accuracy {:.2} %{} on {} images of {data}",
            config.title(),
            100.0 * top1,
            top5.map_or(String::new(), |top5| format!(" (top 5: {:.2} %)", 100.0 * top5)),
            loader.test_images()
        ))?;
    }
    Ok(())
}

struct Evaluation<'a> {
    checkpoint: &'a Checkpoint,
    loader: &'a Loader,
    device: &'a Device,
}

impl WithModel for Evaluation<'_> {
    type Output = Result<Accuracy>;

    fn run<M: Classifier>(self, model: M) -> Result<Accuracy> {
        let model = self.checkpoint.load_model(model)?;
        evaluate(&model, self.loader, self.device)
    }
}
