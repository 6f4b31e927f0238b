//! One topology update of every layer of two real networks, at 90 % sparsity, by SRigL; and by all methods, for the larger one.
//!
//! `cargo bench -p sparsity-core`

use divan::{Bencher, black_box};
use rayon::prelude::*;
use sparsity_core::methods::{AnyMethod, METHODS, Rigl, Set, Settings, SrSte, Srigl};
use sparsity_core::{Distribution, Layer, LayerSpec, Mask, NmPattern, Stream, WeightInit, initial_mask};
use sparsity_core::{initialise_weights, method_sparsities, update_topology};
use std::fmt::{Display, Formatter, Result};

fn main() {
    divan::main();
}

/// ViT-B/16: 86 million weights, uniform sparsity, γ_sal = 0.95, as in the paper.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn vit_b16(bencher: Bencher) {
    Network::new(vit(), Distribution::Uniform, srigl(0.95)).bench(bencher);
}

/// The same by every method, with a pattern of 90 % too, and with neurons that share their inputs.
#[divan::bench(sample_count = 10, sample_size = 1, args = methods())]
fn vit_b16_by(bencher: Bencher, method: &Named) {
    Network::new(vit(), Distribution::Uniform, method.0.clone()).bench(bencher);
}

/// A method that is printed as its label.
struct Named(AnyMethod);

impl Display for Named {
    fn fmt(&self, f: &mut Formatter) -> Result {
        f.write_str(&self.0.label())
    }
}

fn methods() -> Vec<Named> {
    let changing = METHODS.iter().filter(|info| info.changes());
    let plain = changing.map(|info| info.build(&Settings::default()).unwrap());
    let nm = NmPattern::new(1, 10).unwrap();
    let structured = [
        AnyMethod::from(Rigl).with_nm(nm).unwrap(),
        AnyMethod::from(Set).with_nm(nm).unwrap(),
        SrSte { nm, ..SrSte::default() }.into(),
        srigl(0.95).with_group(4).unwrap(),
        srigl(0.95).with_group(16).unwrap(),
    ];
    plain.chain(structured).map(Named).collect()
}

fn srigl(gamma_sal: f64) -> AnyMethod {
    Srigl { gamma_sal, ..Default::default() }.into()
}

fn vit() -> Vec<Vec<usize>> {
    let mut dims = vec![vec![768, 3, 16, 16]];
    for _ in 0..12 {
        dims.extend([vec![2304, 768], vec![768, 768], vec![3072, 768], vec![768, 3072]]);
    }
    dims.push(vec![1000, 768]);
    dims
}

/// ResNet-50: 25 million weights, ERK, γ_sal = 0.3, as in the paper.
#[divan::bench(sample_count = 40, sample_size = 1)]
fn resnet50(bencher: Bencher) {
    let mut dims = vec![vec![64, 3, 7, 7]];
    let mut input = 64;
    for (width, blocks) in [(64, 3), (128, 4), (256, 6), (512, 3)] {
        for block in 0..blocks {
            let bottleneck =
                [vec![width, input, 1, 1], vec![width, width, 3, 3], vec![4 * width, width, 1, 1]];
            dims.extend(bottleneck);
            if block == 0 {
                dims.push(vec![4 * width, input, 1, 1]);
            }
            input = 4 * width;
        }
    }
    dims.push(vec![1000, 2048]);
    Network::new(dims, Distribution::default(), srigl(0.3)).bench(bencher);
}

/// A network as an update sees it: weights, dense gradients and masks of all layers.
struct Network {
    method: AnyMethod,
    specs: Vec<LayerSpec>,
    sparsities: Vec<f64>,
    masks: Vec<Mask>,
    weights: Vec<Vec<f32>>,
    grads: Vec<Vec<f32>>,
}

impl Network {
    fn new(dims: Vec<Vec<usize>>, distribution: Distribution, method: AnyMethod) -> Self {
        let specs: Vec<LayerSpec> =
            dims.into_iter().enumerate().map(|(i, d)| LayerSpec::new(i.to_string(), d).unwrap()).collect();
        let sparsities = method_sparsities(&*method, &specs, 0.9, distribution).unwrap();
        let (mut masks, mut weights, mut grads) = (Vec::new(), Vec::new(), Vec::new());
        for (i, spec) in specs.iter().enumerate() {
            let stream = Stream { seed: 1, layer: i as u64, step: 0 };
            let mask = initial_mask(&*method, spec, sparsities[i], stream).unwrap();
            let mut w = vec![0.0; spec.weights()];
            initialise_weights(&mut w, &mask, WeightInit::default(), stream);
            masks.push(mask);
            weights.push(w);
            grads.push(gradients(i, spec));
        }
        Self { method, specs, sparsities, masks, weights, grads }
    }

    fn bench(&self, bencher: Bencher) {
        let last = self.specs.len() - 1;
        let layers: Vec<Layer> = (0..=last)
            .map(|i| Layer {
                name: &self.specs[i].name,
                weights: &self.weights[i],
                grads: &self.grads[i],
                mask: &self.masks[i],
                sparsity: self.sparsities[i],
                ablate: i < last,
            })
            .collect();
        let items = divan::counter::ItemsCount::new(self.weights.iter().map(Vec::len).sum::<usize>());
        bencher
            .counter(items)
            .bench(|| update_topology(&*self.method, 0.3, black_box(&layers), 1, 100).expect("valid layers"));
    }
}

/// Bell-shaped gradients whose scale differs between neurons, as in a real network. Cheap to make: each is
/// the sum of the four 16-bit quarters of a hash.
fn gradients(layer: usize, spec: &LayerSpec) -> Vec<f32> {
    let m = spec.dense_fan_in();
    let mut grads = vec![0.0; spec.weights()];
    grads.par_chunks_mut(m).enumerate().for_each(|(neuron, row)| {
        let scale = 1e-6 / (1 + neuron % 7) as f32;
        for (input, g) in row.iter_mut().enumerate() {
            let hash = splitmix64(((layer as u64) << 40) ^ (neuron * m + input) as u64);
            let sum: i64 = (0..4).map(|q| (hash >> (16 * q) & 0xffff) as i64 - 0x8000).sum();
            *g = sum as f32 * scale;
        }
    });
    grads
}

fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
