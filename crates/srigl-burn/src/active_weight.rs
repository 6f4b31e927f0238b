//! The weight of a layer that trains in condensed form.

use crate::condensed_ops::{condense, lock};
use crate::conv_geometry::BySize;
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::layout::Layout;
use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
    ParamId,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
#[cfg(feature = "gpu")]
use condensed::Shape;
use condensed::training::Layer;
use condensed::{CondensedWeight, Error, Pattern};
use sparsity_core::Mask;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What visitors are told that the parameters of a sparse weight belong to.
pub(crate) const CONTAINER: &str = "Struct:ActiveWeight";
/// Their names.
pub(crate) const VALUES: &str = "values";
pub(crate) const POSITIONS: &str = "positions";
pub(crate) const SHAPE: &str = "shape";

/// A weight that is dense, as in Burn's layer, until it is sparsified.
#[derive(Clone, Debug)]
pub(crate) enum Weight<const D: usize> {
    Dense(Param<Tensor<D>>),
    Sparse(ActiveWeight<D>),
}

/// A sparse weight. Its records hold all that it is.
#[derive(Clone, Debug)]
pub(crate) struct ActiveWeight<const D: usize> {
    /// Values of the active weights, one row after the other, and zeros for weights that there could be.
    pub values: Param<Tensor<1>>,
    /// The identity of the parameter that says where they are.
    positions: ParamId,
    /// `[out, in, …]`.
    shape: Param<Tensor<1, Int>>,
    layout: Layout,
    pub topology: Arc<Topology>,
    pub capture: Arc<Capture>,
}

/// Which weights are active, and what is made of it.
#[derive(Debug)]
pub(crate) struct Topology {
    pub mask: Arc<Mask>,
    /// The kernels for each image size.
    pub layers: BySize<Layer>,
    /// Those of GPUs.
    #[cfg(feature = "gpu")]
    pub on_gpus: gpu::Copies<Shape, Arc<gpu::training::Layer>>,
}

/// What topology updates need of backward passes; shared by all copies of a layer and its optimizer.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    /// Whether the method looks at gradients at all.
    needed: bool,
    /// Whether those of the steps under way count.
    wanted: AtomicBool,
    taken: Mutex<Passes>,
}

/// Input and gradient by the result of one backward pass.
pub(crate) trait DensePass: std::fmt::Debug + Send + Sync {
    /// Neurons of the layer, and the inputs that each could have.
    fn size(&self) -> [usize; 2];

    /// Adds the dense gradient of some neurons, in ascending order, `[neurons · M]`.
    fn add_dense_gradient(&self, neurons: &[usize], to: &mut [f32]);
}

/// Backward passes that add up to a dense gradient.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passes {
    /// Of the last ones.
    kept: Vec<Arc<dyn DensePass>>,
    /// Of those before, the dense gradient `[N · M]` itself: it is less than what many passes take.
    sum: Option<Vec<f32>>,
}

/// Passes that are kept as they are.
const KEPT: usize = 8;

impl Passes {
    /// The dense gradient of earlier ones.
    pub fn of_sum(sum: Vec<f32>) -> Self {
        Self { kept: Vec::new(), sum: Some(sum) }
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.sum.is_none()
    }

    fn push(&mut self, pass: Arc<dyn DensePass>) {
        if self.kept.len() == KEPT {
            let [neurons, inputs] = pass.size();
            self.sum = Some(self.dense(neurons, inputs));
            self.kept.clear();
        }
        self.kept.push(pass);
    }

    /// Adds those of others.
    pub fn extend(&mut self, other: Self) {
        match (&mut self.sum, other.sum) {
            (Some(sum), Some(other)) => sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other),
            (None, other) => self.sum = other,
            _ => {}
        }
        other.kept.into_iter().for_each(|pass| self.push(pass));
    }

    /// Writes the dense gradient of some neurons of dense fan-in `inputs`, in ascending order.
    pub fn write(&self, neurons: &[usize], inputs: usize, to: &mut [f32]) {
        match &self.sum {
            Some(sum) => {
                let rows = to.chunks_exact_mut(inputs).zip(neurons);
                rows.for_each(|(row, neuron)| row.copy_from_slice(&sum[neuron * inputs..][..inputs]));
            }
            None => to.fill(0.0),
        }
        for pass in &self.kept {
            pass.add_dense_gradient(neurons, to);
        }
    }

    /// All of it.
    pub fn dense(&self, neurons: usize, inputs: usize) -> Vec<f32> {
        let mut dense = vec![0.0; neurons * inputs];
        self.write(&(0..neurons).collect::<Vec<_>>(), inputs, &mut dense);
        dense
    }
}

