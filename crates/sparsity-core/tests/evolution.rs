//! How masks evolve over many updates, as text one can read. A changed snapshot means that the same training
//! run would now end in another network.
//!
//! To accept a change: `INSTA_UPDATE=always cargo test -p sparsity-core --test evolution`, then read the diff.

use sparsity_core::methods::{
    Gmp, GradientPositions, Mest, Rigl, Set, Snfs, SrSte, Srigl, StaticMask, StructuredSet, StructuredStatic,
    TopKast,
};
use sparsity_core::{
    AnyMethod, Distribution, InitialMask, Layer, LayerSpec, Mask, Method, NmPattern, Stream, UpdateReport,
    UpdateSchedule, initial_mask, initial_mask_by_magnitude, initial_masks, layer_sparsities, settle_weights,
    update_layer,
};
use std::fmt::Write;

/// 67 of 240 weights: 6 for each of ten neurons, 7 if there are only nine.
const SPARSITY: f64 = 0.72;
/// The neuron that falls silent for a while, and cries out when it is over.
const QUIET: usize = 3;
const SILENCE: std::ops::RangeInclusive<u64> = 2..=5;
const CRY: u64 = 6;

/// Twelve updates of a layer `[10, 24]`; the mask after each, the initial one first.
struct Evolution {
    text: String,
    masks: Vec<Mask>,
}

impl Evolution {
    fn of(method: &dyn Method) -> Self {
        let spec = LayerSpec::new("fc", [10, 24]).unwrap();
        // With 13·ΔT no update falls on an angle where n·α_t would be an integer but for the last bit of cos.
        let schedule = UpdateSchedule::new(1300);
        let stream = |step| Stream { seed: 42, layer: 0, step };
        let mut weights: Vec<f32> = signal(0, &spec, 0);
        let (from, target) = (method.info().initial, (SPARSITY, Distribution::Uniform));
        let specs = std::slice::from_ref(&spec);
        let (sparsity, initial) =
            initial_masks(method, specs, &[weights.clone()], from, target, 42).unwrap().remove(0);
        if !method.keeps_inactive_weights() {
            initial.apply(&mut weights);
        }
        let mut evolution = Self { text: String::new(), masks: vec![initial] };
        writeln!(evolution.text, "initial  nnz {}", evolution.now().nnz()).unwrap();
        evolution.draw();

        for update in 1..=12 {
            let grads = signal(1, &spec, update);
            train(method, &mut weights, &grads, evolution.now());
            let layer = Layer {
                name: &spec.name,
                weights: &weights,
                grads: &grads,
                mask: evolution.now(),
                sparsity: method.sparsity_at(sparsity, schedule.progress_at(update * schedule.delta_t)),
                ablate: true,
            };
            let step = update * schedule.delta_t;
            let alpha = schedule.drop_fraction_at(step);
            let new = update_layer(method, alpha, &layer, stream(step)).unwrap();
            if !method.keeps_inactive_weights() {
                settle_weights(&mut weights, evolution.now(), &new.mask);
            }
            evolution.masks.push(new.mask);
            evolution.head(step, alpha, &new.report);
            evolution.draw();
        }
        evolution
    }

    fn now(&self) -> &Mask {
        self.masks.last().expect("starts with the initial mask")
    }

    fn head(&mut self, step: u64, alpha: f64, report: &UpdateReport) {
        let (stats, pruned, grown) = (&report.stats, report.pruned, report.grown);
        let fan_in = match stats.fan_in {
            Some(k) => k.to_string(),
            None => format!("{} to {}", stats.fan_in_min, stats.fan_in_max),
        };
        let (active, neurons, nnz) = (stats.active, stats.neurons, stats.nnz);
        writeln!(
            self.text,
            "\nstep {step}  alpha {alpha:.4}  fan-in {fan_in}  active {active} of {neurons}  nnz {nnz}  \
             pruned {pruned}  grown {grown}"
        )
        .unwrap();
    }

    fn draw(&mut self) {
        let rows = draw(self.now());
        self.text += &rows;
    }
}

/// A gradient step with weight decay, in arithmetic that is exact or rounds the same everywhere.
fn train(method: &dyn Method, weights: &mut [f32], grads: &[f32], mask: &Mask) {
    let moved: Vec<f32> = weights.iter().zip(grads).map(|(w, g)| *w * 0.5 - *g * 0.25).collect();
    let before = weights.to_vec();
    weights.copy_from_slice(&moved);
    match method.gradient_positions(mask, SPARSITY, &|| before.clone()) {
        GradientPositions::Active => mask.apply(weights),
        GradientPositions::All => {}
        GradientPositions::Superset(positions) => {
            let stays = |i: &usize| !positions.is_active(i / mask.dense_fan_in(), i % mask.dense_fan_in());
            (0..weights.len()).filter(stays).for_each(|i| weights[i] = before[i]);
        }
    }
}

