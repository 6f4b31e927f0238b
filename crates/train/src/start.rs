//! Where a training starts: from nothing, or from the weights of a file.

use crate::{NamedTensor, Weights, fill_module, masks_of, sparsify};
use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::tensor::Device;
use sparsity_core::{LayerSpec, Stream, initial_mask, sparsity_of_count};
use srigl_burn::{Sparsified, sparse_layers};
use srigl_models::{ModelInfo, torchvision_name};
use srigl_run::{Config, InitialMaskFrom, StartedFrom, Steps};
use std::path::Path;

/// A network made sparse as a run wants it, and what it started from if from a file; its accuracy is still to be measured.
///
/// # Errors
/// If the file cannot be read or does not fit the network, and as [`sparsify`].
pub(crate) fn start<M: Module>(
    config: &Config,
    model: M,
    classes: usize,
    steps: &Steps,
    device: &Device,
) -> Result<(Sparsified<M>, Option<StartedFrom>)> {
    let Some(path) = &config.weights else {
        return Ok((sparsify(config, model, steps, None)?, None));
    };
    let info = ModelInfo::named(&config.model.name)?;
    let mut weights = Weights::open(path, info)?;
    let of_file = || format!("`{}`", path.display());
    let is_sparse = weights.is_sparse();
    let fresh = if config.new_head { head_names(info) } else { Vec::new() };
    let head: Vec<NamedTensor> = fresh.iter().filter_map(|name| weights.tensors.remove(name)).collect();
    if let Some(other) = weights.classes(info).filter(|other| *other != classes) {
        bail!(
            "{} tells {other} classes apart, but the data has {classes}: add --new-head to start with a new `{}`",
            of_file(),
            info.head.trim_end_matches(".bias")
        );
    }
    let model = fill_module(model, &weights.tensors, &fresh, device).with_context(of_file)?;
    let mut notes = std::mem::take(&mut weights.notes);
    if !weights.masks_from_zeros.is_empty() {
        let names = weights.masks_from_zeros.join(", ");
        notes.push(format!("no mask in the file, so zeros count as inactive: {names}"));
    }
    if config.new_head {
        notes.push(format!("`{}` starts anew", info.head.trim_end_matches(".bias")));
    }
    let by_default = if is_sparse { InitialMaskFrom::File } else { InitialMaskFrom::Magnitude };
    let from = config.initial_mask.unwrap_or(by_default);
    let (sparse, initial_mask) = match from {
        _ if !config.method.info().needs.sparsity => (sparsify(config, model, steps, None)?, "none"),
        InitialMaskFrom::File => {
            ensure!(is_sparse, "--initial-mask file, but {} has neither masks nor zeros", of_file());
            let mut masks = masks_of(&model, &weights.tensors)?;
            masks.extend(head_mask(config, &model, info, &head)?);
            (sparsify(config, model, steps, Some(masks))?, "that of the file")
        }
        from => {
            // Said by the flag; what the flag stands for by default must be the same.
            let config = Config { initial_mask: Some(from), ..config.clone() };
            let what = match from {
                InitialMaskFrom::Magnitude => "the largest weights of each layer",
                InitialMaskFrom::GlobalMagnitude => "the largest weights of all layers",
                _ => "random",
            };
            (sparsify(&config, model, steps, None)?, what)
        }
    };
    let sparsity = sparse.topology.sparsity();
    if config.method.info().needs.sparsity && (sparsity - config.sparsity).abs() > 0.005 {
        notes.push(format!(
            "the topology has a sparsity of {:.2} %, and keeps it; --sparsity {} is not used",
            100.0 * sparsity,
            config.sparsity
        ));
    }
    if !config.method.info().needs.sparsity && is_sparse {
        notes.push("dense training does not keep the masks of the file".into());
    }
    let file = file_name(path);
    let initial_mask = initial_mask.into();
    Ok((sparse, Some(StartedFrom { file, initial_mask, sparsity, test_accuracy: 0.0, notes })))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Weight and bias of a network's classifier, in torchvision's names.
fn head_names(info: &ModelInfo) -> Vec<String> {
    vec![info.head.replace(".bias", ".weight"), info.head.to_string()]
}

/// A random mask for a new classifier, as sparse as that of the file was; none if that was dense.
fn head_mask<M: Module>(
    config: &Config,
    model: &M,
    info: &ModelInfo,
    old: &[NamedTensor],
) -> Result<Option<(String, sparsity_core::Mask)>> {
    let Some(mask) = old.iter().find_map(|tensor| tensor.mask.as_ref()) else { return Ok(None) };
    let layers = sparse_layers(model)?;
    let weight = &head_names(info)[0];
    let is_head = |layer: &&LayerSpec| torchvision_name(&format!("{}.weight", layer.name)) == *weight;
    let Some(layer) = layers.iter().find(is_head) else { return Ok(None) };
    let sparsity = sparsity_of_count(mask.len(), mask.iter().filter(|active| **active).count());
    let index = layers.len() as u64; // a stream of its own
    let stream = Stream { seed: config.seed, layer: index, step: 0 };
    let mask = initial_mask(&*config.method.build()?, layer, sparsity, stream)?;
    Ok(Some((layer.name.clone(), mask)))
}