impl Capture {
    /// That of a layer whose topology changes, by gradients if they are `needed`: the first step may be one that counts.
    pub fn new(needed: bool) -> Arc<Self> {
        Arc::new(Self { needed, wanted: AtomicBool::new(needed), taken: Mutex::default() })
    }

    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    pub fn want(&self, wanted: bool) {
        self.wanted.store(wanted && self.needed, Ordering::Relaxed);
    }

    pub fn put(&self, pass: Arc<dyn DensePass>) {
        let mut passes = Passes::default();
        passes.push(pass);
        // Adding them up takes a while, and other threads: no lock is held for it.
        loop {
            let mut taken = lock(&self.taken);
            let mut before = std::mem::take(&mut *taken);
            if before.is_empty() {
                *taken = passes;
                return;
            }
            drop(taken);
            before.extend(passes);
            passes = before;
        }
    }

    pub fn take(&self) -> Passes {
        std::mem::take(&mut lock(&self.taken))
    }
}

/// What whoever maps a parameter tells the weight that it belongs to, on the same thread.
#[derive(Debug)]
pub(crate) enum Told {
    /// The dense weight is sparse from now on, with room for so many values.
    Sparsified { mask: Arc<Mask>, room: usize, capture: Arc<Capture> },
    /// The optimizer has made a step on a layer of this name and mask, which is another now if `after` is there.
    Stepped { layer: String, before: Arc<Mask>, after: Option<Arc<Mask>> },
}

thread_local! {
    static TOLD: RefCell<Option<Told>> = const { RefCell::new(None) };
}

/// Tells the weight whose parameter is being mapped on this thread.
pub(crate) fn tell(told: Told) {
    TOLD.set(Some(told));
}

impl<const D: usize> ActiveWeight<D> {
    /// The weights of `weight` that `mask` `[N, M]` selects, with room for more. The parameter of values is that of `weight`.
    pub fn new(
        layout: Layout,
        weight: &Param<Tensor<D>>,
        mask: &Mask,
        room: usize,
        capture: Arc<Capture>,
    ) -> Result<Self, Error> {
        let tensor = weight.val();
        let (device, dtype) = (tensor.device(), tensor.dtype());
        let condensed = condense(layout, tensor.clone(), mask)?;
        let shape = layout.out_in_dims(&tensor.dims()).into_iter().map(|size| size as i64).collect();
        let room = room.max(mask.nnz());
        let mut values = condensed.values().to_vec();
        values.resize(room, 0.0);
        let values = Tensor::from_data(TensorData::new(values, [room]), (&device, dtype));
        // Only with autodiff does a parameter say whether it is frozen.
        let trains = tensor.is_require_grad() || !tensor.is_autodiff();
        Ok(Self {
            values: Param::initialized(weight.id, values).set_require_grad(trains),
            positions: ParamId::new(),
            shape: Param::initialized(ParamId::new(), integers(shape, &device)),
            layout,
            topology: Topology::new(Arc::new(mask.clone())),
            capture,
        })
    }

    /// A weight of these values, one row of `mask` after the other, in Burn's dimensions `[out, in, …]`; its topology stays.
    pub fn of_values(
        layout: Layout,
        dims: [usize; D],
        mask: Mask,
        values: Vec<f32>,
        device: &Device,
    ) -> Self {
        let room = values.len();
        Self {
            values: Param::from_tensor(Tensor::from_data(TensorData::new(values, [room]), device)),
            positions: ParamId::new(),
            shape: Param::initialized(ParamId::new(), integers(dims.map(|size| size as i64).into(), device)),
            layout,
            topology: Topology::new(Arc::new(mask)),
            capture: Arc::default(),
        }
    }

    pub fn mask(&self) -> &Mask {
        &self.topology.mask
    }

    /// The mask as the kernels are made of it; they keep what they need.
    pub fn pattern(&self) -> Pattern {
        let mask = self.mask();
        let rows = (0..mask.neurons()).map(|neuron| mask.inputs(neuron).map(|input| input as u32));
        Pattern::from_rows(mask.neurons(), mask.dense_fan_in(), rows).expect("a mask is a pattern")
    }

    /// Where the values are among `[N · M]`, and -1 for those that are not there; made when somebody reads it.
    fn positions(&self) -> Param<Tensor<1, Int>> {
        let (mask, room) = (self.topology.mask.clone(), self.values.lazy_shape()[0]);
        let make = move |device: &Device, _| integers(positions_of(&mask, room), device);
        Param::uninitialized(self.positions, make, self.values.lazy_device(), false, [room].into())
    }

