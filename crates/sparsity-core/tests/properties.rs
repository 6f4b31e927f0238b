//! Every invariant of a topology update, on thousands of random layers, and the updates themselves against a
//! plain reference that sorts.

mod cases;

use cases::{Case, STREAM, cases};
use proptest::prelude::*;
use sparsity_core::methods::{Mest, Rigl, Set, Snfs, Srigl, StaticMask, StructuredSet};
use sparsity_core::{
    ActiveLayer, AnyMethod, ConstantFanInMask, DenseGradient, Distribution, Error, Layer, LayerSpec, Mask,
    Members, Method, NmPattern, Stream, UpdateReport, initial_mask, itop_rate, layer_sparsities,
    settle_weights, update_active_layer, update_layer, update_topology,
};

/// The updates by sorting, after the page of the paper, one line of code for each of its sentences.
mod reference {
    use super::cases::{Case, kept, top};
    use sparsity_core::methods::ThresholdBase;
    use std::collections::BTreeSet;

    /// One byte per position; `None` where the fan-in would be 0.
    pub fn srigl(case: &Case) -> Option<Vec<u8>> {
        let (neurons, m) = (case.neurons, case.m);
        let all = 0..neurons * m;
        let row = |i: usize| i * m..(i + 1) * m;
        let nonzero: Vec<usize> =
            all.clone().filter(|&p| case.active[p] == 1 && case.weights[p] != 0.0).collect();
        let target = case.target();

        // 1. How many to keep and to drop.
        let (n, mut drop) = case.active_and_dropped();
        let mut keep = n - drop;
        if nonzero.len() < keep {
            keep = nonzero.len();
            drop = n - keep;
        }

        // 2. Salient weights of each neuron.
        let top_weights = top(&case.weights, nonzero.clone(), keep);
        let top_grads = top(&case.grads, all, drop);
        let salient: BTreeSet<usize> = top_weights.union(&top_grads).copied().collect();
        let salient: Vec<usize> = (0..neurons).map(|i| salient.range(row(i)).count()).collect();

        // 3. The threshold.
        let gamma = case.settings.gamma_sal;
        let base = match case.settings.threshold_base {
            ThresholdBase::SparseFanIn => target / neurons,
            ThresholdBase::DenseFanIn => m,
        };
        let mut threshold = if gamma >= 1.0 {
            gamma.ceil() as usize
        } else {
            ((gamma * base as f64).floor() as usize).max(1)
        };

        // 4. The guard.
        let mut descending = salient.clone();
        descending.sort_by_key(|s| std::cmp::Reverse(*s));
        threshold = threshold.min(descending[target / m]);

        // 5. Ablation.
        let on = case.ablate && gamma > 0.0;
        let ablated: Vec<bool> = salient.iter().map(|s| on && *s < threshold).collect();

        // 6. The new fan-in.
        let fan_in = target / ablated.iter().filter(|a| !**a).count();
        if fan_in == 0 {
            return None;
        }

        // 7. Pruning, over the layer and then in each neuron.
        let kept = top(&case.weights, nonzero.into_iter().filter(|p| !ablated[p / m]), keep);
        let mut mask = vec![0; neurons * m];
        for i in (0..neurons).filter(|&i| !ablated[i]) {
            let kept = top(&case.weights, kept.range(row(i)).copied(), fan_in);
            // 8. Growth.
            let grown = top(&case.grads, row(i).filter(|p| !kept.contains(p)), fan_in - kept.len());
            kept.union(&grown).for_each(|&p| mask[p] = 1);
        }
        Some(mask)
    }

