//! Networks as safetensors: `embedding.weight` `[features, hidden]`, `hidden.bias` `[hidden]`; of labels that read all hidden features
//! `head.values` `[labels, hidden]` and `head.bias` `[labels]`, of the others `tail.inputs` `[groups, fan_in]`, `tail.values` `[labels, fan_in]`
//! and `tail.bias` `[labels]`, of which either may be missing; `labels.order` `[labels]` names the labels of the head, then those of the
//! tail; `labels.points` `[labels]` says how many training points have each label, and `points` in the metadata how many there were, for
//! propensities; `group` in the metadata how many labels share inputs.
//!
//! `dense` in the metadata is there if features are, and `sha256` is a checksum of metadata and tensors.
//!
//! A training has Adam's moments beside them, in tensors that begin with `first.` and `second.`, and `step` and `state` in its metadata.

use crate::output::{Output, OutputMoments};
use crate::{Error, Network, Training, TrainingConfig};
use condensed::training::{LabelLayer, LabelSizes};
use sha2::{Digest, Sha256};
use srigl_tensors::{Dtype, TensorFile, hex, regular, write_header};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Bytes that a header has at most; these tensors need few.
const HEADER: usize = 1 << 16;
/// Prefixes of moments.
const MOMENTS: [&str; 2] = ["first.", "second."];

/// Writes the numbers of a tensor.
type Numbers<'a> = Box<dyn Fn(&mut dyn Write) -> io::Result<()> + 'a>;

/// A tensor that is written number by number: there is no second copy in memory.
struct Entry<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    write: Numbers<'a>,
}

impl<'a> Entry<'a> {
    fn floats(name: String, shape: &[usize], numbers: &'a [f32]) -> Self {
        Self { name, dtype: Dtype::F32, shape: shape.into(), write: Box::new(|to| floats(numbers, to)) }
    }

    fn counts(name: &str, numbers: &'a [u32]) -> Self {
        let write =
            |to: &mut dyn Write| numbers.iter().try_for_each(|number| to.write_all(&number.to_le_bytes()));
        Self { name: name.into(), dtype: Dtype::U32, shape: vec![numbers.len()], write: Box::new(write) }
    }

    /// Values and biases of all labels of a layer.
    fn labels(
        name: &str,
        sizes: LabelSizes,
        weights: impl Fn(usize) -> (&'a [f32], f32) + Copy + 'a,
    ) -> [Self; 2] {
        let labels = 0..sizes.labels;
        let (of_values, of_biases) = (labels.clone(), labels);
        let values =
            move |to: &mut dyn Write| of_values.clone().try_for_each(|label| floats(weights(label).0, to));
        let biases =
            move |to: &mut dyn Write| of_biases.clone().try_for_each(|label| floats(&[weights(label).1], to));
        [
            Self {
                name: format!("{name}.values"),
                dtype: Dtype::F32,
                shape: vec![sizes.labels, sizes.fan_in],
                write: Box::new(values),
            },
            Self {
                name: format!("{name}.bias"),
                dtype: Dtype::F32,
                shape: vec![sizes.labels],
                write: Box::new(biases),
            },
        ]
    }
}

/// Head or tail.
fn name_of(sizes: LabelSizes) -> &'static str {
    if sizes.fan_in == sizes.inputs { "head" } else { "tail" }
}

