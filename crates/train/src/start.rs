//! Where a training starts: from nothing, or from the weights of a file.

use crate::batches::gradients;
use crate::{Masks, NamedTensor, Weights, fill_module, masks_of, sparsify};
use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::tensor::Device;
use sparsity_core::{
    InitialMask, LayerSpec, LayerStats, Mask, Stream, WeightInit, sparsity_of_count, target_weights,
};
use srigl_burn::{Sparsified, sparse_layers, state_dict};
use srigl_data::Loader;
use srigl_models::{Classifier, ModelInfo, torchvision_name};
use srigl_run::{Config, InitialMaskFrom, StartedFrom, Steps, printable};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A network that a run starts with.
pub(crate) struct Start<M> {
    /// Made sparse, with its optimizer.
    pub sparse: Sparsified<M>,
    /// The file it came from, if from one; its accuracy is still to be measured.
    pub from: Option<StartedFrom>,
    /// Target weights `A` of each sparse layer, if they come from that file or from a batch.
    pub targets: BTreeMap<String, usize>,
}

/// A network made sparse as a run wants it.
///
/// # Errors
/// If a file of weights cannot be read or does not fit the network, and as [`sparsify`].
pub(crate) fn start<M: Classifier>(
    config: &Config,
    model: M,
    loader: &Loader,
    steps: &Steps,
    device: &Device,
) -> Result<Start<M>> {
    let Some(path) = &config.weights else {
        let sparse = sparsify_anew(config, model, loader, steps, device)?;
        let targets = match config.masks_from() {
            InitialMaskFrom::Sensitivity => targets(&sparse),
            _ => BTreeMap::new(),
        };
        return Ok(Start { sparse, from: None, targets });
    };
    let classes = loader.classes();
    ensure!(!path.is_dir(), "`{}` is a folder; of a run, give its model.safetensors", path.display());
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
            head_layer(info)
        );
    }
    let mut notes = std::mem::take(&mut weights.notes);
    if config.new_head {
        // The file may call its classifier otherwise.
        let own: BTreeSet<String> =
            state_dict(&model).iter().map(|tensor| torchvision_name(&tensor.name)).collect();
        let others: Vec<&String> = weights.tensors.keys().filter(|name| !own.contains(*name)).collect();
        if !others.is_empty() {
            let names: Vec<String> = others.iter().map(|name| printable(name)).collect();
            notes.push(format!("left out with the old classifier: {}", names.join(", ")));
        }
        weights.tensors.retain(|name, _| own.contains(name));
    }
    let model = fill_module(model, &weights.tensors, &fresh, device).with_context(of_file)?;
    if !weights.masks_from_zeros.is_empty() {
        let names = weights.masks_from_zeros.join(", ");
        notes.push(format!("no mask in the file, so zeros count as inactive: {names}"));
    }
    if config.new_head {
        notes.push(format!("`{}` starts anew", head_layer(info)));
    }
    let starts_dense = config.method.build()?.starts_dense();
    let by_default = match is_sparse && !starts_dense {
        true => InitialMaskFrom::File,
        false => config.method.info().initial_with(WeightInit::Keep).into(),
    };
    let from = config.initial_mask.unwrap_or(by_default);
    if starts_dense && is_sparse {
        notes.push("all weights may be trained at first, those that are 0 in the file too".into());
    }
    let words = match (starts_dense, config.method.nm()) {
        (true, _) => "all weights".to_string(),
        (_, Some(_)) if from.drawn().is_some_and(|drawn| drawn != InitialMask::Random) => {
            format!("{}, within each group of inputs", from.words(false))
        }
        _ => from.words(config.method.info().constant_fan_in).to_string(),
    };
    let (sparse, initial_mask) = match from {
        _ if !config.method.info().sparse => {
            if is_sparse {
                notes.push("dense training does not keep the masks of the file".into());
            }
            (sparsify(config, model, steps, Masks::Settings)?, "none".to_string())
        }
        InitialMaskFrom::File => {
            ensure!(is_sparse, "--initial-mask file, but {} has neither masks nor zeros", of_file());
            let mut masks = masks_of(&model, &weights.tensors)?;
            masks.extend(head_mask(config, &model, info, &head)?);
            notes.extend(check_structure(config, &masks)?);
            let sparse = sparsify(config, model, steps, Masks::Given(masks))?;
            let sparsity = sparse.topology.sparsity();
            if (sparsity - config.sparsity).abs() > 0.005 && config.method.nm().is_none() {
                notes.push(format!(
                    "the topology has a sparsity of {:.2} %, and keeps it; --sparsity {} is not used (--initial-mask magnitude \
                     would start another)",
                    100.0 * sparsity,
                    config.sparsity
                ));
            }
            (sparse, words)
        }
        from => {
            let config = Config { initial_mask: Some(from), ..config.clone() };
            (sparsify_anew(&config, model, loader, steps, device)?, words)
        }
    };
    let (file, sparsity) = (file_name(path), sparse.topology.sparsity());
    let from = StartedFrom { file, initial_mask, sparsity, test_accuracy: 0.0, notes };
    Ok(Start { targets: targets(&sparse), sparse, from: Some(from) })
}

