//! Layers that train in condensed form, against Burn's dense ones with a mask.

mod devices;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, Optimizer, SgdConfig};
use burn::tensor::{Bool, Device, Distribution, FloatDType, Tensor, TensorData, Tolerance};
use srigl_burn::condensed::FanIn;
use srigl_burn::methods::{AnyMethod, Mest, Rigl, Set, Srigl, StaticMask, StructuredSet};
use srigl_burn::{
    Mask, NamedTensor, NmPattern, NormClipping, SparseConv2d, SparseLinear, Sparsified, SparsityConfig,
    dense_record, state_dict,
};

/// Those with kernels, and GPUs, which run dense operations.
fn devices() -> impl Iterator<Item = Device> {
    devices::all().into_iter().map(Device::autodiff)
}

/// A mask with every third bit, but for the second row, which has none.
fn mask(neurons: usize, inputs: usize) -> Mask {
    let bits: Vec<u8> = (0..neurons * inputs).map(|i| u8::from(i % 3 == 0 && i / inputs != 1)).collect();
    Mask::from_bytes(neurons, inputs, &bits).unwrap()
}

/// True where the mask is.
fn active<const D: usize>(mask: &Mask, dims: [usize; D], device: &Device) -> Tensor<D, Bool> {
    let bits: Vec<bool> = mask.to_bytes().iter().map(|byte| *byte == 1).collect();
    Tensor::from_data(TensorData::new(bits, dims), device)
}

fn close<const D: usize>(got: &Tensor<D>, want: &Tensor<D>) {
    got.to_data().assert_approx_eq::<f32>(&want.to_data(), Tolerance::rel_abs(1e-4, 1e-5));
}

/// The numbers at the mask's positions, neuron by neuron.
fn at_mask(rows: Tensor<2>, mask: &Mask) -> Tensor<1> {
    let device = rows.device();
    let rows: Vec<f32> = rows.into_data().try_into_vec().unwrap();
    let at: Vec<f32> =
        rows.into_iter().zip(mask.to_bytes()).filter(|(_, bit)| *bit == 1).map(|(x, _)| x).collect();
    let count = at.len();
    Tensor::from_data(TensorData::new(at, [count]), &device)
}

/// Makes the weights 0 where the mask is.
fn masked(mut layer: Linear, mask: &Mask, device: &Device) -> Linear {
    let [inputs, neurons] = layer.weight.dims();
    let inactive = active(mask, [neurons, inputs], device).transpose().bool_not();
    let weight = layer.weight.val().mask_fill(inactive, 0.0).detach().require_grad();
    layer.weight = Param::initialized(layer.weight.id, weight);
    layer
}

#[test]
fn linear_layers_have_the_results_and_gradients_of_masked_ones() {
    for device in devices() {
        for has_bias in [true, false] {
            let mask = mask(7, 10);
            let dense = LinearConfig::new(10, 7).with_bias(has_bias).init(&device);
            let dense = masked(dense, &mask, &device);
            let sparse = SparseLinear::from_linear(&dense, &mask).unwrap();
            assert_eq!(sparse.parameter().dims(), [mask.nnz()]);
            let random = |dims: [usize; 3]| Tensor::<3>::random(dims, Distribution::Default, &device);
            let (x, weight_of_result) = (random([2, 5, 10]).require_grad(), random([2, 5, 7]));
            let (x_of_sparse, seen) = (x.clone().detach().require_grad(), weight_of_result.clone());
            let (y, y_of_sparse) = (dense.forward(x.clone()), sparse.forward(x_of_sparse.clone()));
            close(&y_of_sparse, &y);
            let gradients = (y * weight_of_result).sum().backward();
            let of_sparse = (y_of_sparse * seen).sum().backward();
            close(&x_of_sparse.grad(&of_sparse).unwrap(), &x.grad(&gradients).unwrap());
            let dense_gradient = dense.weight.val().grad(&gradients).unwrap().transpose();
            close(&sparse.parameter().grad(&of_sparse).unwrap(), &at_mask(dense_gradient, &mask));
            assert_eq!(sparse.bias.is_some(), has_bias);
            if let (Some(bias), Some(of_dense)) = (&sparse.bias, &dense.bias) {
                close(&bias.val().grad(&of_sparse).unwrap(), &of_dense.val().grad(&gradients).unwrap());
            }
        }
    }
}