impl Network {
    /// Writes the network as a safetensors file.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write(&self, to: &mut (impl Write + ?Sized)) -> io::Result<()> {
        write(self.metadata(), self.entries(), to)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let group = self.output.layers.last().map_or(1, |layer| layer.sizes().group);
        let numbers = [("points", self.points), ("group", group)];
        let mut metadata: BTreeMap<String, String> =
            numbers.map(|(key, value)| (key.into(), value.to_string())).into();
        if self.dense {
            metadata.insert("dense".into(), "true".into());
        }
        metadata
    }

    fn entries(&self) -> Vec<Entry<'_>> {
        let hidden = self.hidden();
        let mut entries = vec![
            Entry::floats("embedding.weight".into(), &[self.features(), hidden], &self.embedding),
            Entry::floats("hidden.bias".into(), &[hidden], &self.bias),
            Entry::counts("labels.order", &self.output.order),
            Entry::counts("labels.points", &self.counts),
        ];
        for layer in &self.output.layers {
            let sizes = layer.sizes();
            entries.extend(Entry::labels(name_of(sizes), sizes, |label| layer.weights(label)));
            if sizes.fan_in < sizes.inputs {
                let inputs = move |to: &mut dyn Write| {
                    let mut inputs = (0..sizes.groups()).flat_map(|group| layer.inputs(group));
                    inputs.try_for_each(|input| to.write_all(&input.to_le_bytes()))
                };
                let (shape, write) = (vec![sizes.groups(), sizes.fan_in], Box::new(inputs));
                entries.push(Entry { name: "tail.inputs".into(), dtype: Dtype::U16, shape, write });
            }
        }
        entries
    }

    /// Reads a network that [`write`](Self::write) has written.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read or is too large, [`Error::Model`] if it does not hold a network.
    pub fn read(path: &Path) -> Result<Self, Error> {
        read(path, |file| file.network())
    }
}

impl Training {
    /// Writes the network and all that it takes to go on, with a text of the caller's.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write(&self, state: &str, to: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let network = self.network();
        let (mut metadata, mut entries) = (network.metadata(), network.entries());
        metadata.insert("step".into(), self.steps_taken().to_string());
        for (moment, prefix) in MOMENTS.into_iter().enumerate() {
            let (embedding, bias, output) = self.moments();
            let (embedding, bias) = (&embedding[moment], &bias[moment]);
            let shape = [network.features(), network.hidden()];
            entries.push(Entry::floats(format!("{prefix}embedding.weight"), &shape, embedding));
            entries.push(Entry::floats(format!("{prefix}hidden.bias"), &[bias.len()], bias));
            for (layer, moments) in network.output.layers.iter().zip(&output.0) {
                let name = format!("{prefix}{}", name_of(layer.sizes()));
                entries
                    .extend(Entry::labels(&name, layer.sizes(), move |label| moments.weights(moment, label)));
            }
        }
        metadata.insert("state".into(), state.into());
        write(metadata, entries, to)
    }

    /// Goes on with a training that [`write`](Self::write) has written, with the same settings on as many points, and returns the caller's text
    /// beside it.
    ///
    /// # Errors
    /// As [`new`](Self::new), [`Error::Read`] if the file cannot be read or is too large, [`Error::Model`] if it does not hold a training or one
    /// of other sizes.
    pub fn read(path: &Path, config: TrainingConfig, points: usize) -> Result<(Self, String), Error> {
        let wrong = |what: &str| Error::Model { path: path.into(), what: what.into() };
        let parsed = read(path, |file| {
            let step = file.metadata("step")?;
            let (network, state) = (file.network()?, file.state()?);
            let shape = [network.features(), network.hidden()];
            let embedding = MOMENTS.map(|prefix| file.floats(&format!("{prefix}embedding.weight"), &shape));
            let [first, second] = embedding;
            let embedding = [first?, second?];
            let bias = MOMENTS.map(|prefix| file.floats(&format!("{prefix}hidden.bias"), &shape[1..]));
            let [first, second] = bias;
            let bias = [first?, second?];
            let mut output = OutputMoments::new(&network.output).map_err(|error| error.to_string())?;
            for (layer, moments) in network.output.layers.iter().zip(&mut output.0) {
                let sizes = layer.sizes();
                let words = |name: String, shape: &[usize]| -> Result<&[[u8; 4]], String> {
                    Ok(file.shaped(&name, Dtype::F32, shape)?.as_chunks().0)
                };
                let mut of_labels = Vec::new();
                for prefix in MOMENTS {
                    let name = format!("{prefix}{}", name_of(sizes));
                    let values = words(format!("{name}.values"), &[sizes.labels, sizes.fan_in])?;
                    of_labels.push((values, words(format!("{name}.bias"), &[sizes.labels])?));
                }
                // From the file's bytes, without another copy.
                moments.restore(|moment, label, values| {
                    let (from, bias) = of_labels[moment];
                    let from = &from[label * sizes.fan_in..(label + 1) * sizes.fan_in];
                    values.iter_mut().zip(from).for_each(|(to, word)| *to = f32::from_le_bytes(*word));
                    f32::from_le_bytes(bias[label])
                });
            }
            Ok((network, step, state, embedding, bias, output))
        });
        let (network, step, state, embedding, bias, output) = parsed?;
        if network.points != points {
            return Err(wrong(&format!("a training on {} points, not {points}", network.points)));
        }
        let training = Self::restored(network, config, points, step as u64, embedding, bias, output)?;
        match training.steps_taken() <= training.steps() {
            true => Ok((training, state)),
            false => {
                Err(wrong(&format!("a training of {step} steps, more than the {} wanted", training.steps())))
            }
        }
    }
}

