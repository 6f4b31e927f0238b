//! Which tensors of a file are layers, and what their names tell.

use super::{Store, Tensor, mask_name, printable};
use crate::Error;
use globset::{Glob, GlobSet, GlobSetBuilder};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use sparsity_core::{Error as Refused, LayerSpec, Mask, Structure, StructureOfRows};
use std::borrow::Cow;
use std::collections::HashSet;

/// A number that may not be in a tensor, with its position.
type Bad = (usize, f64);

/// A layer of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileLayer {
    /// Its name and dimensions `[out, in, …]`.
    pub spec: LayerSpec,
    /// The tensor that has its weights.
    pub weight: String,
    /// Whether the file has them as `[in, out]`.
    pub transposed: bool,
}

impl FileLayer {
    /// Name of the tensor with the mask.
    pub fn mask(&self) -> String {
        mask_name(&self.weight)
    }

    /// Name of the tensor with the dense gradient.
    pub fn grad(&self) -> String {
        super::grad_name(&self.weight)
    }

    /// The dimensions that its tensors have in the file.
    pub(super) fn file_shape(&self) -> Vec<usize> {
        let mut shape = self.spec.dims.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// The place in `[N · M]` of what the file has at `position`.
    fn row_position(&self, position: usize) -> usize {
        let (n, m) = (self.spec.neurons(), self.spec.dense_fan_in());
        if self.transposed { position % n * m + position / n } else { position }
    }

    /// Values in the order of the file as `[N · M]`.
    pub(super) fn as_rows<T: Copy>(&self, values: &[T]) -> Vec<T> {
        match self.transposed {
            true => turned(values, self.spec.neurons()),
            false => values.to_vec(),
        }
    }

    /// Values `[N · M]` in the order of the file.
    pub(super) fn in_file_order<'v, T: Copy>(&self, values: &'v [T]) -> Cow<'v, [T]> {
        match self.transposed {
            true => Cow::Owned(turned(values, self.spec.dense_fan_in())),
            false => Cow::Borrowed(values),
        }
    }
}

/// A matrix with rows of `width` values, transposed.
fn turned<T: Copy>(values: &[T], width: usize) -> Vec<T> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}

/// Which tensors are layers, beyond what their names tell.
#[derive(Clone, Debug, Default)]
pub struct LayerNames {
    /// Globs of layers stored as `[in, out]`.
    pub transposed: Vec<String>,
    /// Globs of tensors that are no layers.
    pub exclude: Vec<String>,
}

