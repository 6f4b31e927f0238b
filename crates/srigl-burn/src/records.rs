//! Records of masked layers for layers that train in condensed form, and the other way round.

use crate::active_weight::{POSITIONS, SHAPE, VALUES, positions_of, whole};
use crate::discover::parameter_path;
use crate::error::Error;
use crate::layout::Layout;
use crate::optimizer::{mask_of_bytes, room};
use crate::topology::TopologyLayer;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::OptimizerRecord;
use burn::store::ModuleRecord;
use burn::tensor::{Bool, Bytes, DType, Int, Tensor, TensorData};
use burn_pack::{Reader, Scalar, Writer};
use sparsity_core::Mask;
use srigl_tensors::memory;
use std::collections::BTreeMap;

/// The records in the form that the layers of `module` have.
///
/// # Errors
/// [`Error::ModelRecord`] if a record cannot be taken apart.
pub(crate) fn fitting<M: Module>(
    module: &M,
    layers: &[TopologyLayer],
    model: ModuleRecord,
    optim: OptimizerRecord,
) -> Result<(ModuleRecord, OptimizerRecord), Error> {
    let mut parameters = Parameters(0);
    module.visit(&mut parameters);
    // A layer in condensed form has two tensors more.
    if parameters.0 == model.len() {
        return Ok((model, optim));
    }
    let (mut model, mut optim) =
        (Pack::of(model.into_bytes().map_err(wrong)?)?, Pack::of(optim.into_bytes().map_err(wrong)?)?);
    for layer in layers.iter().filter(|layer| layer.sparsity > 0.0) {
        let path = parameter_path(&layer.name);
        match layer.condensed {
            true => condense(&path, layer, &mut model, &mut optim),
            false => spread(&path, &mut model, &mut optim)?,
        }
    }
    let model = ModuleRecord::from_bytes(model.bytes()?).map_err(wrong)?;
    Ok((model, OptimizerRecord::from_bytes(optim.bytes()?).map_err(wrong)?))
}

/// The record of a model whose layers train in condensed form, for the same model before it is made sparse: with weights that are
/// 0 where they are not active.
///
/// # Errors
/// [`Error::ModelRecord`] if it cannot be taken apart, or a weight takes more than the
/// [budget](srigl_tensors::memory::limit).
pub fn dense_record(record: ModuleRecord) -> Result<ModuleRecord, Error> {
    let mut model = Pack::of(record.into_bytes().map_err(wrong)?)?;
    let end = format!(".{POSITIONS}");
    let paths: Vec<String> =
        model.tensors.iter().filter_map(|(name, ..)| Some(name.strip_suffix(&end)?.to_string())).collect();
    let mut none = Pack { tensors: Vec::new(), scalars: BTreeMap::new(), metadata: BTreeMap::new() };
    for path in paths {
        spread(&path, &mut model, &mut none)?;
    }
    ModuleRecord::from_bytes(model.bytes()?).map_err(wrong)
}

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::ModelRecord(error.to_string())
}

/// Counts parameters.
struct Parameters(usize);

impl ModuleVisitor for Parameters {
    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        self.0 += 1;
    }

    fn visit_int<const D: usize>(&mut self, _param: &Param<Tensor<D, Int>>) {
        self.0 += 1;
    }

    fn visit_bool<const D: usize>(&mut self, _param: &Param<Tensor<D, Bool>>) {
        self.0 += 1;
    }
}

/// The weight of a masked layer, if the record has it, as values and positions.
fn condense(path: &str, layer: &TopologyLayer, model: &mut Pack, optim: &mut Pack) {
    let Some((id, weight)) = model.take(path) else { return };
    let dims = weight.shape().to_vec();
    let mask = optim.mask(id, &layer.mask);
    let form = Form { dims, mask: &mask, room: room(&layer.mask, layer.sparsity) };
    let places = form.layout().out_in_dims(&form.dims).iter().map(|size| *size as i64).collect::<Vec<_>>();
    let (positions, sizes) = (positions_of(&mask, form.room), places.len());
    for (leaf, id, data) in [
        (VALUES, id, form.gathered(weight, &mask)),
        (POSITIONS, new_id(), TensorData::new(positions, [form.room])),
        (SHAPE, new_id(), TensorData::new(places, [sizes])),
    ] {
        model.tensors.push((format!("{path}.{leaf}"), Some(id), data));
    }
    optim.change(id, 1, &format!("{path}.{VALUES}"), |leaf, data| match leaf {
        "dense_grad" => form.gathered(data, &Mask::full(mask.neurons(), mask.dense_fan_in())),
        _ if data.shape().to_vec() == form.dims => form.gathered(data, &mask),
        _ => data,
    });
}

