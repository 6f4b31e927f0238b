//! Networks as safetensors: `embedding.weight` `[features, hidden]`, `hidden.bias` `[hidden]`, and of the output layer `output.inputs`
//! and `output.values` `[labels, fan_in]` and `output.bias` `[labels]`; `labels.points` `[labels]` says how many training points have each
//! label, and `points` in the metadata how many there were, for propensities.

use crate::{Error, Network};
use condensed::training::LabelLayer;
use srigl_tensors::{Dtype, TensorFile, regular, write_header};
use std::io::{self, BufWriter, Write};
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
        let (embedding, hidden) = ([self.features(), self.hidden()], [self.hidden()]);
        let (of_labels, weights) = ([labels], [labels, fan_in]);
        let tensors: [(&str, Dtype, &[usize]); 6] = [
            ("embedding.weight", Dtype::F32, &embedding),
            ("hidden.bias", Dtype::F32, &hidden),
            ("output.inputs", Dtype::U16, &weights),
            ("output.values", Dtype::F32, &weights),
            ("output.bias", Dtype::F32, &of_labels),
            ("labels.points", Dtype::U32, &of_labels),
        ];
        let metadata = [("points".to_string(), self.points.to_string())].into();
        let mut to = BufWriter::new(to);
        let rows = || (0..labels).map(|label| self.output.label(label));
        // Number by number: there is no second copy in memory.
        for name in write_header(Some(&metadata), tensors, HEADER, &mut to)? {
            match name {
                "embedding.weight" => floats(&self.embedding, &mut to)?,
                "hidden.bias" => floats(&self.bias, &mut to)?,
                "output.values" => rows().try_for_each(|(_, values, _)| floats(values, &mut to))?,
                "output.bias" => rows().try_for_each(|(_, _, bias)| floats(&[bias], &mut to))?,
                "labels.points" => {
                    self.counts.iter().try_for_each(|count| to.write_all(&count.to_le_bytes()))?;
                }
                _ => rows()
                    .flat_map(|(row, _, _)| row)
                    .try_for_each(|input| to.write_all(&input.to_le_bytes()))?,
            }
        }
        to.flush()
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
        let points = points.filter(|points| *points > 0);
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
        let counts: Vec<u32> =
            counts.data.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        if let Some(count) = counts.iter().find(|count| **count as usize > points) {
            return Err(format!("a label has {count} of {points} training points"));
        }
        Ok(Self { embedding, bias, output: output.map_err(|error| error.to_string())?, counts, points })
    }
}

fn floats(numbers: &[f32], to: &mut impl Write) -> io::Result<()> {
    numbers.iter().try_for_each(|number| to.write_all(&number.to_le_bytes()))
}