fn convs() -> [Conv2dConfig; 5] {
    [
        Conv2dConfig::new([4, 6], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)),
        Conv2dConfig::new([4, 6], [3, 2]).with_stride([2, 1]).with_bias(false),
        Conv2dConfig::new([4, 6], [2, 2]).with_padding(PaddingConfig2d::Same),
        Conv2dConfig::new([4, 6], [2, 2]).with_groups(2).with_dilation([2, 1]),
        Conv2dConfig::new([4, 6], [1, 1]).with_stride([2, 2]),
    ]
}

#[test]
fn convolutions_have_the_results_and_gradients_of_masked_ones() {
    for device in devices() {
        for config in convs() {
            let mut dense: Conv2d = config.init(&device);
            let dims = dense.weight.dims();
            let mask = mask(dims[0], dims[1] * dims[2] * dims[3]);
            let inactive = active(&mask, dims, &device).bool_not();
            let weight = dense.weight.val().mask_fill(inactive, 0.0).detach().require_grad();
            dense.weight = Param::initialized(dense.weight.id, weight);
            let sparse = SparseConv2d::from_conv(&dense, &mask).unwrap();
            // Another size makes other kernels of the same layer.
            for size in [[7, 6], [9, 5], [7, 6]] {
                let x = Tensor::<4>::random([3, 4, size[0], size[1]], Distribution::Default, &device);
                let (x, x_of_sparse) = (x.clone().require_grad(), x.require_grad());
                let (y, y_of_sparse) = (dense.forward(x.clone()), sparse.forward(x_of_sparse.clone()));
                close(&y_of_sparse, &y);
                let weight_of_result = Tensor::random(y.dims(), Distribution::Default, &device);
                let gradients = (y * weight_of_result.clone()).sum().backward();
                let of_sparse = (y_of_sparse * weight_of_result).sum().backward();
                close(&x_of_sparse.grad(&of_sparse).unwrap(), &x.grad(&gradients).unwrap());
                let dense_gradient = dense.weight.val().grad(&gradients).unwrap();
                let dense_gradient = dense_gradient.reshape([mask.neurons(), mask.dense_fan_in()]);
                close(&sparse.parameter().grad(&of_sparse).unwrap(), &at_mask(dense_gradient, &mask));
                if let (Some(bias), Some(of_dense)) = (&sparse.bias, &dense.bias) {
                    close(&bias.val().grad(&of_sparse).unwrap(), &of_dense.val().grad(&gradients).unwrap());
                }
            }
        }
    }
}

/// Only what is asked for is computed, and other float types go through f32.
#[test]
fn inference_frozen_inputs_and_half_precision() {
    let device = Device::flex();
    let mask = mask(6, 8);
    let layer = SparseLinear::from_linear(&LinearConfig::new(8, 6).init(&device), &mask).unwrap();
    let x = Tensor::<2>::random([4, 8], Distribution::Default, &device);
    let y = layer.forward(x.clone());
    let half = layer.forward(x.clone().cast(FloatDType::BF16));
    assert_eq!(half.dtype(), burn::tensor::DType::BF16);
    half.cast(FloatDType::F32)
        .to_data()
        .assert_approx_eq::<f32>(&y.to_data(), Tolerance::rel_abs(2e-2, 2e-2));
    let training = layer.train();
    let x = Tensor::from_inner(x);
    assert!(!x.is_require_grad());
    let gradients = training.forward(x).sum().backward();
    assert_eq!(training.parameter().grad(&gradients).unwrap().dims(), [mask.nnz()]);
}

/// The same network, with layers of either kind.
#[derive(Module, Debug)]
struct Net {
    conv: Conv2d,
    fc: Linear,
    out: Linear,
}

#[derive(Module, Debug)]
struct SparseNet {
    conv: SparseConv2d,
    fc: SparseLinear,
    out: Linear,
}

