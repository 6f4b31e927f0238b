//! Layers that train in condensed form.

use crate::engine::window;
use crate::threads::detached;
use crate::{refused, refused_network};
use condensed::training::{Layer, Scratch};
use condensed::{Pattern, Shape};
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Memory of layers that do not run: each takes one while it does, so that there are as many as run at the same time.
static SCRATCHES: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

fn with_scratch<T>(run: impl FnOnce(&mut Scratch) -> T) -> T {
    let lock = || SCRATCHES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scratch = lock().pop().unwrap_or_default();
    let result = run(&mut scratch);
    lock().push(scratch);
    result
}

fn pattern(mask: &[u8], neurons: usize) -> PyResult<Pattern> {
    let inputs = mask.len().checked_div(neurons).unwrap_or(0);
    let bits: Vec<bool> = mask.iter().map(|byte| *byte != 0).collect();
    Pattern::from_mask(&bits, neurons, inputs).map_err(refused_network)
}

/// A linear layer or a convolution of which only the active weights exist, forward and backward.
#[pyclass(frozen, module = "srigl.condensed")]
pub struct TrainingLayer {
    layer: Layer,
    input: Shape,
}

impl TrainingLayer {
    /// Refuses slices that the layer would panic over.
    fn check(&self, values: &[f32], batch: usize, x: &[f32], dy: Option<&[f32]>) -> PyResult<()> {
        let fits = values.len() == self.layer.weights()
            && Some(x.len()) == batch.checked_mul(self.input.len())
            && dy.is_none_or(|dy| Some(dy.len()) == batch.checked_mul(self.layer.output_shape().len()));
        if fits {
            return Ok(());
        }
        let (weights, input, output) = (self.layer.weights(), self.input, self.layer.output_shape());
        Err(refused(format_args!(
            "{} values for {weights} weights, {} inputs and {} gradients for {batch} samples of {input} and {output}",
            values.len(),
            x.len(),
            dy.map_or(0, <[f32]>::len)
        )))
    }
}

#[pymethods]
impl TrainingLayer {
    /// A linear layer of a mask `[N · M]`.
    #[staticmethod]
    fn linear(py: Python<'_>, mask: PyReadonlyArray1<'_, u8>, neurons: usize) -> PyResult<Self> {
        let mask = mask.as_slice()?;
        detached(py, || {
            let pattern = pattern(mask, neurons)?;
            let input = Shape { features: pattern.inputs(), height: 1, width: 1 };
            Ok(Self { layer: Layer::linear(&pattern).map_err(refused_network)?, input })
        })
    }

    /// A convolution of images `[C, H, W]` by a mask `[N · C / groups · kh · kw]`.
    #[staticmethod]
    fn conv2d(
        py: Python<'_>,
        mask: PyReadonlyArray1<'_, u8>,
        neurons: usize,
        window: [[usize; 2]; 4],
        groups: usize,
        input: [usize; 3],
    ) -> PyResult<Self> {
        let mask = mask.as_slice()?;
        let [features, height, width] = input;
        let input = Shape { features, height, width };
        detached(py, || {
            let pattern = pattern(mask, neurons)?;
            let layer =
                Layer::conv2d(&pattern, self::window(window), groups, input).map_err(refused_network)?;
            Ok(Self { layer, input })
        })
    }

    /// Shape `[N, H, W]` of a result.
    #[getter]
    fn output_shape(&self) -> [usize; 3] {
        let Shape { features, height, width } = self.layer.output_shape();
        [features, height, width]
    }

    /// `W x + b`.
    fn forward<'py>(
        &self,
        py: Python<'py>,
        values: PyReadonlyArray1<'py, f32>,
        bias: Option<PyReadonlyArray1<'py, f32>>,
        batch: usize,
        x: PyReadonlyArray1<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (values, x) = (values.as_slice()?, x.as_slice()?);
        self.check(values, batch, x, None)?;
        let bias = bias.as_ref().map(|bias| bias.as_slice()).transpose()?;
        if bias.is_some_and(|bias| bias.len() != self.layer.neurons()) {
            return Err(refused("the bias does not have a number for each neuron"));
        }
        let result = PyArray1::zeros(py, batch * self.layer.output_shape().len(), false);
        let mut writer = result.readwrite();
        let y = writer.as_slice_mut()?;
        let ran =
            detached(py, || with_scratch(|scratch| self.layer.forward(values, bias, batch, x, y, scratch)));
        ran.map_err(refused_network)?;
        drop(writer);
        Ok(result)
    }

    /// Gradients by inputs, if they are wanted, and by values.
    #[expect(clippy::type_complexity, reason = "two arrays")]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        values: PyReadonlyArray1<'py, f32>,
        batch: usize,
        x: PyReadonlyArray1<'py, f32>,
        dy: PyReadonlyArray1<'py, f32>,
        wants_dx: bool,
    ) -> PyResult<(Option<Bound<'py, PyArray1<f32>>>, Bound<'py, PyArray1<f32>>)> {
        let (values, x, dy) = (values.as_slice()?, x.as_slice()?, dy.as_slice()?);
        self.check(values, batch, x, Some(dy))?;
        let dx = wants_dx.then(|| PyArray1::zeros(py, x.len(), false));
        let dvalues = PyArray1::zeros(py, values.len(), false);
        {
            let mut dx = dx.as_ref().map(|dx| dx.readwrite());
            let dx = dx.as_mut().map(|dx| dx.as_slice_mut()).transpose()?;
            let mut dvalues = dvalues.readwrite();
            let dvalues = dvalues.as_slice_mut()?;
            let ran = detached(py, || {
                with_scratch(|scratch| self.layer.backward(values, batch, x, dy, dx, dvalues, scratch))
            });
            ran.map_err(refused_network)?;
        }
        Ok((dx, dvalues))
    }
}