/// The checksum of a file.
struct Digesting(Sha256);

impl Digesting {
    fn new(metadata: &BTreeMap<String, String>) -> Self {
        let mut digest = Self(Sha256::new());
        for (key, value) in metadata.iter().filter(|(key, _)| *key != "sha256") {
            digest.name(key);
            digest.name(value);
        }
        digest
    }

    fn name(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a file with its checksum.
fn write(
    mut metadata: BTreeMap<String, String>,
    mut entries: Vec<Entry<'_>>,
    to: &mut (impl Write + ?Sized),
) -> io::Result<()> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut digest = Digesting::new(&metadata);
    for entry in &entries {
        digest.name(&entry.name);
        // Numbers come one by one, and are hashed in blocks.
        let mut blocks = BufWriter::new(&mut digest);
        (entry.write)(&mut blocks)?;
        blocks.flush()?;
    }
    metadata.insert("sha256".into(), digest.finish());
    let mut to = BufWriter::new(to);
    let tensors = entries.iter().map(|entry| (&entry.name[..], entry.dtype, &entry.shape[..]));
    for name in write_header(Some(&metadata), tensors, HEADER, &mut to)? {
        let entry = entries.iter().find(|entry| entry.name == name).expect("one of them");
        (entry.write)(&mut to)?;
    }
    to.flush()
}

fn floats(numbers: &[f32], to: &mut dyn Write) -> io::Result<()> {
    numbers.iter().try_for_each(|number| to.write_all(&number.to_le_bytes()))
}

fn read<T>(path: &Path, parse: impl FnOnce(&Parsed<'_>) -> Result<T, String>) -> Result<T, Error> {
    let bytes = regular::read(path).map_err(|cause| Error::Read { path: path.into(), cause })?;
    let file = TensorFile::parse(&bytes, HEADER).map_err(|refused| refused.to_string());
    let parsed = file.map(Parsed).and_then(|file| {
        file.check()?;
        parse(&file)
    });
    parsed.map_err(|what| Error::Model { path: path.into(), what })
}

/// A file whose tensors are looked for one by one.
struct Parsed<'a>(TensorFile<'a>);

impl Parsed<'_> {
    /// Shape and bytes of a tensor.
    fn tensor(&self, name: &str, dtype: Dtype) -> Result<(&[usize], &[u8]), String> {
        match self.0.tensors.get(name) {
            Some(tensor) if tensor.dtype == dtype => Ok((&tensor.shape, &tensor.data)),
            Some(tensor) => Err(format!("`{name}` is of {} instead of {dtype}", tensor.dtype)),
            None => Err(format!("there is no `{name}`: it is no network of srigl xmc")),
        }
    }

    fn shaped(&self, name: &str, dtype: Dtype, expected: &[usize]) -> Result<&[u8], String> {
        let (shape, data) = self.tensor(name, dtype)?;
        match shape == expected {
            true => Ok(data),
            false => Err(format!("`{name}` has the shape {shape:?}, others ask for {expected:?}")),
        }
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let (words, _) = self.shaped(name, Dtype::F32, shape)?.as_chunks();
        let numbers: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        match numbers.iter().find(|number| !number.is_finite()) {
            Some(number) => Err(format!("`{name}` has the value {number}")),
            None => Ok(numbers),
        }
    }

