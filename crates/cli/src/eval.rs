//! `srigl eval`.

use crate::train::data_workers;
use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;
use srigl_data::Loader;
use srigl_models::{Classifier, ModelInfo, WithModel};
use srigl_run::{RunFolder, print};
use srigl_train::{Accuracy, Checkpoint, Latest, Weights, device, evaluate, fill_module, model_spec};
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

/// Evaluates the model of a finished run, or the last checkpoint of another, on the test images.
///
/// # Errors
/// For a run that has not begun or is damaged, and images that are not there or of another data set.
pub fn run(args: EvalArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let (folder, config) = RunFolder::existing(&args.run)?;
    let inputs = folder.inputs()?.map(|inputs| inputs.data);
    let (epoch, trained_on, trained) = match folder.result()? {
        Some(result) => (result.epochs, Some(result.data.name), Trained::Finished(folder.model(false)?)),
        None => {
            let run = args.run.display();
            let latest = Checkpoint::latest(&folder)?;
            let Latest { checkpoint, lost } = latest.with_context(|| {
                format!("{run} has no checkpoint: `srigl train … --resume` trains it from its first step")
            })?;
            if let Some(lost) = lost {
                print::note(&lost);
            }
            let progress = &checkpoint.progress;
            (progress.epoch, progress.data().map(str::to_string), Trained::SoFar(Box::new(checkpoint)))
        }
    };
    let source = srigl_data::open(config.dataset, args.data.as_deref(), config.allow_empty)?;
    let data = source.set().to_string();
    if let Some(trained_on) = inputs.or(trained_on) {
        ensure!(
            trained_on == data,
            "the run was trained on {trained_on}, but the data is {data}: provide it with --data"
        );
    }

    let synthetic = source.set().is_synthetic();
    let workers = data_workers(&source);
    let loader = config.loader(source, workers)?;
    let info = ModelInfo::named(&config.model.name)?;
    let evaluation = Evaluation { trained: &trained, info, loader: &loader, device: &device };
    let spec = model_spec(&config.model, loader.shape(), loader.classes())?;
    let Accuracy { loss, top1, top5 } =
        spec.with(&device, evaluation)?.with_context(|| format!("cannot evaluate {}", args.run.display()))?;
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

/// What is evaluated.
enum Trained {
    /// The file of a model.
    Finished(PathBuf),
    /// Where a run stands.
    SoFar(Box<Checkpoint>),
}

struct Evaluation<'a> {
    trained: &'a Trained,
    info: &'a ModelInfo,
    loader: &'a Loader,
    device: &'a Device,
}

impl WithModel for Evaluation<'_> {
    type Output = Result<Accuracy>;

    fn run<M: Classifier>(self, model: M) -> Result<Accuracy> {
        let model = match self.trained {
            Trained::SoFar(checkpoint) => checkpoint.load_model(model)?,
            Trained::Finished(path) => {
                let weights = Weights::open(path, self.info)?;
                fill_module(model, &weights.tensors, &[], self.device)?
            }
        };
        evaluate(&model, self.loader, self.device)
    }
}