impl From<Net> for SparseNet {
    fn from(Net { conv, fc, out }: Net) -> Self {
        Self { conv: conv.into(), fc: fc.into(), out }
    }
}

trait Forward: Module {
    fn forward(&self, x: Tensor<4>) -> Tensor<2>;
}

macro_rules! forward {
    ($($net:ty)*) => {
        $(impl Forward for $net {
            fn forward(&self, x: Tensor<4>) -> Tensor<2> {
                let x: Tensor<2> = self.conv.forward(x).tanh().flatten(1, 3);
                self.out.forward(self.fc.forward(x).tanh())
            }
        })*
    };
}
forward!(Net SparseNet);

/// With weights that do not depend on what other tests draw.
fn net(device: &Device) -> Net {
    let net = Net {
        conv: Conv2dConfig::new([2, 8], [3, 3]).with_padding(PaddingConfig2d::Same).init(device),
        fc: LinearConfig::new(8 * 36, 24).init(device),
        out: LinearConfig::new(24, 3).init(device),
    };
    net.map(&mut Filled)
}

struct Filled;

impl ModuleMapper for Filled {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            let count = tensor.shape().num_elements();
            let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin() * 0.1).collect();
            let values = TensorData::new(values, tensor.dims());
            Tensor::from_data(values, &tensor.device()).set_require_grad(tensor.is_require_grad())
        })
    }
}

fn config(method: AnyMethod) -> SparsityConfig {
    // The last layer is masked in both networks.
    SparsityConfig::new(0.8, 30).with_method(method).with_delta_t(4).with_grad_accumulation(2)
}

fn methods() -> Vec<AnyMethod> {
    let srigl = Srigl { gamma_sal: 0.9, ..Srigl::default() };
    vec![
        srigl.into(),
        Srigl { gamma_sal: 0.0, ..srigl }.into(),
        Rigl.into(),
        Set.into(),
        StaticMask.into(),
        StructuredSet.into(),
        Mest { lambda: 0.5 }.into(),
        AnyMethod::from(srigl).with_group(3).unwrap(),
        AnyMethod::from(Rigl).with_nm(NmPattern::new(1, 4).unwrap()).unwrap(),
        AnyMethod::from(Mest { lambda: 0.5 }).with_nm(NmPattern::TWO_OF_FOUR).unwrap(),
    ]
}

