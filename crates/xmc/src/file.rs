//! Networks as safetensors: `embedding.weight` `[features, hidden]`, `hidden.bias` `[hidden]`, and of the output layer `output.inputs`
//! and `output.values` `[labels, fan_in]` and `output.bias` `[labels]`; `labels.points` `[labels]` says how many training points have each
//! label, and `points` in the metadata how many there were, for propensities.

use crate::{Error, Network};
use condensed::training::LabelLayer;
use srigl_tensors::{Dtype, RawTensor, TensorFile, regular};
use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

/// Bytes that a header has at most; five tensors need few.
const HEADER: usize = 1 << 16;

impl Network {
    /// Writes the network as a safetensors file.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write(&self, to: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let (labels, fan_in) = (self.output.labels(), self.output.fan_in());
        let (mut inputs, mut values, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for label in 0..labels {
            let (row, of_row, bias) = self.output.label(label);
            row.iter().for_each(|input| inputs.extend(input.to_le_bytes()));
            of_row.iter().for_each(|value| values.extend(value.to_le_bytes()));
            biases.extend(bias.to_le_bytes());
        }
        let bytes =
            |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let mut file = TensorFile::default();
        let mut add = |name: &str, dtype, shape: &[usize], data: Vec<u8>| {
            file.tensors
                .insert(name.into(), RawTensor { dtype, shape: shape.to_vec(), data: Cow::Owned(data) });
        };
        add("embedding.weight", Dtype::F32, &[self.features(), self.hidden()], bytes(&self.embedding));
        add("hidden.bias", Dtype::F32, &[self.hidden()], bytes(&self.bias));
        add("output.inputs", Dtype::U16, &[labels, fan_in], inputs);
        add("output.values", Dtype::F32, &[labels, fan_in], values);
        add("output.bias", Dtype::F32, &[labels], biases);
        let counts = self.counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        add("labels.points", Dtype::U32, &[labels], counts);
        file.metadata = Some([("points".to_string(), self.points.to_string())].into());
        file.write(HEADER, to)
    }

    /// Reads a network that [`write`](Self::write) has written.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read or is too large, [`Error::Model`] if it does not hold a network.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = regular::read(path).map_err(|cause| Error::Read { path: path.into(), cause })?;
        Self::parse(&bytes).map_err(|what| Error::Model { path: path.into(), what })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file = TensorFile::parse(bytes, HEADER).map_err(|refused| refused.to_string())?;
        let tensor = |name: &str, dtype| match file.tensors.get(name) {
            Some(tensor) if tensor.dtype == dtype => Ok(tensor),
            Some(tensor) => Err(format!("`{name}` is of {} instead of {dtype}", tensor.dtype)),
            None => Err(format!("there is no `{name}`: it is no network of srigl xmc")),
        };
        let numbers = |name: &str| {
            let tensor = tensor(name, Dtype::F32)?;
            let numbers: Vec<f32> =
                tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            match numbers.iter().find(|number| !number.is_finite()) {
                Some(number) => Err(format!("`{name}` has the value {number}")),
                None => Ok((tensor.shape.clone(), numbers)),
            }
        };
        let (embedding_shape, embedding) = numbers("embedding.weight")?;
        let (bias_shape, bias) = numbers("hidden.bias")?;
        let (values_shape, values) = numbers("output.values")?;
        let (output_bias_shape, output_bias) = numbers("output.bias")?;
        let inputs = tensor("output.inputs", Dtype::U16)?;
        let counts = tensor("labels.points", Dtype::U32)?;
        let points = file.metadata.as_ref().and_then(|metadata| metadata.get("points")?.parse().ok());
        let points = points.ok_or("its metadata do not say how many training points there were")?;
        let fits = match (&embedding_shape[..], &values_shape[..]) {
            ([features, hidden], [labels, fan_in]) => {
                let sizes = [*features, *hidden, *labels, *fan_in];
                let of_labels = output_bias_shape == [*labels] && counts.shape == [*labels];
                let others = bias_shape == [*hidden] && of_labels && inputs.shape == values_shape;
                (others && !sizes.contains(&0)).then_some(sizes)
            }
            _ => None,
        };
        let [_, hidden, labels, fan_in] = fits.ok_or("the shapes of its tensors do not fit each other")?;
        let inputs = inputs.data.as_chunks().0;
        let output = LabelLayer::new(hidden, labels, fan_in, |label, row, of_row| {
            let here = label * fan_in..(label + 1) * fan_in;
            row.iter_mut()
                .zip(&inputs[here.clone()])
                .for_each(|(to, bytes)| *to = u16::from_le_bytes(*bytes));
            of_row.copy_from_slice(&values[here]);
            output_bias[label]
        });
        let counts = counts.data.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        Ok(Self { embedding, bias, output: output.map_err(|error| error.to_string())?, counts, points })
    }
}