impl Store {
    /// The layers, sorted by name, and what was guessed: each tensor `NAME.weight` or `NAME_proj_weight` (attention's
    /// `in_proj_weight` is the layer `in_proj`) of two or more dimensions is one, unless it is excluded or its name is that
    /// of an embedding. (A tensor called just `weight` has no `NAME` and is none.)
    ///
    /// # Errors
    /// If there is none, or one has an empty dimension, too many weights or an unprintable name; for a glob that is
    /// malformed or matches no tensor.
    pub fn layers(&self, names: &LayerNames) -> Result<(Vec<FileLayer>, Vec<String>), Error> {
        let mut layers = Vec::new();
        let (mut embeddings, mut others, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        let exclude = self.globs("--exclude", &names.exclude)?;
        let transposed = self.globs("--transposed", &names.transposed)?;
        for (tensor, stored) in &self.tensors {
            if stored.shape.len() < 2 {
                continue;
            }
            let Some(name) = layer_name(tensor) else {
                let goes_with_a_layer = [".mask", ".grad"].iter().any(|suffix| tensor.ends_with(suffix));
                if stored.is_float() && !goes_with_a_layer && tensor != "weight" {
                    others.push(tensor.as_str());
                }
                continue;
            };
            if name.contains(char::is_control) {
                return Err(self.error(format!("the layer name {name:?} has control characters; rename it")));
            }
            seen.push(name);
            if exclude.is_match(name) {
                continue;
            }
            if stored.shape.len() == 2 && is_embedding(name) {
                embeddings.push(name);
                continue;
            }
            let turned = transposed.is_match(name);
            let mut dims = stored.shape.clone();
            if turned {
                if dims.len() != 2 {
                    return Err(self.error(format!(
                        "layer `{name}` of --transposed has {} dimensions, but only two can be exchanged",
                        dims.len()
                    )));
                }
                dims.reverse();
            }
            let spec = LayerSpec::new(name, dims)
                .map_err(|e| self.error(format!("{e}; --exclude leaves it out")))?;
            layers.push(FileLayer { spec, weight: tensor.clone(), transposed: turned });
        }
        self.check_globs("--exclude", &names.exclude, &seen)?;
        self.check_globs("--transposed", &names.transposed, &seen)?;
        if layers.is_empty() {
            let count = self.tensors.len();
            return Err(self.error(format!(
                "no layers: none of its {count} tensors is a `NAME.weight` with two or more dimensions that is no embedding"
            )));
        }
        // `a.b` is between `a` and `a.weight` as a tensor, but after `a` as a layer.
        layers.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        let mut notes = Vec::new();
        if !embeddings.is_empty() {
            notes.push(format!("left out as embeddings, by their names: {}", list(&embeddings)));
        }
        let conv1d: Vec<&str> =
            layers.iter().filter(|l| !l.transposed && is_conv1d(l)).map(|l| l.spec.name.as_str()).collect();
        if !conv1d.is_empty() {
            notes.push(format!(
                "warning: {} have names of GPT-2's Conv1D, which stores [in, out]; if this file does, add --transposed \
                 'GLOB' for them, or masks get a constant fan-out",
                list(&conv1d)
            ));
        }
        if !others.is_empty() {
            notes.push(format!("no layers by their names, so left as they are: {}", list(&others)));
        }
        Ok((layers, notes))
    }

    fn globs(&self, option: &str, globs: &[String]) -> Result<GlobSet, Error> {
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            set.add(
                Glob::new(glob).map_err(|error| self.error(format!("{option} {glob}: {}", error.kind())))?,
            );
        }
        set.build().map_err(|error| self.error(format!("{option}: {}", error.kind())))
    }

    /// A glob that matches nothing is a mistake more often than not.
    fn check_globs(&self, option: &str, globs: &[String], names: &[&str]) -> Result<(), Error> {
        for glob in globs {
            let set = self.globs(option, std::slice::from_ref(glob))?;
            if !names.iter().any(|name| set.is_match(name)) {
                return Err(self
                    .error(format!("{option} {glob}: no layer has such a name; there are {}", list(names))));
            }
        }
        Ok(())
    }

    /// Index of the layer that is most likely the classifier, if one is: it has two dimensions, and no other layer reads
    /// its outputs, or it is called like one. Of several the last by natural order of names.
    pub fn classifier(layers: &[FileLayer]) -> Option<usize> {
        let inputs: HashSet<usize> = layers.iter().map(|layer| layer.spec.dims[1]).collect();
        let is_read = |layer: &FileLayer| inputs.contains(&layer.spec.neurons());
        let flat = |i: &usize| layers[*i].spec.dims.len() == 2;
        let candidates: Vec<usize> = (0..layers.len()).filter(flat).collect();
        let named: Vec<usize> =
            candidates.iter().copied().filter(|i| is_classifier(&layers[*i].spec.name)).collect();
        let is_end = |i: &usize| !is_read(&layers[*i]) && !is_attention(&layers[*i].spec.name);
        let unread: Vec<usize> = candidates.iter().copied().filter(is_end).collect();
        let last = |found: &[usize]| found.iter().copied().max_by_key(|i| natural(&layers[*i].spec.name));
        let both: Vec<usize> = named.iter().copied().filter(|i| unread.contains(i)).collect();
        last(&both).or_else(|| last(&named)).or_else(|| last(&unread))
    }

    /// How many weights of each neuron are not 0, `[N]`. Memory does not grow with the layer.
    ///
    /// # Errors
    /// If they are no floats, one is NaN or infinite, or the file cannot be read.
    pub fn weight_fan_ins(&self, layer: &FileLayer) -> Result<Vec<usize>, Error> {
        let Some(tensor) = self.of_layer(layer, &layer.weight, &super::FLOATS)? else {
            return Err(self.error(format!("tensor `{}` is missing", layer.weight)));
        };
        let (fan_ins, bad) = self.tally(layer, tensor)?;
        let Some((at, value)) = bad else { return Ok(fan_ins) };
        let at = layer.row_position(at);
        let (neuron, input) = (at / layer.spec.dense_fan_in(), at % layer.spec.dense_fan_in());
        let (layer, what, value) = (layer.spec.name.clone(), "weight", value as f32);
        Err(self.error(Refused::NotFinite { layer, what, value, neuron, input }))
    }