    /// The present weights `[N, M]`.
    pub fn condensed(&self) -> Result<CondensedWeight, Error> {
        let mut values = Layout::OutIn.to_rows(self.values.val());
        values.truncate(self.mask().nnz());
        CondensedWeight::of(self.pattern(), values)
    }

    /// The dense weight in Burn's dimensions, by operations that have gradients.
    pub fn dense(&self) -> Tensor<D> {
        let values = self.values.val();
        let (device, dtype) = (values.device(), values.dtype());
        let dims = integers_of(&self.shape).into_iter().map(|size| size as usize).collect::<Vec<_>>();
        let count = self.mask().nnz();
        let zeros = Tensor::<1>::zeros([dims.iter().product::<usize>()], (&device, dtype));
        // Burn has no empty slices.
        let rows = if count == 0 {
            zeros
        } else {
            let (positions, values) =
                (self.positions().val().narrow(0, 0, count), values.narrow(0, 0, count));
            zeros.select_assign(0, positions, values, burn::tensor::IndexingUpdateOp::Add)
        };
        let rows: Tensor<D> = rows.reshape::<D, _>(<[usize; D]>::try_from(dims).expect("made of them"));
        match self.layout {
            Layout::InOut => rows.swap_dims(0, 1),
            Layout::OutIn => rows,
        }
    }

    /// The same weight after a step of the optimizer.
    ///
    /// # Panics
    /// If the optimizer's mask is not that of the weight.
    fn stepped(mut self, layer: &str, before: &Arc<Mask>, after: Option<Arc<Mask>>) -> Self {
        let mask = &self.topology.mask;
        assert!(
            Arc::ptr_eq(mask, before) || **mask == **before,
            "layer `{layer}` has weights where its mask has none, and no state of their moment: the optimizer's record of this \
             model was not loaded, does not fit or is of another moment; load both records of one checkpoint"
        );
        let mask = after.as_ref().unwrap_or(before);
        if !Arc::ptr_eq(&self.topology.mask, mask) {
            self.topology = Topology::new(mask.clone());
        }
        self
    }

    /// The same weight with the topology that positions say, if that is another: they have come from a record.
    ///
    /// # Panics
    /// If they are not those of a mask.
    fn with_positions(mut self, positions: &[i64]) -> Self {
        let (neurons, inputs) = (self.mask().neurons(), self.mask().dense_fan_in());
        let shape = integers_of(&self.shape);
        let is_shape = shape[0] == neurons as i64 && shape[1..].iter().product::<i64>() == inputs as i64;
        let there: Vec<i64> = positions.iter().copied().take_while(|position| *position >= 0).collect();
        let is_rest_empty = positions[there.len()..].iter().all(|position| *position == -1);
        let is_ascending = there.is_sorted_by(|a, b| a < b);
        let fits = there.last().is_none_or(|last| (*last as u64) < (neurons * inputs) as u64);
        assert!(
            is_shape && is_rest_empty && is_ascending && fits,
            "the record's positions of weights are not those of a layer of {neurons} neurons with {inputs} inputs"
        );
        let mut mask = Mask::empty(neurons, inputs);
        there.iter().for_each(|position| {
            let position = *position as usize;
            mask.activate(position / inputs, position % inputs);
        });
        if mask != *self.topology.mask {
            self.topology = Topology::new(Arc::new(mask));
        }
        // The next step may be one whose gradients count.
        self.capture.want(true);
        self
    }
}

impl Topology {
    fn new(mask: Arc<Mask>) -> Arc<Self> {
        Arc::new(Self {
            mask,
            layers: BySize::default(),
            #[cfg(feature = "gpu")]
            on_gpus: gpu::Copies::default(),
        })
    }
}

/// Positions of a mask's weights, and -1 up to the room there is.
pub(crate) fn positions_of(mask: &Mask, room: usize) -> Vec<i64> {
    let inputs = mask.dense_fan_in();
    let of_neuron = |neuron| mask.inputs(neuron).map(move |input| (neuron * inputs + input) as i64);
    let mut positions: Vec<i64> = (0..mask.neurons()).flat_map(of_neuron).collect();
    positions.resize(room, -1);
    positions
}

fn integers(numbers: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = numbers.len();
    Tensor::from_data(TensorData::new(numbers, [count]), device)
}

fn integers_of(param: &Param<Tensor<1, Int>>) -> Vec<i64> {
    numbers_of(param.val())
}

pub(crate) fn numbers_of<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    whole(tensor.into_data())
}

/// Whole numbers.
pub(crate) fn whole(data: TensorData) -> Vec<i64> {
    data.convert::<i64>().try_into_vec().expect("converted")
}

