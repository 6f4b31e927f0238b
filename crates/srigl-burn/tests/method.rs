//! A method that is written outside the library, with all that a method can say: which positions receive gradient, and
//! that inactive weights keep their values (as Top-KAST and straight-through estimators need it).

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{GradientsParams, OptimizerRecord, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor, TensorData};
use sparsity_core::methods::{GradientPositions, Method, MethodInfo, Updates};
use sparsity_core::{
    Error, Layer, LayerSpec, Mask, Stream, WeightInit, initialise_weights, target_weights, unstructured_mask,
};
use srigl_burn::{Distribution, Sparsified, SparsityConfig};

/// Forward with the largest weights, gradient for twice as many.
#[derive(Clone, Copy, Debug)]
struct Largest;

static INFO: MethodInfo = MethodInfo { updates: Updates::Scheduled, ..MethodInfo::new("largest") };

/// The `n` largest values.
fn largest(values: &[f32], n: usize, [neurons, inputs]: [usize; 2]) -> Mask {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
    let mut bytes = vec![0; values.len()];
    order[..n].iter().for_each(|&i| bytes[i] = 1);
    Mask::from_bytes(neurons, inputs, &bytes).unwrap()
}

impl Method for Largest {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        unstructured_mask(layer, sparsity, stream)
    }

    fn update(&self, layer: &Layer, _alpha: f64, _stream: Stream) -> Result<Mask, Error> {
        let n = target_weights(layer.mask.positions(), layer.sparsity);
        Ok(largest(layer.weights, n, layer.mask.shape()))
    }

    fn gradient_positions(&self, mask: &Mask, _: f64, weights: &dyn Fn() -> Vec<f32>) -> GradientPositions {
        let mut superset = largest(&weights(), 2 * mask.nnz(), mask.shape());
        superset.union_with(mask);
        GradientPositions::Superset(superset)
    }

    fn keeps_inactive_weights(&self) -> bool {
        true
    }
}

const DIMS: [usize; 2] = [12, 8];
const DECAY: f32 = 0.25;

/// Numbers in [-1, 1) that differ from step to step.
fn noise(step: usize) -> Vec<f32> {
    let value = |i: usize| {
        let mixed = (i as u64 + 1).wrapping_mul(step as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..DIMS[0] * DIMS[1]).map(value).collect()
}

fn sparse(device: &Device) -> Sparsified<Linear> {
    let net = LinearConfig::new(DIMS[0], DIMS[1]).with_bias(false).init(device);
    let config = SparsityConfig::new(0.75, 100)
        .with_method(Largest.into())
        .with_distribution(Distribution::Uniform)
        .with_delta_t(3);
    // Decay may move only what gets gradient.
    let sgd = SgdConfig::new().with_weight_decay(Some(WeightDecayConfig::new(DECAY)));
    config.sparsify(net, sgd.build()).unwrap()
}

/// Steps whose gradient is `noise`, at every position: that of Σ noise·w.
fn train(sparse: &mut Sparsified<Linear>, steps: std::ops::Range<usize>, device: &Device) {
    for step in steps {
        let c = Tensor::<2>::from_data(TensorData::new(noise(step), DIMS), device);
        let loss = (sparse.model.weight.val() * c).sum();
        let grads = GradientsParams::from_grads(loss.backward(), &sparse.model);
        sparse.model = sparse.optim.step(0.1, sparse.model.clone(), grads);
    }
}

/// `[in, out]` → rows of neurons.
fn rows(values: &[f32]) -> Vec<f32> {
    (0..DIMS[1]).flat_map(|n| (0..DIMS[0]).map(move |i| values[i * DIMS[1] + n])).collect()
}

fn weight(net: &Linear) -> Vec<f32> {
    rows(&net.weight.val().into_data().try_into_vec::<f32>().unwrap())
}

/// By hand: dense weights, of which the network sees a part and the gradient reaches another.
#[test]
fn inactive_weights_learn_and_come_back() {
    let device = Device::flex().autodiff();
    let mut sparse = sparse(&device);
    let positions = DIMS[0] * DIMS[1];
    let mut mask = (*sparse.topology.layers()[0].mask).clone();
    // Inactive weights have been drawn with the others.
    let mut all = vec![0.0; positions];
    let stream = Stream { seed: 0, layer: 0, step: 0 };
    initialise_weights(&mut all, &Mask::full(DIMS[1], DIMS[0]), WeightInit::default(), stream);
    let mut seen = all.clone();
    mask.apply(&mut seen);
    assert_eq!(weight(&sparse.model), seen);
    let superset = |all: &[f32], mask: &Mask| match Largest.gradient_positions(mask, 0.75, &|| all.to_vec()) {
        GradientPositions::Superset(superset) => superset,
        other => panic!("{other:?}"),
    };
    let mut learns = superset(&all, &mask);
    let mut returned = 0;
    for step in 0..20 {
        train(&mut sparse, step..step + 1, &device);
        let gradient = rows(&noise(step));
        for (position, weight) in all.iter_mut().enumerate() {
            if learns.is_active(position / DIMS[0], position % DIMS[0]) {
                *weight -= (*weight * DECAY + gradient[position]) * 0.1;
            }
        }
        if (step + 1) % 3 == 0 {
            let new = largest(&all, target_weights(positions, 0.75), mask.shape());
            returned += new.count_not_in(&mask);
            mask = new;
            learns = superset(&all, &mask);
        }
        assert_eq!(*sparse.topology.layers()[0].mask, mask, "step {step}");
        let mut seen = all.clone();
        mask.apply(&mut seen);
        assert_eq!(weight(&sparse.model), seen, "step {step}");
    }
    assert!(returned > 10, "weights come and go: {returned}");
}

#[test]
fn kept_weights_survive_a_record() {
    let device = Device::flex().autodiff();
    let mut straight = sparse(&device);
    train(&mut straight, 0..7, &device);
    let model = straight.model.clone().into_record().into_bytes().unwrap();
    let optim = straight.optim.to_record().into_bytes().unwrap();
    train(&mut straight, 7..16, &device);
    let records = (ModuleRecord::from_bytes(model).unwrap(), OptimizerRecord::from_bytes(optim).unwrap());
    let mut resumed = sparse(&device).load_records(records.0, records.1).unwrap();
    train(&mut resumed, 7..16, &device);
    assert_eq!(weight(&resumed.model), weight(&straight.model));
}