/// Noise in ±1, a new one for each update; the quiet neuron's is a hundredth of it in its silence and twice
/// as much at its end.
fn signal(kind: u64, spec: &LayerSpec, update: u64) -> Vec<f32> {
    let m = spec.dense_fan_in();
    let value = |position: usize| {
        let hash = splitmix64(kind << 60 | update << 32 | position as u64);
        let noise = (hash >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let scale = match update {
            _ if position / m != QUIET => 1.0,
            CRY => 2.0,
            update if SILENCE.contains(&update) => 0.01,
            _ => 1.0,
        };
        noise * scale
    };
    (0..spec.weights()).map(value).collect()
}

fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// One line per neuron: `#` active, `.` inactive, its fan-in at the end.
fn draw(mask: &Mask) -> String {
    let mut text = String::new();
    for neuron in 0..mask.neurons() {
        let dot = |input| if mask.is_active(neuron, input) { '#' } else { '.' };
        let dots: String = (0..mask.dense_fan_in()).map(dot).collect();
        match mask.fan_in(neuron) {
            0 => writeln!(text, "row {neuron:2}  {:-^width$}", " ablated ", width = mask.dense_fan_in()),
            k => writeln!(text, "row {neuron:2}  {dots}  {k}"),
        }
        .unwrap();
    }
    text
}

fn srigl(gamma_sal: f64) -> Srigl {
    Srigl { gamma_sal, ..Default::default() }
}

#[test]
fn srigl_with_ablation() {
    let evolution = Evolution::of(&srigl(0.5));
    let alive: Vec<bool> = evolution.masks.iter().map(|m| m.fan_in(QUIET) > 0).collect();
    let died = alive.iter().position(|alive| !alive).expect("the quiet neuron dies");
    assert!(died > 0 && alive[died..].contains(&true), "and comes back: {alive:?}");
    assert_eq!(evolution.masks[died].fan_in(0), 7, "the others share its weights");
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn srigl_without_ablation() {
    let evolution = Evolution::of(&srigl(0.0));
    assert!(evolution.masks.iter().all(|m| (0..10).all(|neuron| m.fan_in(neuron) == 6)));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn rigl() {
    let evolution = Evolution::of(&Rigl);
    assert!(evolution.masks.iter().all(|m| m.nnz() == 67));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn set() {
    let evolution = Evolution::of(&Set);
    assert!(evolution.masks.iter().all(|m| m.nnz() == 67));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn structured_set() {
    let evolution = Evolution::of(&StructuredSet);
    assert!(evolution.masks.iter().all(|m| (0..10).all(|neuron| m.fan_in(neuron) == 6)));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn gmp() {
    let evolution = Evolution::of(&Gmp);
    assert!(evolution.masks.windows(2).all(|m| m[1].count_not_in(&m[0]) == 0), "nothing comes back");
    assert_eq!([0, 12].map(|i: usize| evolution.masks[i].nnz()), [240, 67]);
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn snfs() {
    let evolution = Evolution::of(&Snfs);
    assert!(evolution.masks.iter().all(|m| m.nnz() == 67));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn mest() {
    let evolution = Evolution::of(&Mest { lambda: 0.5 });
    assert!(evolution.masks.iter().all(|m| m.nnz() == 67));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn top_kast() {
    let evolution = Evolution::of(&TopKast::default());
    assert!(evolution.masks.iter().all(|m| m.nnz() == 67));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn sr_ste() {
    let evolution = Evolution::of(&SrSte::default());
    assert!(evolution.masks.iter().all(|mask| NmPattern::TWO_OF_FOUR.holds(mask)));
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn two_of_four() {
    let mut text = String::new();
    for method in [AnyMethod::from(Rigl), Set.into(), srigl(0.5).into()] {
        let method = method.with_nm(NmPattern::new(1, 4).unwrap()).unwrap();
        let evolution = Evolution::of(&*method);
        assert!(
            evolution.masks.iter().all(|mask| NmPattern::new(1, 4).unwrap().holds(mask) && mask.nnz() == 60)
        );
        write!(text, "{}\n\n{}\n", method.label(), evolution.text).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn group_shared_srigl() {
    let method = AnyMethod::from(srigl(0.5)).with_group(3).unwrap();
    let evolution = Evolution::of(&*method);
    for mask in &evolution.masks {
        assert!((0..10).all(|neuron| mask.inputs(neuron).eq(mask.inputs(neuron / 3 * 3))));
    }
    insta::assert_snapshot!(evolution.text);
}

#[test]
fn initial_masks_of_pruning_methods() {
    let specs = ["a", "b"].map(|name| LayerSpec::new(name, [6, 24]).unwrap());
    let weights: Vec<Vec<f32>> = (0..2).map(|layer| signal(layer, &specs[0], 0)).collect();
    let mut text = String::new();
    for (name, from) in [("magnitude", InitialMask::Magnitude), ("global", InitialMask::GlobalMagnitude)] {
        let target = (0.8, Distribution::default());
        for (sparsity, mask) in initial_masks(&StaticMask, &specs, &weights, from, target, 0).unwrap() {
            write!(text, "{name}, sparsity {sparsity:.4}, nnz {}\n{}\n", mask.nnz(), draw(&mask)).unwrap();
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn initial_masks_at_random() {
    let spec = LayerSpec::new("fc", [8, 70]).unwrap();
    let mut text = String::new();
    for (name, method) in [("constant fan-in", &srigl(0.3) as &dyn Method), ("unstructured", &Rigl)] {
        for layer in [0, 1] {
            let mask = initial_mask(method, &spec, 0.9, Stream { seed: 42, layer, step: 0 }).unwrap();
            write!(text, "{name}, seed 42, layer {layer}, nnz {}\n{}\n", mask.nnz(), draw(&mask)).unwrap();
        }
    }
    insta::assert_snapshot!("initial_masks", text);
}

/// By the weights that an evolution starts with; the numbers are those of `A` and `k0`.
#[test]
fn initial_masks_by_magnitude() {
    let spec = LayerSpec::new("fc", [10, 24]).unwrap();
    let weights = signal(0, &spec, 0);
    let mut text = String::new();
    for (name, method) in
        [("constant fan-in", &StructuredStatic as &dyn Method), ("unstructured", &StaticMask)]
    {
        let mask = initial_mask_by_magnitude(method, &spec, &weights, SPARSITY).unwrap();
        write!(text, "{name}, nnz {}\n{}\n", mask.nnz(), draw(&mask)).unwrap();
    }
    insta::assert_snapshot!(text);
}

/// Static masks stay as they are.
#[test]
fn structured_static() {
    let evolution = Evolution::of(&StructuredStatic);
    assert!(evolution.masks.iter().all(|mask| *mask == evolution.masks[0]));
    assert!((0..10).all(|neuron| evolution.masks[0].fan_in(neuron) == 6));
}

#[test]
fn sparsities_of_layers() {
    let mlp = [("fc1", vec![300, 784]), ("fc2", vec![100, 300]), ("fc3", vec![10, 100])].to_vec();
    let cnn = [
        ("conv1", vec![32, 1, 3, 3]),
        ("conv2", vec![64, 32, 3, 3]),
        ("fc1", vec![128, 9216]),
        ("fc2", vec![10, 128]),
    ];
    let globals = [0.8, 0.9, 0.95, 0.98, 0.99];
    let distributions =
        [("uniform", Distribution::Uniform), ("ER", Distribution::Er), ("ERK", Distribution::default())];
    let mut text = String::new();
    for (model, layers) in [("mlp", mlp), ("mnist-cnn", cnn.to_vec())] {
        let specs: Vec<LayerSpec> =
            layers.into_iter().map(|(name, dims)| LayerSpec::new(name, dims).unwrap()).collect();
        for (name, distribution) in distributions {
            let columns = globals.map(|s| layer_sparsities(&specs, s, distribution).unwrap());
            write!(text, "{:24}", format!("{model}, {name}")).unwrap();
            globals.iter().for_each(|s| write!(text, "{:>10}", format!("{s:.2}")).unwrap());
            text.push('\n');
            for (i, spec) in specs.iter().enumerate() {
                write!(text, "{:24}", format!("  {} {:?}", spec.name, spec.dims)).unwrap();
                columns.iter().for_each(|column| write!(text, "{:10.6}", column[i]).unwrap());
                text.push('\n');
            }
            text.push('\n');
        }
    }
    insta::assert_snapshot!(text);
}