/// Target weights `A` of each sparse layer.
fn targets<M>(sparse: &Sparsified<M>) -> BTreeMap<String, usize> {
    let layers = sparse.topology.layers().into_iter().filter(|layer| layer.sparsity > 0.0);
    layers.map(|layer| (layer.name, target_weights(layer.mask.positions(), layer.sparsity))).collect()
}

/// Makes a network sparse that has no masks: by the settings, or by the gradients of the first batch.
fn sparsify_anew<M: Classifier>(
    config: &Config,
    model: M,
    loader: &Loader,
    steps: &Steps,
    device: &Device,
) -> Result<Sparsified<M>> {
    if config.masks_from() != InitialMaskFrom::Sensitivity || !config.method.info().sparse {
        return Ok(sparsify(config, model, steps, Masks::Settings)?);
    }
    // The pass leaves its mark on the running statistics of normalisations.
    let before = model.clone().into_record();
    let mut batches = loader.train_epoch(config.seed, 0, config.batch_size, 0);
    let first = loop {
        match batches.next() {
            None => bail!(
                "no image of the training set can be read: the masks are made by the gradients of its first batch"
            ),
            Some(batch) => match batch? {
                batch if batch.labels.is_empty() => {}
                batch => break batch,
            },
        }
    };
    let gradients = gradients(config, &model, &first, device, |_, _, _| {});
    let model = model.load_record(before);
    Ok(sparsify(config, model, steps, Masks::Gradients(&gradients))?)
}

/// A network that is about to get the records of a checkpoint: with the target weights of its layers, and any masks. The
/// file that the run started from is not needed.
///
/// # Errors
/// As [`sparsify`].
pub(crate) fn start_again<M: Module>(
    config: &Config,
    model: M,
    steps: &Steps,
    targets: &BTreeMap<String, usize>,
) -> Result<Sparsified<M>> {
    if targets.is_empty() || !config.method.info().sparse {
        // A run of an earlier version that started from weights shared its sparsity by the settings, with random masks.
        let initial_mask = config.weights.as_ref().map(|_| InitialMaskFrom::Random).or(config.initial_mask);
        let config = Config { initial_mask, ..config.clone() };
        return Ok(sparsify(&config, model, steps, Masks::Settings)?);
    }
    let mut masks = Vec::new();
    for layer in sparse_layers(&model)? {
        if let Some(target) = targets.get(&layer.name) {
            let bytes: Vec<u8> = (0..layer.weights()).map(|i| u8::from(i < *target)).collect();
            let mask = Mask::from_bytes(layer.neurons(), layer.dense_fan_in(), &bytes)?;
            masks.push((layer.name, mask));
        }
    }
    Ok(sparsify(config, model, steps, Masks::Given(masks))?)
}

/// Checks that masks of a file are such that the method can go on with them; says what is not as it should be.
fn check_structure(config: &Config, masks: &[(String, Mask)]) -> Result<Vec<String>> {
    let (info, method) = (config.method.info(), config.method.build()?);
    let (nm, group) = (method.nm(), method.group());
    let mut notes = Vec::new();
    let without = |has: &dyn Fn(&Mask) -> bool| {
        let names = masks.iter().filter(|(_, mask)| !has(mask)).map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let constant = |mask: &Mask| LayerStats::new(mask).fan_in.is_some();
    let structures = [
        info.constant_fan_in.then(|| ("constant fan-in".to_string(), without(&constant))),
        nm.map(|nm| (format!("full pattern {nm}"), without(&|mask| nm.fills(mask)))),
        (group > 1).then(|| {
            (format!("groups of {group} that share inputs"), without(&|mask| mask.shares_inputs(group)))
        }),
    ];
    for (what, names) in structures.into_iter().flatten() {
        if names.is_empty() {
            continue;
        }
        ensure!(
            info.changes(),
            "--method {} needs {what}, which the masks of the file do not have in {names}; use --method static, or \
             --initial-mask magnitude",
            info.name
        );
        notes.push(format!(
            "the masks of the file have no {what} in {names}; the first update gives it to them"
        ));
    }
    Ok(notes)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The name of a network's classifier, in torchvision's names.
fn head_layer(info: &ModelInfo) -> &str {
    info.head.trim_end_matches(".bias")
}

/// Its weight and bias.
fn head_names(info: &ModelInfo) -> Vec<String> {
    vec![format!("{}.weight", head_layer(info)), info.head.to_string()]
}

/// A random mask for a new classifier, as sparse as that of the file was; none if that was dense.
fn head_mask<M: Module>(
    config: &Config,
    model: &M,
    info: &ModelInfo,
    old: &[NamedTensor],
) -> Result<Option<(String, Mask)>> {
    let Some(mask) = old.iter().find_map(|tensor| tensor.mask.as_ref()) else { return Ok(None) };
    let layers = sparse_layers(model)?;
    let weight = &head_names(info)[0];
    let is_head = |layer: &&LayerSpec| torchvision_name(&format!("{}.weight", layer.name)) == *weight;
    let Some(layer) = layers.iter().find(is_head) else { return Ok(None) };
    let sparsity = sparsity_of_count(mask.len(), mask.iter().filter(|active| **active).count());
    let index = layers.len() as u64; // a stream of its own
    let stream = Stream { seed: config.seed, layer: index, step: 0 };
    let mask = sparsity_core::initial_mask(&*config.method.build()?, layer, sparsity, stream)?;
    Ok(Some((layer.name.clone(), mask)))
}