    /// How many positions of each neuron are active by the layer's mask, `[N]`, if the file has it. Memory does not grow
    /// with the layer.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    pub fn mask_fan_ins(&self, layer: &FileLayer) -> Result<Option<Vec<usize>>, Error> {
        let name = layer.mask();
        let Some(tensor) = self.of_layer(layer, &name, &[Dtype::U8, Dtype::BOOL])? else { return Ok(None) };
        let (fan_ins, bad) = self.tally(layer, tensor)?;
        let Some((position, value)) = bad else { return Ok(Some(fan_ins)) };
        let refused = Refused::MaskValue { position: layer.row_position(position), value: value as u8 };
        Err(self.error(format!("tensor `{name}`: {refused}")))
    }

    /// The structure of the layer's mask, or without one of what is not 0. Memory grows with a neuron's inputs alone, but for
    /// transposed layers, whose mask is read.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    pub fn structure(&self, layer: &FileLayer) -> Result<Option<Structure>, Error> {
        if layer.transposed {
            return self.structure_of_transposed(layer);
        }
        let tensor = match self.of_layer(layer, &layer.mask(), &[Dtype::U8, Dtype::BOOL])? {
            Some(mask) => Some(mask),
            None => self.of_layer(layer, &layer.weight, &super::FLOATS)?,
        };
        let Some(tensor) = tensor else { return Ok(None) };
        let (m, size) = (layer.spec.dense_fan_in(), tensor.dtype.bitsize() / 8);
        let (mut rows, mut row, mut input) = (StructureOfRows::new(m), vec![0u64; m.div_ceil(64)], 0);
        // A float's sign does not count.
        let is_set = |number: &[u8]| match number {
            [byte] => *byte != 0,
            [rest @ .., last] => *last & 0x7f != 0 || rest.iter().any(|byte| *byte != 0),
            [] => false,
        };
        let scanned = tensor.chunks(&mut |chunk| {
            for number in chunk.chunks_exact(size) {
                row[input / 64] |= u64::from(is_set(number)) << (input % 64);
                input += 1;
                if input == m {
                    rows.add(&row);
                    row.fill(0);
                    input = 0;
                }
            }
            Ok(())
        });
        scanned.map_err(|cause| self.cannot_read(cause))?;
        Ok(Some(rows.structure()))
    }

    fn structure_of_transposed(&self, layer: &FileLayer) -> Result<Option<Structure>, Error> {
        if let Some((mask, _)) = self.mask(layer)? {
            return Ok(Some(Structure::of(&mask)));
        }
        let bytes: Vec<u8> = self.weights(layer)?.iter().map(|weight| u8::from(*weight != 0.0)).collect();
        let mask = Mask::from_bytes(layer.spec.neurons(), layer.spec.dense_fan_in(), &bytes);
        Ok(mask.ok().map(|mask| Structure::of(&mask)))
    }

    /// For each neuron how many numbers are not 0, and the first that may not be, with its position in the
    /// file.
    fn tally(&self, layer: &FileLayer, tensor: &Tensor) -> Result<(Vec<usize>, Option<Bad>), Error> {
        let (n, m) = (layer.spec.neurons(), layer.spec.dense_fan_in());
        let size = tensor.dtype.bitsize() / 8;
        let (mut fan_ins, mut at, mut bad) = (vec![0; n], 0, None);
        let scanned = tensor.chunks(&mut |chunk| {
            let mut rest = chunk;
            while !rest.is_empty() {
                // To the end of the neuron's row, or one number of each neuron.
                let run = if layer.transposed { 1 } else { m - at % m };
                let (numbers, after) = rest.split_at(rest.len().min(run * size));
                let neuron = if layer.transposed { at % n } else { at / m };
                let (count, wrong) = scan(tensor.dtype, numbers);
                fan_ins[neuron] += count;
                bad = bad.or(wrong.map(|(i, value)| (at + i, value)));
                at += numbers.len() / size;
                rest = after;
            }
            Ok(())
        });
        scanned.map_err(|cause| self.cannot_read(cause))?;
        Ok((fan_ins, bad))
    }
}