    fn counts(&self, name: &str, len: usize) -> Result<Vec<u32>, String> {
        let (words, _) = self.shaped(name, Dtype::U32, &[len])?.as_chunks();
        Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// Values and biases of all labels of a layer.
    fn labels(&self, name: &str, sizes: LabelSizes) -> Result<(Vec<f32>, Vec<f32>), String> {
        let values = self.floats(&format!("{name}.values"), &[sizes.labels, sizes.fan_in])?;
        Ok((values, self.floats(&format!("{name}.bias"), &[sizes.labels])?))
    }

    /// A whole number of the metadata, not 0.
    fn metadata(&self, key: &str) -> Result<usize, String> {
        let number = self.0.metadata.as_ref().and_then(|metadata| metadata.get(key)?.parse().ok());
        number
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("its metadata have no `{key}` that is a positive number"))
    }

    /// Whether the checksum, if there is one, is right.
    fn check(&self) -> Result<(), String> {
        let metadata = self.0.metadata.as_ref().ok_or("it has no metadata: it is no network of srigl xmc")?;
        let mut digest = Digesting::new(metadata);
        for (name, tensor) in &self.0.tensors {
            digest.name(name);
            digest.0.update(&tensor.data);
        }
        match metadata.get("sha256").is_none_or(|sha256| *sha256 == digest.finish()) {
            true => Ok(()),
            false => Err("it is damaged: its checksum does not match".into()),
        }
    }

    /// The caller's text of a training.
    fn state(&self) -> Result<String, String> {
        let state = self.0.metadata.as_ref().and_then(|metadata| metadata.get("state"));
        state.cloned().ok_or_else(|| "its metadata have no `state`".into())
    }

    fn network(&self) -> Result<Network, String> {
        let (shape, _) = self.tensor("embedding.weight", Dtype::F32)?;
        let &[features, hidden] = shape else {
            return Err(format!("`embedding.weight` has the shape {shape:?}, not [features, hidden]"));
        };
        let embedding = self.floats("embedding.weight", &[features, hidden])?;
        let bias = self.floats("hidden.bias", &[hidden])?;
        let (points, group) = (self.metadata("points")?, self.metadata("group")?);
        let mut layers = Vec::new();
        for name in ["head", "tail"] {
            let Ok((shape, _)) = self.tensor(&format!("{name}.values"), Dtype::F32) else { continue };
            let &[labels, fan_in] = shape else {
                return Err(format!("`{name}.values` has the shape {shape:?}, not [labels, fan-in]"));
            };
            layers.push(self.layer(name, LabelSizes { inputs: hidden, labels, fan_in, group })?);
        }
        let labels = layers.iter().map(|layer| layer.sizes().labels).fold(0, usize::saturating_add);
        if labels == 0 {
            return Err(
                "it has neither `head.values` nor `tail.values`: it is no network of srigl xmc".into()
            );
        }
        let (order, counts) = (self.counts("labels.order", labels)?, self.counts("labels.points", labels)?);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..labels as u32) {
            return Err("`labels.order` does not name every label once".into());
        }
        if let Some(count) = counts.iter().find(|count| **count as usize > points) {
            return Err(format!("a label has {count} of {points} training points"));
        }
        let dense = self.0.metadata.as_ref().is_some_and(|metadata| metadata.contains_key("dense"));
        Ok(Network { embedding, bias, output: Output::new(layers, order), counts, points, dense })
    }

    fn layer(&self, name: &str, mut sizes: LabelSizes) -> Result<LabelLayer, String> {
        let (values, bias) = self.labels(name, sizes)?;
        let inputs = match name {
            "head" if sizes.fan_in != sizes.inputs => {
                return Err(format!(
                    "`head.values` has {} columns for {} hidden features",
                    sizes.fan_in, sizes.inputs
                ));
            }
            "head" => {
                sizes.group = Output::HEAD_GROUP;
                Vec::new()
            }
            _ => self
                .shaped("tail.inputs", Dtype::U16, &[sizes.groups(), sizes.fan_in])?
                .as_chunks()
                .0
                .to_vec(),
        };
        let row = |group: usize, row: &mut [u16]| {
            for (k, to) in row.iter_mut().enumerate() {
                *to =
                    inputs.get(group * sizes.fan_in + k).map_or(k as u16, |bytes| u16::from_le_bytes(*bytes));
            }
        };
        let weights = |label: usize, to: &mut [f32]| {
            to.copy_from_slice(&values[label * sizes.fan_in..(label + 1) * sizes.fan_in]);
            bias[label]
        };
        LabelLayer::new(sizes, row, weights).map_err(|error| error.to_string())
    }
}
