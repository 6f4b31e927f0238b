//! `srigl export`: a state_dict for other frameworks.

use anyhow::{Result, ensure};
use clap::Args;
use srigl_run::{RunFolder, Store, print};
use srigl_train::read_weights;
use std::path::PathBuf;

/// Arguments of `srigl export`.
#[derive(Args)]
#[command(after_help = "\
The file holds the parameters and running statistics in torchvision's names and shapes, without masks (inactive \
weights are 0), so that PyTorch loads it strictly:

  model.load_state_dict(safetensors.torch.load_file('resnet50.safetensors'), strict=True)

Examples:
  srigl export runs/srigl90 -o resnet50.safetensors
  srigl export runs/srigl90 --best -o resnet50.safetensors
  srigl export resnet50-11ad3fa6.pth -o resnet50.safetensors")]
pub struct ExportArgs {
    /// A finished run folder, or a file of weights: safetensors or PyTorch's .pt
    source: PathBuf,
    /// The model after the epoch with the best test accuracy, not after the last
    #[arg(long)]
    best: bool,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Writes the file.
///
/// # Errors
/// If the source cannot be read or the file not be written; nothing is left behind then.
pub fn run(args: ExportArgs) -> Result<()> {
    let path = if args.source.is_dir() {
        let (folder, _) = RunFolder::existing(&args.source)?;
        let path = folder.file(if args.best { "best.safetensors" } else { "model.safetensors" });
        let run = args.source.display();
        ensure!(
            path.exists(),
            "{run} has no {} yet: finish it with `srigl train … --resume`",
            path.display()
        );
        path
    } else {
        ensure!(
            !args.best,
            "--best chooses among the models of a run, but {} is a file",
            args.source.display()
        );
        args.source
    };
    let bytes = read_weights(&path)?;
    let file = Store::parse(&path, &bytes)?;
    let mut exported = Store::empty(&args.output);
    for (name, dtype, shape, data) in file.tensors() {
        if !name.ends_with(".mask") && !name.ends_with(".grad") {
            exported.insert(name, dtype, shape.to_vec(), data);
        }
    }
    let count = exported.tensors().count();
    ensure!(count > 0, "`{}` holds no weights", path.display());
    exported.stage(&args.output)?.commit()?;
    Ok(print::line(&format!("wrote `{}`: {count} tensors", args.output.display()))?)
}
