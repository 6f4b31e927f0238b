//! Condensed networks and the engine that runs them.

use crate::threads::{SHARED, Threads, detached};
use crate::{refused, refused_network};
use condensed::{CondensedWeight, Isa, Node, Op, Shape, Weight, Window, ops};
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;
use std::process::id;
use std::sync::{Arc, Mutex, PoisonError};

/// Kernel, stride, padding and dilation.
pub fn window([kernel, stride, padding, dilation]: [[usize; 2]; 4]) -> Window {
    Window { kernel, stride, padding, dilation }
}

fn shape([features, height, width]: [usize; 3]) -> Shape {
    Shape { features, height, width }
}

fn sizes(Shape { features, height, width }: Shape) -> [usize; 3] {
    [features, height, width]
}

/// What a node computes, by name and arguments.
struct Arguments<'a, 'py>(&'a Bound<'py, PyDict>);

impl<'py> Arguments<'_, 'py> {
    fn get(&self, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.0.get_item(name)?.ok_or_else(|| refused(format_args!("an operation lacks `{name}`")))
    }

    fn floats(&self, name: &str) -> PyResult<Vec<f32>> {
        let array: PyReadonlyArray1<'py, f32> = self.get(name)?.extract()?;
        Ok(array.as_slice()?.to_vec())
    }

    fn window(&self) -> PyResult<Window> {
        Ok(window(self.get("window")?.extract()?))
    }

    /// The weight `[N, M]`, condensed if there is a mask, and its bias `[N]`.
    fn weight(&self) -> PyResult<(Weight, Vec<f32>)> {
        let (values, bias) = (self.floats("weight")?, self.floats("bias")?);
        let mask: Option<PyReadonlyArray1<'py, u8>> = self.get("mask")?.extract()?;
        let Some(mask) = mask else { return Ok((Weight::Dense(values), bias)) };
        let mask: Vec<bool> = mask.as_slice()?.iter().map(|byte| *byte != 0).collect();
        let inputs = values.len().checked_div(bias.len()).unwrap_or(0);
        let weight =
            CondensedWeight::from_masked(&values, &mask, bias.len(), inputs).map_err(refused_network)?;
        Ok((Weight::Condensed(weight), bias))
    }

    fn operation(&self, name: &str) -> PyResult<Op> {
        Ok(match name {
            "input" => ops::Input(shape(self.get("shape")?.extract()?)).into(),
            "linear" => {
                let (weight, bias) = self.weight()?;
                ops::Linear { weight, bias }.into()
            }
            "conv2d" => {
                let (weight, bias) = self.weight()?;
                let (window, groups) = (self.window()?, self.get("groups")?.extract()?);
                ops::Conv2d { weight, bias, window, groups }.into()
            }
            "affine" => ops::Affine { scale: self.floats("scale")?, shift: self.floats("shift")? }.into(),
            "layer_norm" => {
                let epsilon = self.get("epsilon")?.extract()?;
                ops::LayerNorm { scale: self.floats("scale")?, shift: self.floats("shift")?, epsilon }.into()
            }
            "max_pool" => ops::MaxPool(self.window()?).into(),
            "attention" => ops::Attention { heads: self.get("heads")?.extract()? }.into(),
            "tokens" => {
                ops::Tokens { class: self.floats("class")?, positions: self.floats("positions")? }.into()
            }
            "relu" => Op::Relu,
            "gelu" => Op::Gelu,
            "hard_sigmoid" => Op::HardSigmoid,
            "hard_swish" => Op::HardSwish,
            "add" => Op::Add,
            "scale" => Op::Scale,
            "global_avg_pool" => Op::GlobalAvgPool,
            "flatten" => Op::Flatten,
            "class_token" => Op::ClassToken,
            _ => return Err(refused(format_args!("the engine has no operation `{name}`"))),
        })
    }
}

/// A network in condensed form: operations one after the other, checked when it is made.
#[pyclass(frozen, module = "srigl.condensed")]
pub struct Network(condensed::Network);