    /// One byte per position.
    pub fn rigl(case: &Case) -> Vec<u8> {
        let kept = kept(case);
        let free = (0..case.active.len()).filter(|p| !kept.contains(p));
        let grown = top(&case.grads, free, case.active_and_dropped().1);
        let mut mask = vec![0; case.active.len()];
        kept.union(&grown).for_each(|&p| mask[p] = 1);
        mask
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn srigl_is_the_reference_bit_for_bit(case in cases()) {
        match (case.update(&case.settings), reference::srigl(&case)) {
            (Ok(mask), Some(expected)) => prop_assert_eq!(mask.to_bytes(), expected),
            (Err(Error::FanInZero { layer, .. }), None) => prop_assert_eq!(layer, "fc"),
            (got, expected) => prop_assert!(false, "{:?} instead of {:?}", got, expected),
        }
    }

    #[test]
    fn rigl_is_the_reference_bit_for_bit(case in cases()) {
        prop_assert_eq!(case.update(&Rigl).unwrap().to_bytes(), reference::rigl(&case));
    }

    #[test]
    fn srigl_gives_every_active_neuron_its_share_of_the_weights(case in cases()) {
        let Ok(mask) = case.update(&case.settings) else { return Ok(()) };
        let (active, target) = (mask.active_neurons(), case.target());
        let fan_in = ConstantFanInMask::try_from(mask.clone()).unwrap().fan_in();
        prop_assert_eq!(fan_in, target / active);
        prop_assert!(mask.nnz() <= target && mask.nnz() > target - active);
        if case.ablate && case.settings.gamma_sal > 0.0 {
            prop_assert!(active > target / case.m, "too few neurons for the weights");
        } else {
            prop_assert_eq!(active, case.neurons, "ablated without leave");
        }
    }

    #[test]
    fn rigl_and_set_keep_the_largest_and_the_count(case in cases()) {
        let before = case.mask();
        for method in [&Rigl as &dyn Method, &Set] {
            let mask = case.update(method).unwrap();
            prop_assert_eq!(mask.nnz(), before.nnz());
            for p in cases::kept(&case) {
                prop_assert!(mask.is_active(p / case.m, p % case.m), "{:?} lost position {}", method, p);
            }
        }
        prop_assert!(case.update(&StaticMask).unwrap() == before);
    }

    #[test]
    fn nothing_to_drop_means_nothing_changes(mut case in cases()) {
        case.alpha = 0.0;
        prop_assert!(case.update(&Rigl).unwrap() == case.mask());
        prop_assert!(case.update(&Set).unwrap() == case.mask());
    }

    #[test]
    fn srigl_rests_where_it_arrived(mut case in cases()) {
        let Ok(mask) = case.update(&case.settings) else { return Ok(()) };
        // Once all weights are non-zero and none is dropped, the same neurons get the same inputs.
        prop_assume!(mask.active_neurons() == case.neurons);
        (case.alpha, case.ablate, case.active) = (0.0, false, mask.to_bytes());
        case.weights.iter_mut().for_each(|w| *w = w.abs() + 1.0);
        prop_assert!(case.update(&case.settings).unwrap() == mask);
    }

    #[test]
    fn settled_weights_are_zero_or_untouched(case in cases(), grows_by_gradient in any::<bool>()) {
        let before = case.mask();
        let method: &dyn Method = if grows_by_gradient { &case.settings } else { &Set };
        let Ok(after) = case.update(method) else { return Ok(()) };
        let mut weights = case.weights.clone();
        settle_weights(&mut weights, &before, &after);
        let (before, after) = (before.to_bytes(), after.to_bytes());
        for p in 0..weights.len() {
            // Bit patterns: an inactive or new weight is +0.0 and not −0.0.
            let expected = if before[p] == 1 && after[p] == 1 { case.weights[p].to_bits() } else { 0 };
            prop_assert_eq!(weights[p].to_bits(), expected, "position {}", p);
        }
    }

    #[test]
    fn a_report_counts_what_changed(case in cases()) {
        let before = case.mask();
        for method in [&case.settings as &dyn Method, &Rigl, &Set] {
            let Ok(update) = update_layer(method, case.alpha, &case.layer(&before), STREAM) else { continue };
            let pairs: Vec<(u8, u8)> = before.to_bytes().into_iter().zip(update.mask.to_bytes()).collect();
            prop_assert_eq!(update.report.pruned, pairs.iter().filter(|p| **p == (1, 0)).count());
            prop_assert_eq!(update.report.grown, pairs.iter().filter(|p| **p == (0, 1)).count());
            prop_assert_eq!(&update.report, &UpdateReport::new(&before, &update.mask));
            let stats = &update.report.stats;
            prop_assert_eq!(stats.active + stats.ablated.len(), case.neurons);
            prop_assert_eq!(stats.nnz, pairs.iter().filter(|p| p.1 == 1).count());
            prop_assert!((stats.sparsity - (1.0 - stats.nnz as f64 / pairs.len() as f64)).abs() < 1e-12);
        }
    }
}

proptest! {
    #[test]
    fn the_itop_rate_never_falls(case in cases()) {
        let mut ever_active = case.mask();
        let mut seen = case.active.clone();
        for step in 0..5 {
            let (before, mask) = (itop_rate(&ever_active), case.mask());
            let stream = Stream { step, ..STREAM };
            let now = update_layer(&Set, case.alpha, &case.layer(&mask), stream).unwrap().mask;
            ever_active.union_with(&now);
            seen.iter_mut().zip(now.to_bytes()).for_each(|(seen, now)| *seen |= now);
            let rate = itop_rate(&ever_active);
            prop_assert!(rate >= before && rate >= now.density());
            prop_assert_eq!(rate, seen.iter().filter(|seen| **seen == 1).count() as f64 / seen.len() as f64);
            prop_assert_eq!(ever_active.to_bytes(), &seen[..]);
        }
    }

    /// Weights that are not there, and gradients of some neurons at a time, give the same masks.
    #[test]
    fn updates_from_active_weights_alone_are_the_same(case in cases(), keep in any::<bool>()) {
        let mask = &case.mask();
        let values: Vec<f32> = (0..mask.neurons())
            .flat_map(|neuron| mask.inputs(neuron).map(move |input| (neuron, input)))
            .map(|(neuron, input)| case.weights[neuron * case.m + input])
            .collect();
        let (sparsity, ablate) = (case.sparsity, case.ablate);
        let grads: Vec<f32> = case.grads.iter().zip(&case.active).filter(|(_, a)| **a == 1).map(|(g, _)| *g).collect();
        let layer = ActiveLayer { name: "fc", values: &values, mask, sparsity, ablate, grads: &grads, members: Members::default() };
        let structured = [Rigl.into(), case.settings.into(), AnyMethod::from(StructuredSet)].map(|method: AnyMethod| {
            method.with_nm(NmPattern::TWO_OF_FOUR).unwrap()
        });
        let grouped = [case.settings.into(), AnyMethod::from(StructuredSet)].map(|method: AnyMethod| method.with_group(3).unwrap());
        let structured = structured.iter().chain(&grouped).map(|method| &**method);
        let plain = [&case.settings as &dyn Method, &Rigl, &Set, &StaticMask, &StructuredSet, &Mest::default(), &Snfs];
        for method in plain.into_iter().chain(structured) {
            let mut rows = |neurons: &[usize], to: &mut [f32]| {
                let rows = to.chunks_exact_mut(case.m).zip(neurons);
                rows.for_each(|(row, neuron)| row.copy_from_slice(&case.grads[neuron * case.m..][..case.m]));
            };
            let gradient =
                if keep { DenseGradient::All(&case.grads) } else { DenseGradient::Rows(&mut rows) };
            let update = update_active_layer(method, case.alpha, &layer, gradient, STREAM);
            prop_assert_eq!(update.map(|update| update.expect("it sees enough").mask), case.update(method), "{:?}", method);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_named(
        mut case in cases(),
        bad in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
        position in any::<prop::sample::Index>(),
        in_grads in any::<bool>(),
    ) {
        let position = position.index(case.weights.len());
        let values = if in_grads { &mut case.grads } else { &mut case.weights };
        values[position] = bad;
        for method in [&case.settings as &dyn Method, &Rigl, &Set, &StaticMask] {
            let Err(Error::NotFinite { layer, what, value, neuron, input }) = case.update(method) else {
                panic!("{method:?} accepted {bad}");
            };
            prop_assert_eq!((layer.as_str(), value.to_bits()), ("fc", bad.to_bits()));
            prop_assert_eq!(what, if in_grads { "gradient" } else { "weight" });
            prop_assert_eq!((neuron, input), (position / case.m, position % case.m));
        }
    }

    #[test]
    fn a_wrong_length_is_named(mut case in cases(), longer in any::<bool>(), in_grads in any::<bool>()) {
        let count = case.weights.len();
        let wrong = if longer { count + 1 } else { count - 1 };
        let values = if in_grads { &mut case.grads } else { &mut case.weights };
        values.resize(wrong, 0.0);
        let what = if in_grads { "gradient" } else { "weight" };
        let error = Error::Length { layer: "fc".into(), what, expected: count, got: wrong };
        prop_assert_eq!(case.update(&case.settings), Err(error));
    }

    #[test]
    fn settings_out_of_range_are_refused(
        case in cases(),
        alpha in prop_oneof![Just(f64::NAN), -1.0..-1e-9, 1.001..2.0],
        gamma_sal in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), -1.0..-1e-9],
        sparsity in prop_oneof![Just(f64::NAN), -1.0..-1e-9, 1.0..2.0],
    ) {
        let is_setting = |result| matches!(result, Err(Error::Setting { .. }));
        let result = Case { alpha, ..case.clone() }.update(&Rigl);
        prop_assert!(is_setting(result));
        let settings = Srigl { gamma_sal, ..case.settings };
        let result = case.update(&settings);
        prop_assert!(is_setting(result));
        let result = Case { sparsity, ..case }.update(&Rigl);
        prop_assert!(matches!(result, Err(Error::Sparsity(_))));
    }
}

#[test]
fn a_fan_in_of_zero_names_the_layer() {
    // A = ⌊40·0.09⌋ = 3 weights cannot feed 4 neurons.
    let (values, mask) = (vec![1.0; 40], Mask::full(4, 10));
    let layer =
        Layer { name: "fc", weights: &values, grads: &values, mask: &mask, sparsity: 0.91, ablate: false };
    let method = Srigl::default();
    let error = update_layer(&method, 0.3, &layer, STREAM).unwrap_err();
    let expected = Error::FanInZero { layer: "fc".into(), sparsity: 0.91, target: 3, active: 4 };
    assert_eq!(error, expected);
    // With ablation, all gradients equal, the first neurons win the ties and share the weights.
    let update = update_layer(&method, 0.3, &Layer { ablate: true, ..layer }, STREAM).unwrap();
    assert_eq!(update.report.stats.fan_in, Some(1));
}

#[test]
fn a_weight_dropped_and_grown_in_one_update_keeps_its_value() {
    // One neuron, k = 2. Of weights 3 and 1, α = 0.5 drops 1; the largest free gradient is its own.
    let mask = Mask::from_bytes(1, 4, &[1, 1, 0, 0]).unwrap();
    let (mut weights, grads) = ([3.0, 1.0, 0.0, 0.0], [0.0, 9.0, 5.0, 1.0]);
    let layer =
        Layer { name: "fc", weights: &weights, grads: &grads, mask: &mask, sparsity: 0.5, ablate: true };
    for method in [&Srigl::default() as &dyn Method, &Rigl] {
        let update = update_layer(method, 0.5, &layer, STREAM).unwrap();
        assert_eq!(update.mask, mask);
        assert_eq!((update.report.pruned, update.report.grown), (0, 0));
    }
    settle_weights(&mut weights, &mask, &mask);
    assert_eq!(weights, [3.0, 1.0, 0.0, 0.0]);
}

#[test]
fn set_grows_everywhere_equally_often() {
    // 5 of 10 active, 2 dropped (the smallest: 1 and 2), so 2 of 7 free positions grow.
    let weights: Vec<f32> = (1..=5).map(|w| w as f32).chain([0.0; 5]).collect();
    let mask = Mask::from_bytes(2, 5, &[1, 1, 1, 1, 1, 0, 0, 0, 0, 0]).unwrap();
    let layer =
        Layer { name: "fc", weights: &weights, grads: &weights, mask: &mask, sparsity: 0.5, ablate: true };
    let mut counts = [0; 10];
    for step in 0..7000 {
        let update = update_layer(&Set, 0.4, &layer, Stream { step, ..STREAM }).unwrap();
        update.mask.to_bytes().iter().enumerate().for_each(|(p, a)| counts[p] += usize::from(*a));
    }
    assert_eq!(counts[2..5], [7000; 3]);
    // Binomial(7000, 2/7): mean 2000, standard deviation 38.
    assert!([0, 1, 5, 6, 7, 8, 9].iter().all(|&p| counts[p].abs_diff(2000) < 190), "{counts:?}");
}

/// Deterministic noise in ±1 with `levels` distinct magnitudes.
fn noise(seed: u64, count: usize, levels: u64) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % (2 * levels + 1)) as f32 / levels as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn masks_do_not_depend_on_the_number_of_threads() {
    // More than one parallel block in the first layer, and both many and few ties.
    let shapes = [(700, 1100, 5), (64, 576, 1 << 20), (10, 100, 2)];
    let masks: Vec<Mask> = shapes
        .iter()
        .enumerate()
        .map(|(i, &(n, m, _))| {
            let spec = LayerSpec::new("fc", [n, m]).unwrap();
            initial_mask(&Set, &spec, 0.9, Stream { layer: i as u64, ..STREAM }).unwrap()
        })
        .collect();
    let weights: Vec<Vec<f32>> = shapes.iter().map(|&(n, m, levels)| noise(1, n * m, levels)).collect();
    let grads: Vec<Vec<f32>> = shapes.iter().map(|&(n, m, levels)| noise(2, n * m, levels)).collect();
    let layers: Vec<Layer> = (0..shapes.len())
        .map(|i| Layer {
            name: "fc",
            weights: &weights[i],
            grads: &grads[i],
            mask: &masks[i],
            sparsity: 0.9,
            ablate: i < 2,
        })
        .collect();
    let srigl = |gamma_sal| Srigl { gamma_sal, ..Default::default() };
    for method in [&srigl(0.3) as &dyn Method, &srigl(0.99), &srigl(0.0), &Rigl, &Set] {
        let update = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| update_topology(method, 0.3, &layers, 7, 100).unwrap())
        };
        let alone = update(1);
        assert!(alone[0].report.grown > 0, "nothing to compare");
        for threads in 2..=16 {
            assert!(update(threads) == alone, "{method:?} with {threads} threads");
        }
    }
}

