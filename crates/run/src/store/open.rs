//! Files of tensors in every form that people have them: safetensors, in one file or sharded, and PyTorch's `torch.save`.

use super::tensor::{Data, Tensor};
use super::{MAX_HEADER, Store, mask_name, pickle, printable};
use crate::Error;
use crate::lines::hash;
use pytorch_reader::{DType, PytorchError, PytorchReader};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use srigl_tensors::{Index, Refused, hex};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Component, Path};
use std::sync::{Arc, Mutex};

/// Training scripts keep the weights under one of these keys, beside the optimizer's state.
const STATE_KEYS: [&str; 9] = [
    "model_state_dict",
    "state_dict",
    "model",
    "model_state",
    "net",
    "network",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
];

/// Under which keys training scripts keep the state of optimizers, beside the weights.
const OPTIMIZER_KEYS: [&str; 6] =
    ["optimizer", "optim", "optimizer_state_dict", "optimizer_states", "optimizer_state", "optim_state_dict"];

/// The longest `*.index.json` that is read, in bytes.
const MAX_INDEX: u64 = 100_000_000;

impl Store {
    /// The tensors of a file: safetensors, an `*.index.json` with its shards, or what `torch.save` wrote. Only headers are
    /// read now. Tensors of optimizers are left out, and pairs `NAME_orig`, `NAME_mask` of `torch.nn.utils.prune` become
    /// `NAME` and its mask; [`notes`](Self::notes) say so.
    ///
    /// # Errors
    /// [`Error::Read`] if a file cannot be read; [`Error::Damaged`], [`Error::PyTorch`] or [`Error::Tensors`] if it is not
    /// what it should be; [`Error::TooLarge`] if there is no memory for its header.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut store = if is_index(path) { sharded(path)? } else { single(path)? };
        store.leave_out_optimizers();
        store.join_pruned();
        Ok(store)
    }

    fn leave_out_optimizers(&mut self) {
        // As in `optimizer.state.0.exp_avg`: a module may be called so, too.
        let is_other = |name: &str| {
            name.split_once('.').is_some_and(|(key, rest)| {
                OPTIMIZER_KEYS.contains(&key) && rest.split('.').any(|part| part == "state")
            })
        };
        let before = self.tensors.len();
        self.tensors.retain(|name, _| !is_other(name));
        let left_out = before - self.tensors.len();
        if left_out > 0 {
            self.notes.push(format!("{left_out} tensors of optimizers are left out"));
        }
    }

    /// `NAME_orig` and `NAME_mask` become `NAME` and, for a weight, its mask.
    fn join_pruned(&mut self) {
        let pruned: Vec<String> = (self.tensors.keys())
            .filter_map(|name| name.strip_suffix("_orig"))
            .filter(|name| {
                let (values, mask) =
                    (&self.tensors[&format!("{name}_orig")], self.tensors.get(&format!("{name}_mask")));
                mask.is_some_and(|mask| mask.shape == values.shape && values.is_float())
                    && !self.tensors.contains_key(*name)
            })
            .map(str::to_string)
            .collect();
        for name in &pruned {
            let (Some(values), Some(mask)) =
                (self.tensors.remove(&format!("{name}_orig")), self.tensors.remove(&format!("{name}_mask")))
            else {
                continue;
            };
            let (dtype, shape) = (values.dtype, values.shape.clone());
            if shape.len() >= 2 && name.ends_with("weight") {
                let data = Data::Bits(Box::new(mask.clone()));
                self.tensors.insert(mask_name(name), Tensor { dtype: Dtype::U8, shape: shape.clone(), data });
            }
            let data = Data::Masked { values: Box::new(values), mask: Box::new(mask) };
            self.tensors.insert(name.clone(), Tensor { dtype, shape, data });
        }
        if !pruned.is_empty() {
            let count = pruned.len();
            self.notes.push(format!(
                "{count} pairs NAME_orig, NAME_mask of torch.nn.utils.prune are weights and masks"
            ));
        }
    }
}

/// A regular file, opened, and its size.
fn regular(path: &Path) -> Result<(File, usize), Error> {
    match srigl_tensors::regular::open(path) {
        Ok((file, size)) => Ok((file, size as usize)),
        Err(cause) => Err(Error::Read { path: path.to_path_buf(), cause }),
    }
}

fn single(path: &Path) -> Result<Store, Error> {
    let (mut file, size) = regular(path)?;
    let read = |cause| Error::Read { path: path.to_path_buf(), cause };
    let mut start = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut start).map_err(read)?;
    // A zip archive, or the pickled number that older files start with. A safetensors file starts with the length of its
    // header, which these bytes would make larger than any.
    if start == *b"PK\x03\x04" || start == [0x80, 0x02, 0x8a, 0x0a] {
        let zipped = start[0] == b'P';
        file.rewind().map_err(read)?;
        return pickle::check(file, zipped)
            .and_then(|()| from_pytorch(path, size))
            .map_err(|what| Error::PyTorch { path: path.to_path_buf(), what: printable(&what) });
    }
    file.rewind().map_err(read)?;
    let index = Index::read(BufReader::new(&file), size, MAX_HEADER).map_err(|refused| {
        match (refused, path.to_path_buf()) {
            (Refused::Damaged(what), path) => Error::Damaged { path, what },
            (Refused::TooLarge(cause), path) => Error::TooLarge { path, cause },
            (Refused::Unreadable(cause), path) => Error::Read { path, cause: cause.into() },
        }
    })?;
    let file = Arc::new(Mutex::new(file));
    let tensor = |(name, place): (String, srigl_tensors::Place)| {
        let data = Data::File { file: file.clone(), bytes: place.bytes };
        (name, Tensor { dtype: place.dtype, shape: place.shape, data })
    };
    let tensors = index.tensors.into_iter().map(tensor).collect();
    Ok(Store { metadata: index.metadata, tensors, ..Store::empty(path) })
}