#[pymethods]
impl Network {
    /// Of nodes (name, operation, indices of inputs, arguments); folded.
    #[new]
    fn new(py: Python<'_>, nodes: Vec<(String, String, Vec<usize>, Bound<'_, PyDict>)>) -> PyResult<Self> {
        let node = |(name, op, inputs, arguments): (String, String, Vec<usize>, Bound<PyDict>)| {
            let op = Arguments(&arguments).operation(&op).map_err(|error| {
                match error.is_instance_of::<crate::Error>(py) {
                    true => refused(format_args!("layer `{name}`: {}", error.value(py))),
                    false => error,
                }
            })?;
            Ok(Node::new(name, op, inputs))
        };
        let nodes = nodes.into_iter().map(node).collect::<PyResult<Vec<_>>>()?;
        let network = detached(py, || condensed::Network::new(nodes).and_then(condensed::Network::fold));
        network.map(Self).map_err(refused_network)
    }

    /// Of a file.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || condensed::load(path)).map(Self).map_err(refused_network)
    }

    /// To a file, whole or not at all.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || condensed::save(&self.0, path)).map_err(refused_network)
    }

    /// Name of each layer with weights, its neurons, weights, and fan-in: `None` if that varies or the layer is dense; whether it is
    /// condensed.
    fn layers(&self) -> Vec<(String, usize, usize, Option<usize>, bool)> {
        let layer = |node: &Node| {
            let (weight, bias) = match &node.op {
                Op::Linear(ops::Linear { weight, bias }) | Op::Conv2d(ops::Conv2d { weight, bias, .. }) => {
                    (weight, bias)
                }
                _ => return None,
            };
            let (weights, fan_in, is_condensed) = match weight {
                Weight::Dense(values) => (values.len(), None, false),
                Weight::Condensed(sparse) => {
                    let fan_in = match sparse.fan_in() {
                        condensed::FanIn::Constant(k) => Some(*k),
                        condensed::FanIn::Varying(_) => None,
                    };
                    (sparse.values().len(), fan_in, true)
                }
            };
            Some((node.name.clone(), bias.len(), weights, fan_in, is_condensed))
        };
        self.0.nodes().iter().filter_map(layer).collect()
    }
}

/// Runs a network.
#[pyclass(frozen, module = "srigl.condensed")]
pub struct Engine {
    network: Py<Network>,
    /// Of one process: a child would wait for a lock that a thread of its parent held when it was forked.
    engine: Mutex<(u32, Arc<Mutex<condensed::Engine>>)>,
    input: Shape,
    output: Shape,
    /// Threads of its own; otherwise those that all share.
    threads: Option<Threads>,
}

/// Plans a network for these threads, or those that all share.
fn planned(network: &Network, threads: Option<&Threads>) -> Result<condensed::Engine, condensed::Error> {
    threads.unwrap_or(&SHARED).run(|| condensed::Engine::new(&network.0))
}

impl Engine {
    /// That of this process: planned anew in a child.
    fn own(&self) -> Result<Arc<Mutex<condensed::Engine>>, condensed::Error> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if engine.0 != id() {
            let new = planned(self.network.get(), self.threads.as_ref())?;
            // The parent's may be in the middle of something.
            std::mem::forget(std::mem::replace(&mut *engine, (id(), Arc::new(Mutex::new(new)))));
        }
        Ok(engine.1.clone())
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (network, threads = None))]
    fn new(py: Python<'_>, network: Py<Network>, threads: Option<usize>) -> PyResult<Self> {
        if threads.is_some_and(|threads| !(1..=1024).contains(&threads)) {
            return Err(refused("threads must be from 1 to 1024"));
        }
        let threads = threads.map(|threads| Threads::new(Some(threads)));
        let engine = py.detach(|| planned(network.get(), threads.as_ref())).map_err(refused_network)?;
        let (input, output) = (engine.input_shape(), engine.output_shape());
        let engine = Mutex::new((id(), Arc::new(Mutex::new(engine))));
        Ok(Self { network, engine, input, output, threads })
    }

    #[getter]
    fn input_shape(&self) -> [usize; 3] {
        sizes(self.input)
    }

    #[getter]
    fn output_shape(&self) -> [usize; 3] {
        sizes(self.output)
    }

    /// Bytes that the weights take, as the kernels read them.
    #[getter]
    fn bytes(&self) -> PyResult<usize> {
        let engine = self.own().map_err(refused_network)?;
        let bytes = engine.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        Ok(bytes)
    }

    /// Instruction set of the kernels.
    #[getter]
    fn isa(&self) -> String {
        format!("{:?}", Isa::best()).to_lowercase()
    }

    /// The results of a batch.
    fn run<'py>(
        &self,
        py: Python<'py>,
        batch: usize,
        input: PyReadonlyArray1<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let input = input.as_slice()?;
        let length = batch.checked_mul(self.output.len());
        let length =
            length.ok_or_else(|| refused(format_args!("a batch of {batch} samples is too large")))?;
        if Some(input.len()) != batch.checked_mul(self.input.len()) {
            return Err(refused(format_args!(
                "{} numbers are not {batch} samples of {}",
                input.len(),
                self.input
            )));
        }
        let result = PyArray1::zeros(py, length, false);
        let mut writer = result.readwrite();
        let output = writer.as_slice_mut()?;
        let ran = py.detach(|| {
            // Locked here: a thread of the pool that waits for its others may take up another call meanwhile.
            let engine = self.own()?;
            let mut guard = engine.lock().unwrap_or_else(PoisonError::into_inner);
            let engine = &mut *guard;
            self.threads.as_ref().unwrap_or(&SHARED).run(|| engine.run(batch, input, output))
        });
        ran.map_err(refused_network)?;
        drop(writer);
        Ok(result)
    }
}