/// A few layers, linear or convolutions, some kept dense.
fn layer_specs() -> impl Strategy<Value = Vec<LayerSpec>> {
    let dims = prop_oneof![
        proptest::collection::vec(1usize..300, 2),
        (1usize..100, 1usize..100, 1usize..6).prop_map(|(o, i, k)| vec![o, i, k, k]),
    ];
    let spec = (dims, prop::bool::weighted(0.15)).prop_map(|(dims, keep_dense)| {
        let spec = LayerSpec::new("layer", dims).unwrap();
        if keep_dense { spec.dense() } else { spec }
    });
    proptest::collection::vec(spec, 1..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn layer_sparsities_add_up(specs in layer_specs(), sparsity in 0.0..0.995, kind in 0usize..3, power in 0.25..2.0) {
        let distribution = [Distribution::Uniform, Distribution::Er, Distribution::Erk { power }][kind];
        let total: usize = specs.iter().map(LayerSpec::weights).sum();
        let kept_dense: usize = specs.iter().filter(|s| s.keep_dense).map(LayerSpec::weights).sum();
        let sparse: Vec<usize> = (0..specs.len()).filter(|&i| !specs[i].keep_dense).collect();
        // What is left for the other layers when those kept dense have theirs.
        let budget = total as f64 * (1.0 - sparsity) - kept_dense as f64;

        let sparsities = match layer_sparsities(&specs, sparsity, distribution) {
            Ok(sparsities) => sparsities,
            Err(Error::TooManyDense { dense, total: all, .. }) => {
                // The two sides of the edge may round differently.
                prop_assert!(sparse.is_empty() || budget <= 1e-9 * total as f64);
                prop_assert_eq!((dense, all), (kept_dense, total));
                return Ok(());
            }
            Err(error) => panic!("{error}"),
        };
        for (spec, s) in specs.iter().zip(&sparsities) {
            prop_assert!((0.0..1.0).contains(s), "density {} outside (0, 1]", 1.0 - s);
            prop_assert!(!spec.keep_dense || *s == 0.0);
        }
        let zeros: f64 = specs.iter().zip(&sparsities).map(|(spec, s)| spec.weights() as f64 * s).sum();
        prop_assert!(sparse.is_empty() || (zeros / total as f64 - sparsity).abs() < 1e-9, "global {}", zeros / total as f64);

        // The densities are ε times the scores, and a layer is only made dense if ε times its score exceeds 1.
        let score = |i: usize| -> f64 {
            let dims = &specs[i].dims;
            match distribution {
                Distribution::Uniform => 1.0,
                Distribution::Er => (dims[0] + dims[1]) as f64 / (dims[0] * dims[1]) as f64,
                Distribution::Erk { power } => {
                    let (sum, product): (usize, usize) = (dims.iter().sum(), dims.iter().product());
                    (sum as f64 / product as f64).powf(power)
                }
            }
        };
        let Some(&first) = sparse.iter().find(|&&i| sparsities[i] > 0.0) else { return Ok(()) };
        let epsilon = (1.0 - sparsities[first]) / score(first);
        for &i in &sparse {
            if sparsities[i] > 0.0 {
                prop_assert!(((1.0 - sparsities[i]) / (epsilon * score(i)) - 1.0).abs() < 1e-9);
            } else {
                prop_assert!(epsilon * score(i) > 1.0 - 1e-9, "made dense without need");
            }
        }
    }
}

/// What [`update_active_layer`] refuses of weights alone.
#[test]
fn active_weights_that_do_not_fit_or_have_diverged_are_named() {
    // Two neurons of three inputs; the second reads the first and the last.
    let mask = &Mask::from_bytes(2, 3, &[0, 1, 0, 1, 0, 1]).unwrap();
    let update = |values: &[f32], gradient: &[f32]| {
        let layer = ActiveLayer {
            name: "fc",
            values,
            mask,
            sparsity: 0.5,
            ablate: true,
            grads: &[],
            members: Members::default(),
        };
        update_active_layer(&Srigl::default(), 0.3, &layer, DenseGradient::All(gradient), STREAM).map(|_| ())
    };
    assert_eq!(update(&[1.0, 2.0, 3.0], &[1.0; 6]), Ok(()));
    let length = |what, expected, got| Err(Error::Length { layer: "fc".into(), what, expected, got });
    assert_eq!(update(&[1.0, 2.0], &[1.0; 6]), length("active weight", 3, 2));
    assert_eq!(update(&[1.0, 2.0, 3.0], &[1.0; 5]), length("gradient", 6, 5));
    let diverged =
        |what, value, neuron, input| Err(Error::NotFinite { layer: "fc".into(), what, value, neuron, input });
    let infinite = f32::INFINITY;
    assert_eq!(update(&[1.0, 2.0, infinite], &[1.0; 6]), diverged("weight", infinite, 1, 2));
    assert_eq!(
        update(&[1.0, 2.0, 3.0], &[1.0, 1.0, 1.0, infinite, 1.0, 1.0]),
        diverged("gradient", infinite, 1, 0)
    );
}

#[test]
fn dense_gradients_say_of_which_kind_they_are() {
    let mut write = |_: &[usize], _: &mut [f32]| {};
    let shown =
        [DenseGradient::All(&[]), DenseGradient::Rows(&mut write)].map(|gradient| format!("{gradient:?}"));
    assert_eq!(shown, ["All", "Rows"]);
}