/// `*.index.json` of Hugging Face's libraries.
#[derive(Deserialize)]
struct ShardIndex {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    fn read(path: &Path) -> Result<Self, Error> {
        let (file, size) = regular(path)?;
        let wrong = |what: String| Error::Tensors { path: path.to_path_buf(), what };
        if size as u64 > MAX_INDEX {
            return Err(wrong(format!("an index of {size} bytes is too large")));
        }
        let index: Self = serde_json::from_reader(BufReader::new(file)).map_err(|error| {
            wrong(format!(
                "it is not an index of shards (`weight_map`), or a damaged one: {}",
                printable(&error)
            ))
        })?;
        for name in index.weight_map.values() {
            // A name in the same folder, and nowhere else.
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(wrong(format!("`{}` is not the name of a file beside it", printable(name))));
            }
        }
        Ok(index)
    }

    /// The names of the shards.
    fn files(&self) -> BTreeSet<&String> {
        self.weight_map.values().collect()
    }
}

/// SHA-256 of a file of weights, in hexadecimal digits. An `*.index.json` counts with its shards.
///
/// # Errors
/// [`Error::Read`] if a file cannot be read, [`Error::Tensors`] if an index is none.
pub(crate) fn weights_digest(path: &Path) -> Result<String, Error> {
    let mut sha = Sha256::new();
    let mut add = |path: &Path| -> Result<(), Error> {
        let (file, _) = regular(path)?;
        let read = hash(file, &mut sha).map_err(|cause| Error::Read { path: path.to_path_buf(), cause });
        read.map(drop)
    };
    add(path)?;
    if is_index(path) {
        for shard in ShardIndex::read(path)?.files() {
            add(&path.with_file_name(shard))?;
        }
    }
    Ok(hex(&sha.finalize()))
}

fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

fn sharded(path: &Path) -> Result<Store, Error> {
    let mut store = Store::empty(path);
    let wrong = |what: String| Error::Tensors { path: path.to_path_buf(), what };
    let index = ShardIndex::read(path)?;
    let mut shards = BTreeMap::new();
    for name in index.files() {
        shards.insert(name, single(&path.with_file_name(name))?);
    }
    for (tensor, shard) in &index.weight_map {
        let found = shards.get_mut(shard).and_then(|shard| shard.tensors.remove(tensor));
        let found = found.ok_or_else(|| {
            wrong(format!("tensor `{}` is not in `{}`; get both again", printable(tensor), printable(shard)))
        })?;
        store.tensors.insert(tensor.clone(), found);
    }
    store.metadata = shards.into_values().find_map(|shard| shard.metadata);
    store.notes.push(format!("{} shards read as one file", index.files().len()));
    Ok(store)
}

fn from_pytorch(path: &Path, size: usize) -> Result<Store, String> {
    let mut store = Store::empty(path);
    // Its messages may be several sentences.
    let advice = |error: PytorchError| {
        let error = error.to_string();
        let first = error.lines().next().unwrap_or_default().trim_end_matches('.');
        format!("{first}; if something else than weights is in it, save `model.state_dict()` alone")
    };
    let mut reader = PytorchReader::new(path).map_err(advice)?;
    let keys: BTreeSet<String> =
        reader.keys().iter().filter_map(|name| Some(name.split_once('.')?.0.to_string())).collect();
    // Names of a flat dictionary may begin with `model.` as well: then there is no dictionary of that key.
    for key in STATE_KEYS.into_iter().filter(|key| keys.contains(*key)) {
        if let Ok(nested) = PytorchReader::with_top_level_key(path, key) {
            reader = nested;
            store.notes.push(format!("the weights are those under `{key}`"));
            break;
        }
    }
    let mut total = 0_usize;
    for (name, tensor) in reader.into_tensors() {
        // Strides can make a small storage look huge.
        total = total.saturating_add(tensor.byte_len());
        if total > 4 * size {
            return Err(format!("tensor {name:?} is larger than the file"));
        }
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I16 => Dtype::I16,
            DType::I8 => Dtype::I8,
            DType::U64 => Dtype::U64,
            DType::U32 => Dtype::U32,
            DType::U16 => Dtype::U16,
            DType::U8 => Dtype::U8,
            DType::Bool => Dtype::BOOL,
        };
        let shape = tensor.shape().to_vec();
        store.tensors.insert(name, Tensor { dtype, shape, data: Data::PyTorch(Arc::new(tensor)) });
    }
    if store.tensors.is_empty() {
        return Err("it holds no tensors; save a state_dict".into());
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_known_by_their_bytes_and_those_of_shards() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let file = put("a.safetensors", "abc");
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(weights_digest(&file).unwrap(), sha, "that of `abc` in FIPS 180");
        let index = put("model.safetensors.index.json", r#"{"weight_map":{"x":"a.safetensors"}}"#);
        let before = weights_digest(&index).unwrap();
        assert_ne!(before, weights_digest(&put("other", r#"{"weight_map":{"x":"a.safetensors"}}"#)).unwrap());
        put("a.safetensors", "abd");
        assert_ne!(weights_digest(&index).unwrap(), before);
        std::fs::remove_file(file).unwrap();
        assert!(matches!(weights_digest(&index), Err(Error::Read { .. })));
    }
}