/// The values and positions of a layer in condensed form, if the record has them, as a weight.
fn spread(path: &str, model: &mut Pack, optim: &mut Pack) -> Result<(), Error> {
    let leaf = |leaf: &str| format!("{path}.{leaf}");
    let (Some((id, values)), Some((_, positions)), Some((_, shape))) =
        (model.take(&leaf(VALUES)), model.take(&leaf(POSITIONS)), model.take(&leaf(SHAPE)))
    else {
        return Ok(());
    };
    let shape: Vec<usize> =
        whole(shape).into_iter().map(|size| usize::try_from(size).unwrap_or(usize::MAX)).collect();
    let bytes = memory::product(&shape).and_then(|weights| weights.checked_mul(4));
    memory::check(bytes).map_err(|error| wrong(format!("`{path}`: {error}")))?;
    let (neurons, inputs) = (shape.first().copied().unwrap_or(0), shape.iter().skip(1).product());
    let mask = of_positions(&whole(positions), neurons, inputs);
    let layout = Layout::of_rank(shape.len());
    let form = Form { dims: layout.out_in_dims(&shape), mask: &mask, room: values.num_elements() };
    model.tensors.push((path.to_string(), Some(id), form.spread(values, &mask)));
    optim.change(id, form.dims.len() as u64, path, |leaf, data| match leaf {
        "dense_grad" if data.num_elements() == mask.positions() => {
            form.spread(data, &Mask::full(mask.neurons(), mask.dense_fan_in()))
        }
        _ if data.shape().to_vec() == [form.room] => form.spread(data, &mask),
        _ => data,
    });
    Ok(())
}

fn new_id() -> u64 {
    ParamId::new().val()
}

/// The mask of positions; what lies beside the layer is left out.
fn of_positions(positions: &[i64], neurons: usize, inputs: usize) -> Mask {
    let mut mask = Mask::empty(neurons, inputs);
    let inside = positions.iter().filter_map(|position| usize::try_from(*position).ok());
    inside
        .filter(|position| *position < neurons * inputs)
        .for_each(|position| mask.activate(position / inputs, position % inputs));
    mask
}

/// What tells where a layer's numbers lie.
struct Form<'a> {
    /// Burn's dimensions of the weight.
    dims: Vec<usize>,
    mask: &'a Mask,
    /// Values in condensed form.
    room: usize,
}

impl Form<'_> {
    fn layout(&self) -> Layout {
        Layout::of_rank(self.dims.len())
    }

    /// Where the positions of `mask` lie in a tensor of Burn's dimensions, neuron by neuron.
    fn places<'a>(&self, mask: &'a Mask) -> impl Iterator<Item = usize> + use<'a> {
        let (layout, neurons, inputs) = (self.layout(), mask.neurons(), mask.dense_fan_in());
        (0..neurons).flat_map(move |neuron| {
            mask.inputs(neuron).map(move |input| match layout {
                Layout::OutIn => neuron * inputs + input,
                Layout::InOut => input * neurons + neuron,
            })
        })
    }

    /// The numbers at the positions of `mask`, and zeros for the room that there is if it is the layer's.
    fn gathered(&self, dense: TensorData, mask: &Mask) -> TensorData {
        let dtype = dense.dtype();
        let dense = numbers(dense);
        let mut values: Vec<f32> =
            self.places(mask).map(|place| dense.get(place).copied().unwrap_or(0.0)).collect();
        if std::ptr::eq(mask, self.mask) {
            values.resize(self.room, 0.0);
        }
        let count = values.len();
        TensorData::new(values, [count]).convert_dtype(dtype)
    }

    /// The other way round: zeros where `mask` has no position.
    fn spread(&self, values: TensorData, mask: &Mask) -> TensorData {
        let dtype = values.dtype();
        let mut dense = vec![0.0; self.dims.iter().product()];
        for (place, value) in self.places(mask).zip(numbers(values)) {
            if let Some(dense) = dense.get_mut(place) {
                *dense = value;
            }
        }
        TensorData::new(dense, self.dims.clone()).convert_dtype(dtype)
    }
}