/// Whether positions are those of a mask.
pub(crate) fn are_positions_of<const D: usize>(positions: Tensor<D, Int>, mask: &Mask) -> bool {
    let positions = numbers_of(positions);
    mask.nnz() <= positions.len() && positions == positions_of(mask, positions.len())
}

impl<const D: usize> Weight<D> {
    /// The sparse weight, unless it is dense.
    pub fn sparse(&self) -> Option<&ActiveWeight<D>> {
        match self {
            Self::Dense(_) => None,
            Self::Sparse(weight) => Some(weight),
        }
    }

    pub fn id(&self) -> ParamId {
        match self {
            Self::Dense(weight) => weight.id,
            Self::Sparse(weight) => weight.values.id,
        }
    }

    /// The weight in Burn's dimensions.
    pub fn dense(&self) -> Tensor<D> {
        match self {
            Self::Dense(weight) => weight.val(),
            Self::Sparse(weight) => weight.dense(),
        }
    }

    /// Applies a function to the parameters.
    fn each(
        self,
        of_dense: impl FnOnce(Param<Tensor<D>>) -> Param<Tensor<D>>,
        of_values: impl FnOnce(Param<Tensor<1>>) -> Param<Tensor<1>>,
        of_integers: impl Fn(Param<Tensor<1, Int>>) -> Param<Tensor<1, Int>>,
    ) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(of_dense(weight)),
            Self::Sparse(weight) => Self::Sparse(ActiveWeight {
                values: of_values(weight.values),
                shape: of_integers(weight.shape),
                ..weight
            }),
        }
    }
}

impl<const D: usize> Module for Weight<D> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Self::Dense(weight) => weight.collect_devices(devices),
            Self::Sparse(weight) => weight.values.collect_devices(devices),
        }
    }

    fn fork(self, device: &Device) -> Self {
        self.each(|p| p.fork(device), |p| p.fork(device), |p| p.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(|p| p.to_device(device), |p| p.to_device(device), |p| p.to_device(device))
    }

    fn train(self) -> Self {
        self.each(Module::train, Module::train, Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().each(|p| p.valid(), |p| p.valid(), |p| p.valid())
    }

    fn materialize(self) -> Self {
        self.each(Module::materialize, Module::materialize, Module::materialize)
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        let weight = match self {
            Self::Dense(weight) => return weight.visit(visitor),
            Self::Sparse(weight) => weight,
        };
        visitor.enter_module(VALUES, CONTAINER);
        weight.values.visit(visitor);
        visitor.exit_module(VALUES, CONTAINER);
        for (name, param) in [(POSITIONS, &weight.positions()), (SHAPE, &weight.shape)] {
            visitor.enter_module(name, CONTAINER);
            param.visit(visitor);
            visitor.exit_module(name, CONTAINER);
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        TOLD.take();
        let weight = match self {
            Self::Dense(weight) => {
                let weight = Module::map(weight, mapper);
                let Some(Told::Sparsified { mask, room, capture }) = TOLD.take() else {
                    return Self::Dense(weight);
                };
                let layout = Layout::of_rank(D);
                let sparse = ActiveWeight::new(layout, &weight, &mask, room, capture);
                return Self::Sparse(sparse.unwrap_or_else(|error| panic!("{error}")));
            }
            Self::Sparse(weight) => weight,
        };
        let positions = weight.positions();
        mapper.enter_module(VALUES, CONTAINER);
        let values = Module::map(weight.values, mapper);
        mapper.exit_module(VALUES, CONTAINER);
        let told = TOLD.take();
        mapper.enter_module(POSITIONS, CONTAINER);
        let positions = Module::map(positions, mapper);
        mapper.exit_module(POSITIONS, CONTAINER);
        mapper.enter_module(SHAPE, CONTAINER);
        let shape = Module::map(weight.shape, mapper);
        mapper.exit_module(SHAPE, CONTAINER);
        let weight = ActiveWeight { values, positions: positions.id, shape, ..weight };
        Self::Sparse(match told {
            Some(Told::Stepped { layer, before, after }) => weight.stepped(&layer, &before, after),
            // Nobody has looked at them, let alone replaced them.
            _ if !positions.is_initialized() => weight,
            _ => weight.with_positions(&integers_of(&positions)),
        })
    }
}

impl<const D: usize> ModuleDisplayDefault for Weight<D> {
    fn content(&self, content: Content) -> Option<Content> {
        let parameters = match self {
            Self::Dense(weight) => weight.dims().iter().product(),
            Self::Sparse(weight) => weight.mask().nnz(),
        };
        content.add("parameters", &parameters).optional()
    }
}

impl<const D: usize> ModuleDisplay for Weight<D> {}