fn images(step: u64, device: &Device) -> Tensor<4> {
    let value = |i: u64| ((i + 1).wrapping_mul(step + 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32;
    let values: Vec<f32> = (0..4 * 2 * 36).map(|i| value(i) / (1 << 23) as f32 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [4, 2, 6, 6]), device)
}

/// Some steps, each of five backward passes: more for an update than are kept as they are.
fn train<M: Forward>(
    sparse: Sparsified<M>,
    steps: std::ops::RangeInclusive<u64>,
    device: &Device,
) -> Sparsified<M> {
    let Sparsified { mut model, mut optim, topology } = sparse;
    let mut clipping = NormClipping::new(1.0, topology.clone());
    for step in steps {
        let mut accumulator = GradientsAccumulator::new();
        for part in 0..5 {
            let x = images(5 * step + part, device);
            let y = model.forward(x.clone()) - x.sum_dims(&[1, 2, 3]).reshape([4, 1]);
            let gradients = GradientsParams::from_grads(y.square().mean().backward(), &model);
            accumulator.accumulate(&model, gradients);
        }
        let gradients = clipping.clip(&model, accumulator.grads());
        model = optim.step(0.01, model, gradients);
    }
    Sparsified { model, optim, topology }
}

/// Masks and weights of a network, dense.
fn standing<M: Forward>(sparse: &Sparsified<M>) -> (Vec<Mask>, Vec<NamedTensor>) {
    let masks = sparse.topology.layers().iter().map(|layer| Mask::clone(&layer.mask)).collect();
    (masks, state_dict(&sparse.model))
}

/// Networks with layers of either kind and the same weights.
fn both<O: Optimizer>(
    method: &AnyMethod,
    optim: &O,
    device: &Device,
) -> (Sparsified<Net>, Sparsified<SparseNet>) {
    let sparsify = config(method.clone());
    let net = net(device);
    let condensed = sparsify.sparsify(SparseNet::from(net.clone()), optim.clone()).unwrap();
    (sparsify.sparsify(net, optim.clone()).unwrap(), condensed)
}

#[test]
fn topologies_change_as_those_of_masked_layers() {
    let device = Device::flex().autodiff();
    let momentum = MomentumConfig::new().with_dampening(0.0);
    let sgd = SgdConfig::new().with_momentum(Some(momentum)).build();
    for method in methods() {
        let networks = [both(&method, &sgd, &device), both(&method, &AdamConfig::new().build(), &device)];
        for (masked, condensed) in networks {
            assert!(condensed.model.conv.pattern().is_some() && condensed.model.fc.pattern().is_some());
            let first = standing(&condensed);
            assert!(first == standing(&masked), "{method:?}");
            let (masked, condensed) = (train(masked, 1..=22, &device), train(condensed, 1..=22, &device));
            let ((masks, weights), (want_masks, want_weights)) = (standing(&condensed), standing(&masked));
            assert!(masks == want_masks, "{method:?}");
            assert_eq!(masks != first.0, method.info().changes(), "{method:?}");
            for (got, want) in weights.iter().zip(want_weights) {
                assert_eq!((&got.name, &got.dims), (&want.name, &want.dims));
                let difference = got.values.iter().zip(want.values).map(|(got, want)| (got - want).abs());
                assert!(difference.fold(0.0, f32::max) < 1e-3, "{method:?}: {}", got.name);
            }
            // What the layer computes with is what the topology shows.
            let pattern = condensed.model.fc.pattern().unwrap();
            assert_eq!((pattern.len(), pattern.neurons()), (masks[1].nnz(), 24));
        }
    }
}

/// Records may be of any moment, also of one where gradients have been gathered for half an update.
#[test]
fn training_goes_on_from_records_as_if_it_had_not_stopped() {
    let device = Device::flex().autodiff();
    for method in methods() {
        let start = || {
            config(method.clone()).sparsify(SparseNet::from(net(&device)), AdamConfig::new().build()).unwrap()
        };
        for stop in [3, 9, 11, 12] {
            let straight = train(train(start(), 1..=stop, &device), stop + 1..=22, &device);
            let stopped = train(start(), 1..=stop, &device);
            let (model, optim) = (stopped.model.into_record(), stopped.optim.to_record());
            let again = start().load_records(model, optim).unwrap();
            let resumed = train(again, stop + 1..=22, &device);
            assert!(standing(&resumed) == standing(&straight), "{method:?} from step {stop}");
        }
    }
}

/// Goes on from records of the other kind of layer; nothing is lost on the way.
fn goes_on_as<A: Forward, B: Forward>(
    from: Sparsified<A>,
    to: Sparsified<B>,
    stop: u64,
    device: &Device,
) -> Sparsified<B> {
    let stopped = train(from, 1..=stop, device);
    let before = standing(&stopped);
    let (model, optim) = (stopped.model.into_record(), stopped.optim.to_record());
    let again = to.load_records(model, optim).unwrap();
    assert!(standing(&again) == before, "from step {stop}");
    train(again, stop + 1..=22, device)
}

#[test]
fn records_of_masked_layers_fit_condensed_ones_and_the_other_way_round() {
    let device = Device::flex().autodiff();
    let momentum = MomentumConfig::new().with_dampening(0.0);
    let sgd = SgdConfig::new().with_momentum(Some(momentum)).build();
    for method in methods() {
        let want = standing(&train(both(&method, &sgd, &device).0, 1..=22, &device));
        // In the middle of gathering, right before an update and right after one, and before any step.
        for stop in [0, 3, 7, 8, 11] {
            let start = || both(&method, &sgd, &device);
            // The network alone, as it was before it was made sparse.
            let trained = train(start().1, 1..=stop, &device);
            let record = dense_record(trained.model.clone().into_record()).unwrap();
            assert!(state_dict(&net(&device).load_record(record)) == state_dict(&trained.model));
            let condensed = standing(&goes_on_as(start().0, start().1, stop, &device));
            let masked = standing(&goes_on_as(start().1, start().0, stop, &device));
            for (masks, weights) in [condensed, masked] {
                assert!(masks == want.0, "{method:?} from step {stop}");
                for (got, want) in weights.iter().zip(&want.1) {
                    assert_eq!((&got.name, &got.dims), (&want.name, &want.dims));
                    let difference =
                        got.values.iter().zip(&want.values).map(|(got, want)| (got - want).abs());
                    assert!(difference.fold(0.0, f32::max) < 1e-3, "{method:?} from {stop}: {}", got.name);
                }
            }
        }
    }
    // Two moments, of which both move.
    let adam = AdamConfig::new().build();
    let start = || both(&methods()[0], &adam, &device);
    let want = standing(&train(start().0, 1..=22, &device)).0;
    assert!(standing(&goes_on_as(start().0, start().1, 9, &device)).0 == want);
    assert!(standing(&goes_on_as(start().1, start().0, 9, &device)).0 == want);
}

#[test]
fn records_of_another_network_fit_in_neither_form() {
    let device = Device::flex().autodiff();
    let sgd = SgdConfig::new().build();
    let layer = SparseLinear::from(LinearConfig::new(40, 30).init(&device));
    let other = SparsityConfig::new(0.8, 30).sparsify(layer, sgd.clone()).unwrap();
    let (model, optim) = (other.model.into_record(), other.optim.to_record());
    let error = both(&methods()[0], &sgd, &device).0.load_records(model, optim).err().unwrap().to_string();
    assert!(error.contains("does not fit the model"), "{error}");
}

#[test]
fn records_of_different_moments_do_not_fit() {
    let device = Device::flex().autodiff();
    let srigl = methods()[0].clone();
    let start =
        || config(srigl.clone()).sparsify(SparseNet::from(net(&device)), AdamConfig::new().build()).unwrap();
    let early = train(start(), 1..=3, &device);
    let late = train(start(), 1..=9, &device);
    let error =
        start().load_records(late.model.into_record(), early.optim.to_record()).err().unwrap().to_string();
    assert!(error.contains("another moment"), "{error}");
}

/// A copy of before an update is not what the optimizer goes on from.
#[test]
#[should_panic(expected = "layer `conv` has weights where its mask has none, and no state of their moment")]
fn an_earlier_model_does_not_fit_the_optimizer() {
    let device = Device::flex().autodiff();
    let srigl = methods()[0].clone();
    let start = config(srigl).sparsify(SparseNet::from(net(&device)), AdamConfig::new().build()).unwrap();
    let before = train(start, 1..=3, &device);
    let model = before.model.clone();
    let after = train(before, 4..=4, &device);
    train(Sparsified { model, ..after }, 5..=5, &device);
}

#[test]
fn an_update_without_backward_passes_says_so() {
    let device = Device::flex().autodiff();
    let layer = SparseLinear::from(LinearConfig::new(40, 30).init(&device));
    let sparsify = SparsityConfig::new(0.8, 30).with_delta_t(1).with_method(Rigl.into());
    let Sparsified { model, mut optim, topology } =
        sparsify.sparsify(layer, SgdConfig::new().build()).unwrap();
    let updates = topology.updates();
    let mut gradients = GradientsParams::new();
    gradients.register(model.id(), model.parameter().inner());
    let mask = topology.layers()[0].mask.clone();
    optim.step(0.1, model, gradients);
    let error = updates.drain().remove(0).report.unwrap_err().to_string();
    assert!(error.contains("no gradient was gathered"), "{error}");
    assert_eq!(topology.layers()[0].mask, mask);
}

#[test]
fn a_layer_may_have_no_weights() {
    let device = Device::flex();
    let dense = LinearConfig::new(4, 2).init(&device);
    let layer = SparseLinear::from_linear(&dense, &Mask::empty(2, 4)).unwrap();
    close(&layer.weight(), &Tensor::zeros([4, 2], &device));
    let bias: Tensor<2> = dense.bias.unwrap().val().unsqueeze();
    close(&layer.forward(Tensor::<2>::ones([3, 4], &device)), &bias.repeat_dim(0, 3));
}

/// Burn's optimizers and records see a parameter like any other.
#[test]
fn optimizers_and_records_work_on_the_values() {
    let device = Device::flex().autodiff();
    let mask = mask(5, 9);
    let dense = LinearConfig::new(9, 5).init(&device);
    let mut layer = SparseLinear::from_linear(&dense, &mask).unwrap();
    assert_eq!(layer.num_params(), mask.nnz() + 5);
    let mut optim = AdamConfig::new().init();
    let (x, target) = (Tensor::<2>::ones([2, 9], &device), Tensor::<2>::ones([2, 5], &device) * 3.0);
    let loss = |layer: &SparseLinear| (layer.forward(x.clone()) - target.clone()).powf_scalar(2.0).mean();
    let first: f32 = loss(&layer).into_scalar();
    for _ in 0..200 {
        let gradients = GradientsParams::from_grads(loss(&layer).backward(), &layer);
        layer = optim.step(0.05, layer, gradients);
    }
    assert!(loss(&layer).into_scalar::<f32>() < 0.01 * first);
    let weight = layer.condensed().unwrap().unwrap();
    assert_eq!((weight.neurons(), weight.inputs(), weight.values().len()), (5, 9, mask.nnz()));

    let other = SparseLinear::from_linear(&dense, &mask).unwrap().load_record(layer.clone().into_record());
    close(&other.forward(x.clone()), &layer.forward(x));
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::flex();
    let layer = LinearConfig::new(8, 6).init(&device);
    let error = SparseLinear::from_linear(&layer, &mask(8, 6)).unwrap_err().to_string();
    assert!(error.contains("[8, 6]") && error.contains("[6, 8]"), "{error}");
    assert!(SparseConv2d::from_conv(&Conv2dConfig::new([2, 4], [3, 3]).init(&device), &mask(4, 17)).is_err());
}

/// Every neuron reads so many inputs, the gradients are those of the dense layer of these weights, and nothing dense is needed.
#[test]
fn layers_of_a_fan_in_are_sparse_from_the_first_step() {
    for device in devices() {
        let config = LinearConfig::new(40, 9);
        let layer = SparseLinear::with_fan_in(&config, 6, 3, &device).unwrap();
        let weights = layer.condensed().unwrap().unwrap();
        assert_eq!((weights.values().len(), weights.fan_in()), (54, &FanIn::Constant(6)));
        let most = 1.0 / 6f32.sqrt();
        assert!(weights.values().iter().all(|value| value.abs() <= most && *value != 0.0));
        // The same again, and another with another seed.
        let pattern = |seed| SparseLinear::with_fan_in(&config, 6, seed, &device).unwrap().pattern().unwrap();
        assert_eq!(layer.pattern().unwrap(), pattern(3));
        assert_ne!(layer.pattern().unwrap(), pattern(4));

        let dense = layer.weight();
        let x = Tensor::<2>::random([5, 40], Distribution::Default, &device);
        let bias = layer.bias.as_ref().unwrap().val();
        close(&layer.forward(x.clone()), &(x.clone().matmul(dense) + bias.unsqueeze()));
        let gradients = layer.forward(x).sum().backward();
        assert_eq!(layer.parameter().grad(&gradients).unwrap().dims(), [54]);

        // It trains.
        let mut adam = AdamConfig::new().init();
        let (mut trained, mut losses) = (layer, Vec::new());
        let x = Tensor::<2>::random([16, 40], Distribution::Default, &device);
        for _ in 0..30 {
            let loss = (trained.forward(x.clone()) - 1.0).square().mean();
            losses.push(loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(loss.backward(), &trained);
            trained = adam.step(0.03, trained, gradients);
        }
        assert!(losses[29] < 0.3 * losses[0], "{losses:?}");
        let without = SparseLinear::with_fan_in(&config.clone().with_bias(false), 40, 0, &device).unwrap();
        assert!(without.bias.is_none() && without.parameter().dims() == [360]);
        for (inputs, fan_in) in [(40, 0), (40, 41), (70_000, 3)] {
            assert!(SparseLinear::with_fan_in(&LinearConfig::new(inputs, 9), fan_in, 3, &device).is_err());
        }
    }
}