fn numbers(data: TensorData) -> Vec<f32> {
    data.convert::<f32>().try_into_vec().expect("converted to f32")
}

/// A record, taken apart.
struct Pack {
    /// Names, parameters and numbers.
    tensors: Vec<(String, Option<u64>, TensorData)>,
    scalars: BTreeMap<String, Scalar>,
    metadata: BTreeMap<String, String>,
}

impl Pack {
    fn of(bytes: Bytes) -> Result<Self, Error> {
        let reader = Reader::from_bytes(bytes).map_err(wrong)?;
        let (scalars, metadata) = (reader.scalars().clone(), reader.metadata().clone());
        let tensor = |tensor: burn_pack::Tensor| {
            let (name, dtype, shape, id, bytes) = tensor.into_parts().map_err(wrong)?;
            Ok((name, id, TensorData::from_bytes(bytes, shape, dtype)))
        };
        let tensors = reader.into_tensors().map_err(wrong)?;
        let tensors = tensors.into_iter().map(tensor).collect::<Result<_, Error>>()?;
        Ok(Self { tensors, scalars, metadata })
    }

    fn bytes(self) -> Result<Bytes, Error> {
        let tensor = |(name, id, data): (String, Option<u64>, TensorData)| {
            let (bytes, shape, dtype) = data.into_parts();
            burn_pack::Tensor::new(name, dtype, shape, id, bytes)
        };
        let mut writer = Writer::new(self.tensors.into_iter().map(tensor).collect());
        for (key, value) in &self.scalars {
            writer = writer.with_scalar(key, *value);
        }
        for (key, value) in &self.metadata {
            writer = writer.with_metadata(key, value);
        }
        writer.into_bytes().map_err(wrong)
    }

    /// Removes the tensor of a parameter of a module.
    fn take(&mut self, name: &str) -> Option<(u64, TensorData)> {
        let index = self.tensors.iter().position(|(found, id, _)| found == name && id.is_some())?;
        let (_, id, data) = self.tensors.remove(index);
        Some((id?, data))
    }

    /// The mask in the state of a parameter, or the layer's first if there is no state yet.
    fn mask(&self, id: u64, first: &Mask) -> Mask {
        let name = format!("{id}.mask");
        let bytes = self.tensors.iter().find(|(found, _, data)| *found == name && data.dtype() == DType::U8);
        let mask = bytes
            .and_then(|(_, _, data)| mask_of_bytes(data.as_bytes(), first.neurons(), first.dense_fan_in()));
        mask.unwrap_or_else(|| first.clone())
    }

    /// Changes the numbers in a parameter's state, by the last part of their names, its rank and where it is in the module.
    fn change(&mut self, id: u64, rank: u64, path: &str, change: impl Fn(&str, TensorData) -> TensorData) {
        let of_parameter = format!("{id}.");
        for (name, _, data) in &mut self.tensors {
            if let Some(rest) = name.strip_prefix(&of_parameter) {
                let leaf = rest.rsplit('.').next().unwrap_or(rest);
                let empty = TensorData::new(Vec::<f32>::new(), [0]);
                *data = change(leaf, std::mem::replace(data, empty));
            }
        }
        if let Some(known) = self.scalars.get_mut(&format!("{id}.__rank")) {
            *known = Scalar::UInt(rank);
        }
        if let Some(known) = self.metadata.get_mut(&id.to_string()) {
            *known = path.to_string();
        }
    }
}