/// How many numbers are not 0, and the first that may not be, with its place: a float that is NaN or infinite, or a byte of
/// a mask above 1.
fn scan(dtype: Dtype, bytes: &[u8]) -> (usize, Option<Bad>) {
    /// Numbers by their bits, with what a float's exponent is where it is not finite.
    fn of<const SIZE: usize>(
        bytes: &[u8],
        bits: impl Fn([u8; SIZE]) -> u64,
        exponent: u64,
        value: impl Fn([u8; SIZE]) -> f64,
    ) -> (usize, Option<Bad>) {
        let sign = 1_u64 << (8 * SIZE - 1);
        let (words, _) = bytes.as_chunks::<SIZE>();
        let count = words.iter().filter(|word| bits(**word) & !sign != 0).count();
        let is_bad = |word: &[u8; SIZE]| bits(*word) & exponent == exponent;
        // Without branches first, which is fast.
        let any = words.iter().fold(false, |any, word| any | is_bad(word));
        let bad = if any { words.iter().position(is_bad) } else { None };
        (count, bad.map(|i| (i, value(words[i]))))
    }
    match dtype {
        Dtype::F16 => of(bytes, |b| u16::from_le_bytes(b).into(), 0x7c00, |b| f16::from_le_bytes(b).to_f64()),
        Dtype::BF16 => {
            of(bytes, |b| u16::from_le_bytes(b).into(), 0x7f80, |b| bf16::from_le_bytes(b).to_f64())
        }
        Dtype::F32 => {
            of(bytes, |b| u32::from_le_bytes(b).into(), 0x7f80_0000, |b| f32::from_le_bytes(b).into())
        }
        Dtype::F64 => of(bytes, u64::from_le_bytes, 0x7ff0_0000_0000_0000, f64::from_le_bytes),
        _ => {
            let bad = bytes.iter().position(|byte| *byte > 1);
            (bytes.iter().filter(|byte| **byte != 0).count(), bad.map(|i| (i, bytes[i].into())))
        }
    }
}

/// The layer that a tensor of this name has the weights of.
fn layer_name(tensor: &str) -> Option<&str> {
    let name = tensor.strip_suffix(".weight").or_else(|| {
        let name = tensor.strip_suffix("_weight")?;
        name.ends_with("_proj").then_some(name)
    })?;
    (!name.is_empty()).then_some(name)
}

/// The last part of a layer's name.
fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Whether a layer with two dimensions is called as embeddings are (GPT-2, BERT, T5, Llama and others).
fn is_embedding(name: &str) -> bool {
    let part = last_part(name);
    let is_word = |word: &str| word == "emb" || word.starts_with("embed");
    let is_known = matches!(part, "wte" | "wpe" | "shared" | "relative_attention_bias");
    // The layer after the last of GPT-NeoX.
    part != "embed_out" && (is_known || part.split('_').any(is_word))
}

/// Whether a layer is called as GPT-2's, whose class Conv1D stores `[in, out]`.
fn is_conv1d(layer: &FileLayer) -> bool {
    let part = last_part(&layer.spec.name);
    layer.spec.dims.len() == 2 && matches!(part, "c_attn" | "c_proj" | "c_fc" | "q_attn")
}

/// Whether a layer is called as classifiers are.
fn is_classifier(name: &str) -> bool {
    let known =
        |part: &str| matches!(part, "head" | "heads" | "classifier" | "lm_head" | "logits" | "fc" | "output");
    name.split('.').any(known)
}

/// Whether a layer is called as attention's input projections, whose outputs no layer reads as they are.
fn is_attention(name: &str) -> bool {
    let part = last_part(name);
    ["qkv", "in_proj", "c_attn", "query_key_value"].iter().any(|known| part.contains(known))
}

