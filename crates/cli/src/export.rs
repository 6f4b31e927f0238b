//! `srigl export`: a state_dict for other frameworks.

use anyhow::{Result, ensure};
use clap::Args;
use srigl_run::{RunFolder, Store, print};
use std::path::PathBuf;

/// Arguments of `srigl export`.
#[derive(Args)]
#[command(after_help = "\
The file holds the parameters and running statistics in torchvision's names and shapes, without masks (inactive \
weights are 0), so that PyTorch loads it strictly. Types stay as they are; prefixes of data-parallel and compiled modules \
(module., _orig_mod.) are taken off:

  model.load_state_dict(safetensors.torch.load_file('resnet50.safetensors'), strict=True)

Examples:
  srigl export runs/srigl90 -o resnet50.safetensors
  srigl export runs/srigl90 --best -o resnet50.safetensors
  srigl export resnet50-11ad3fa6.pth -o resnet50.safetensors
  srigl export model.safetensors.index.json -o whole.safetensors")]
pub struct ExportArgs {
    /// A finished run folder, or a file of weights: safetensors, an index of shards or PyTorch's .pt
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
        folder.model(args.best)?
    } else {
        ensure!(
            !args.best,
            "--best chooses among the models of a run, but {} is a file",
            args.source.display()
        );
        args.source
    };
    let mut file = Store::open(&path)?;
    ensure!(
        !file.metadata().is_some_and(condensed::file::is_condensed),
        "`{}` is a condensed network; export the weights that it was made from",
        path.display()
    );
    file.apply_masks()?;
    let mut notes = file.notes().to_vec();
    let prefix = wrapper_prefix(&file).to_string();
    if !prefix.is_empty() {
        notes.push(format!("the prefix `{prefix}` is taken off all names"));
        file.rename(|name| Some(name.strip_prefix(&prefix)?.to_string()));
    }
    let count = file.tensors().count();
    ensure!(count > 0, "`{}` holds no weights", path.display());
    let staged = file.stage(&args.output)?;
    print::notes(&notes);
    staged.commit()?;
    Ok(print::line(&format!("wrote `{}`: {count} tensors", args.output.display()))?)
}

/// What data-parallel and compiled modules put before all names; no module has it in its own. Counters such as `n_averaged`
/// of averaged models stand beside it.
fn wrapper_prefix(file: &Store) -> &str {
    let named = || file.tensors().filter(|(_, tensor)| !tensor.shape.is_empty()).map(|(name, _)| name);
    let Some(first) = named().next() else { return "" };
    let mut end = 0;
    while let Some(wrapper) = ["module.", "_orig_mod."].iter().find(|w| first[end..].starts_with(**w)) {
        if !named().all(|name| name.starts_with(&first[..end + wrapper.len()])) {
            break;
        }
        end += wrapper.len();
    }
    &first[..end]
}