/// Sorts `layer.10` after `layer.9`.
fn natural(name: &str) -> Vec<(bool, usize, &str)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digit = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push((digit, if digit { part.parse().unwrap_or(usize::MAX) } else { 0 }, part));
        rest = after;
    }
    parts
}

/// A few names, for people.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let mut text: Vec<String> =
        names.iter().take(SHOWN).map(|name| format!("`{}`", printable(name))).collect();
    if names.len() > SHOWN {
        text.push(format!("… ({} in all)", names.len()));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named<'a> = (&'a str, &'a [usize]);

    fn layers(shapes: &[Named]) -> Vec<FileLayer> {
        let layer = |(name, dims): &Named| FileLayer {
            spec: LayerSpec::new(*name, *dims).unwrap(),
            weight: format!("{name}.weight"),
            transposed: false,
        };
        shapes.iter().map(layer).collect()
    }

    #[test]
    fn the_classifier_is_told_by_shapes_and_names() {
        let cases: [(&[Named], &str); 5] = [
            (&[("fc1", &[300, 784]), ("fc2", &[100, 300]), ("fc3", &[10, 100])], "fc3"),
            (&[("conv1", &[64, 3, 7, 7]), ("fc", &[1000, 512]), ("layer1.0.conv1", &[512, 64, 3, 3])], "fc"),
            (
                &[("classifier.0", &[512, 256]), ("classifier.3", &[512, 512]), ("proj", &[7, 256])],
                "classifier.3",
            ),
            (&[("head.10", &[8, 8]), ("head.9", &[8, 8])], "head.10"),
            (&[("h.0.mlp", &[8, 8]), ("lm_head", &[99, 8]), ("x", &[5, 8])], "lm_head"),
        ];
        for (shapes, name) in cases {
            let layers = layers(shapes);
            assert_eq!(layers[Store::classifier(&layers).unwrap()].spec.name, name);
        }
        assert_eq!(Store::classifier(&layers(&[("conv", &[4, 3, 2, 2])])), None);
        assert_eq!(Store::classifier(&layers(&[("l.in_proj", &[24, 8]), ("l.out_proj", &[8, 8])])), None);
    }

    #[test]
    fn names_tell_layers_embeddings_and_conv1d() {
        assert_eq!(layer_name("a.self_attention.in_proj_weight"), Some("a.self_attention.in_proj"));
        assert_eq!(
            (layer_name("fc.weight"), layer_name("weight"), layer_name("fc.bias")),
            (Some("fc"), None, None)
        );
        for name in [
            "wte",
            "embeddings.word_embeddings",
            "model.embed_tokens",
            "tok_emb",
            "emb",
            "h.0.attn.relative_attention_bias",
        ] {
            assert!(is_embedding(name), "{name}");
        }
        assert!(!is_embedding("patch_embed.proj") && !is_embedding("embed_out"));
        assert!(is_conv1d(&layers(&[("h.0.attn.c_attn", &[4, 12])])[0]));
    }

    #[test]
    fn scanning_finds_zeros_and_what_is_not_finite() {
        let floats = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        assert_eq!(scan(Dtype::F32, &floats(&[0.0, -0.0, 1.0, -1e-45])), (2, None));
        let infinite = (1, f64::INFINITY);
        assert_eq!(scan(Dtype::F32, &floats(&[0.0, f32::INFINITY, f32::NAN])), (2, Some(infinite)));
        assert_eq!(scan(Dtype::F16, &[0, 0, 0, 0x7c, 0, 0x80]), (1, Some(infinite)));
        assert_eq!(scan(Dtype::BF16, &[0, 0, 0x80, 0x7f, 0, 0x80, 0x80, 0x3f]), (2, Some(infinite)));
        assert_eq!(scan(Dtype::U8, &[0, 1, 2]), (2, Some((2, 2.0))));
    }

    #[test]
    fn a_turned_layer_comes_back() {
        let mut layer = layers(&[("a", &[3, 2])]).remove(0);
        layer.transposed = true;
        let rows = layer.as_rows(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(rows, [1, 4, 2, 5, 3, 6]);
        assert_eq!(&*layer.in_file_order(&rows), [1, 2, 3, 4, 5, 6]);
        assert_eq!((layer.file_shape(), layer.row_position(1)), (vec![2, 3], 2));
    }
}
