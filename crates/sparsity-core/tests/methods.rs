//! Methods beside SRigL, RigL and SET against plain references that sort, and the structures that any of them may have.

mod cases;

use cases::{Case, STREAM, cases, kept, top};
use proptest::prelude::*;
use sparsity_core::methods::{
    AnyMethod, Gmp, GradientPositions, LayerShare, Mest, Rigl, Set, Snfs, SrSte, Srigl, StructuredSet,
    TopKast,
};
use sparsity_core::{
    ActiveLayer, DenseGradient, Error, InitialMask, Layer, LayerSpec, Mask, Members, Method, NmPattern,
    Stream, initial_masks, redistributed_sparsities, target_weights, update_active_layer, update_layer,
    update_topology,
};
use std::collections::BTreeSet;

fn pattern() -> impl Strategy<Value = NmPattern> {
    (2usize..9).prop_flat_map(|m| (1..m).prop_map(move |n| NmPattern::new(n, m).unwrap()))
}

/// The case with a mask that has the pattern.
fn restricted(mut case: Case, n: usize, m: usize) -> Case {
    for row in case.active.chunks_mut(case.m) {
        for group in row.chunks_mut(m) {
            let mut left = n;
            group.iter_mut().for_each(|active| match left {
                0 => *active = 0,
                _ => left -= usize::from(*active),
            });
        }
    }
    case
}

fn bytes(positions: &BTreeSet<usize>, count: usize) -> Vec<u8> {
    (0..count).map(|position| u8::from(positions.contains(&position))).collect()
}

/// The groups of a layer, as positions, with the inputs that each may have.
fn groups(case: &Case, n: usize, m: usize) -> Vec<(Vec<usize>, usize)> {
    let mut groups = Vec::new();
    for neuron in 0..case.neurons {
        for first in (0..case.m).step_by(m) {
            let last = case.m.min(first + m);
            groups.push(((first..last).map(|input| neuron * case.m + input).collect(), n.min(last - first)));
        }
    }
    groups
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Any mask becomes one with the pattern, groups are full, and what the method keeps stays where there is room.
    #[test]
    fn masks_with_a_pattern_keep_it(case in cases(), nm in pattern(), has_pattern in any::<bool>()) {
        let (n, m) = numbers(nm);
        let case = if has_pattern { restricted(case, n, m) } else { case };
        let kept_by_magnitude = kept(&case);
        let non_zero: BTreeSet<usize> = kept_by_magnitude.iter().copied().filter(|p| case.weights[*p] != 0.0).collect();
        for (method, kept, by_gradient) in [
            (AnyMethod::from(Rigl), &kept_by_magnitude, true),
            (Srigl::default().into(), &non_zero, true),
            (Set.into(), &kept_by_magnitude, false),
            (StructuredSet.into(), &kept_by_magnitude, false),
        ] {
            let mask = case.update(&*method.clone().with_nm(nm).unwrap()).unwrap();
            prop_assert!(nm.holds(&mask));
            let positions: BTreeSet<usize> = (0..case.active.len()).filter(|p| mask.is_active(p / case.m, p % case.m)).collect();
            for (group, room) in groups(&case, n, m) {
                let stay = top(&case.weights, group.iter().copied().filter(|p| kept.contains(p)), n);
                let here: BTreeSet<usize> = group.iter().copied().filter(|p| positions.contains(p)).collect();
                prop_assert_eq!(here.len(), room, "full");
                prop_assert!(stay.is_subset(&here));
                if by_gradient {
                    let free = group.iter().copied().filter(|p| !stay.contains(p));
                    let grown = top(&case.grads, free, room - stay.len());
                    prop_assert_eq!(here, &stay | &grown, "{:?}", method);
                }
            }
        }
    }

    /// A group is one neuron of the sums; where all groups are whole, with the sparsity of the layer.
    #[test]
    fn groups_are_neurons_of_sums(mut case in cases(), group in 2usize..5) {
        // As masks of groups are.
        let neurons = case.neurons * group;
        let grow = |values: &[f32]| -> Vec<f32> { (0..group).flat_map(|i| values.iter().map(move |v| v * (i as f32 - 0.5))).collect() };
        let (weights, grads) = (grow(&case.weights), grow(&case.grads));
        let row = |position: usize| position / case.m / group * case.m + position % case.m;
        let active: Vec<u8> = (0..neurons * case.m).map(|position| case.active[row(position)]).collect();
        let large = Case { neurons, weights, grads, active, ..case.clone() };
        let sums = |values: &[f32], active: &dyn Fn(usize) -> bool| -> Vec<f32> {
            (0..case.neurons * case.m).map(|p| {
                let members = (0..group).map(|i| (p / case.m * group + i) * case.m + p % case.m);
                members.filter(|p| active(*p)).map(|p| values[p].abs()).sum()
            }).collect()
        };
        // A of the layer is G times that of the groups, or a little more.
        prop_assume!(large.target() / group == case.target());
        case.weights = sums(&large.weights, &|p| large.active[p] == 1);
        case.grads = sums(&large.grads, &|_| true);
        for method in [AnyMethod::from(case.settings), StructuredSet.into()] {
            let of_groups = case.update(&*method);
            let got = large.update(&*method.with_group(group).unwrap());
            match (got, of_groups) {
                (Ok(got), Ok(expected)) => (0..neurons).for_each(|neuron| {
                    assert!(got.inputs(neuron).eq(expected.inputs(neuron / group)), "{neuron}");
                }),
                (Err(Error::FanInZero { .. }), Err(Error::FanInZero { .. })) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    /// Whatever is left over, groups share their inputs, and there are no more weights than there may be.
    #[test]
    fn groups_share_inputs_within_the_budget(case in cases(), group in 2usize..6) {
        for method in [AnyMethod::from(case.settings), StructuredSet.into()] {
            let mask = match case.update(&*method.with_group(group).unwrap()) {
                Ok(mask) => mask,
                Err(Error::FanInZero { .. }) => continue,
                Err(other) => panic!("{other}"),
            };
            prop_assert!(mask.nnz() <= case.target());
            for neuron in 0..case.neurons {
                prop_assert!(mask.inputs(neuron).eq(mask.inputs(neuron / group * group)));
            }
        }
    }

    #[test]
    fn a_group_of_one_is_the_method_itself(case in cases()) {
        let method = AnyMethod::from(case.settings);
        let one = method.clone().with_group(1).unwrap();
        prop_assert_eq!(case.update(&*one), case.update(&case.settings));
        prop_assert_eq!(one.settings(), method.settings());
    }

    #[test]
    fn structured_set_keeps_the_largest_and_the_fan_in(case in cases()) {
        let alive = case.active.chunks(case.m).filter(|row| row.contains(&1)).count();
        let mask = match case.update(&StructuredSet) {
            Ok(mask) => mask,
            Err(error) => {
                let is_empty = matches!(error, Error::FanInZero { .. });
                prop_assert!(is_empty && (alive == 0 || case.target() < alive), "{error}");
                return Ok(());
            }
        };
        let fan_in = (case.target() / alive).min(case.m);
        let kept = kept(&case);
        for neuron in 0..case.neurons {
            let row = neuron * case.m..(neuron + 1) * case.m;
            let was_alive = case.active[row.clone()].contains(&1);
            prop_assert_eq!(mask.fan_in(neuron), if was_alive { fan_in } else { 0 });
            let stay = top(&case.weights, row.filter(|p| kept.contains(p)), fan_in);
            prop_assert!(stay.into_iter().all(|p| mask.is_active(neuron, p % case.m)));
        }
    }

    #[test]
    fn gmp_prunes_the_smallest_to_the_sparsity(case in cases()) {
        let active = (0..case.active.len()).filter(|p| case.active[*p] == 1);
        match case.update(&Gmp) {
            Ok(mask) => prop_assert_eq!(mask.to_bytes(), bytes(&top(&case.weights, active, case.target()), case.active.len())),
            Err(error) => prop_assert!(case.target() == 0, "{error}"),
        }
    }

    #[test]
    fn mest_drops_by_weight_and_gradient(case in cases(), lambda in 0.0f64..2.0) {
        let scores: Vec<f32> = case.weights.iter().zip(&case.grads).map(|(w, g)| w.abs() + lambda as f32 * g.abs()).collect();
        let (n, dropped) = case.active_and_dropped();
        let active = (0..case.active.len()).filter(|p| case.active[*p] == 1);
        let stay = top(&scores, active, n - dropped);
        let mask = case.update(&Mest { lambda }).unwrap();
        prop_assert_eq!(mask.nnz(), n);
        prop_assert!(stay.iter().all(|p| mask.is_active(p / case.m, p % case.m)));
        // Without gradients it is SET.
        prop_assert_eq!(case.update(&Mest { lambda: 0.0 }), case.update(&Set));
    }

    #[test]
    fn snfs_grows_to_what_it_is_given(case in cases()) {
        let mask = case.update(&Snfs).unwrap();
        let stay = kept(&case);
        let free = (0..case.active.len()).filter(|p| !stay.contains(p));
        let grown = top(&case.grads, free, case.target().saturating_sub(stay.len()));
        prop_assert_eq!(mask.to_bytes(), bytes(&(&stay | &grown), case.active.len()));
    }

    #[test]
    fn top_kast_sees_all_weights(case in cases(), backward in 1.0f64..4.0) {
        let method = TopKast { backward, ..TopKast::default() };
        let mask = case.update(&method).unwrap();
        let all = 0..case.active.len();
        prop_assert_eq!(mask.to_bytes(), bytes(&top(&case.weights, all.clone(), case.target()), all.len()));
        let GradientPositions::Superset(superset) = method.gradient_positions(&mask, case.sparsity, &|| case.weights.clone()) else {
            panic!("a superset");
        };
        let larger = ((mask.nnz() as f64 * backward).floor() as usize).min(all.len());
        prop_assert_eq!(superset.to_bytes(), bytes(&top(&case.weights, all.clone(), larger), all.len()));
        prop_assert_eq!(mask.count_not_in(&superset), 0);
    }

    #[test]
    fn sr_ste_projects_all_weights(case in cases(), nm in pattern()) {
        let (n, m) = numbers(nm);
        let mask = case.update(&SrSte { nm, ..SrSte::default() }).unwrap();
        let largest: BTreeSet<usize> =
            groups(&case, n, m).into_iter().flat_map(|(group, room)| top(&case.weights, group, room)).collect();
        prop_assert_eq!(mask.to_bytes(), bytes(&largest, case.active.len()));
    }

    #[test]
    fn redistribution_loses_no_weight_and_overfills_no_layer(
        layers in proptest::collection::vec((1usize..200, 0.0..1.0, 0.0..1.0, prop_oneof![Just(0.0), 0.0..3.0]), 1..6),
    ) {
        let shares: Vec<LayerShare> = layers.iter().map(|&(positions, active, kept, importance)| {
            let active = (positions as f64 * active) as usize;
            LayerShare { positions, active, kept: (active as f64 * kept) as usize, importance }
        }).collect();
        let weights = Snfs.redistribute(&shares).unwrap();
        prop_assert_eq!(weights.iter().sum::<usize>(), shares.iter().map(|s| s.active).sum::<usize>());
        for (share, weights) in shares.iter().zip(&weights) {
            prop_assert!((share.kept..=share.positions).contains(weights));
        }
    }
}

/// `n` and `m`.
fn numbers(nm: NmPattern) -> (usize, usize) {
    let text = nm.to_string();
    let (n, m) = text.split_once(':').unwrap();
    (n.parse().unwrap(), m.parse().unwrap())
}

#[test]
fn shares_are_those_of_the_mean_momentum() {
    let share = |positions, active, kept, importance| LayerShare { positions, active, kept, importance };
    // Of 30 + 30 dropped, the layers get a quarter and three quarters.
    let shares = [share(1000, 100, 70, 1.0), share(1000, 100, 70, 3.0)];
    assert_eq!(Snfs.redistribute(&shares), Some(vec![85, 115]));
    // The second has room for 10 alone; the others share the rest.
    let shares = [share(1000, 100, 70, 1.0), share(80, 75, 70, 6.0), share(1000, 100, 70, 1.0)];
    assert_eq!(Snfs.redistribute(&shares), Some(vec![98, 80, 97]));
    assert_eq!(Snfs.redistribute(&[]), Some(vec![]));
    assert_eq!(Rigl.redistribute(&shares), None);
    // No momentum anywhere: evenly.
    assert_eq!(Snfs.redistribute(&[share(50, 20, 10, 0.0), share(50, 20, 10, 0.0)]), Some(vec![20, 20]));
}

/// Numbers that say where they are.
fn signal(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64).map(|i| (((i + 1) * (seed * 2 + 7919)) % 997) as f32 / 498.5 - 1.0).collect()
}

#[test]
fn weights_move_between_layers_in_one_update_of_a_model() {
    let masks = [1, 2].map(|seed| {
        let active: Vec<u8> = (0..200).map(|i| u8::from((i + seed) % 5 == 0)).collect();
        Mask::from_bytes(10, 20, &active).unwrap()
    });
    let weights = [signal(1, 200), signal(2, 200)];
    // The second layer's gradients are nine times as large.
    let grads = [signal(3, 200), signal(3, 200).into_iter().map(|g| 9.0 * g).collect()];
    let layer = |i: usize| Layer {
        name: "fc",
        weights: &weights[i],
        grads: &grads[i],
        mask: &masks[i],
        sparsity: 0.8,
        ablate: true,
    };
    let layers = [layer(0), Layer { sparsity: 0.0, ..layer(0) }, layer(1)];
    let sparsities = redistributed_sparsities(&Snfs, 0.5, &layers).unwrap();
    assert_eq!(sparsities[1], 0.0);
    let counts = [0, 2].map(|i| target_weights(200, sparsities[i]));
    assert_eq!(counts.iter().sum::<usize>(), 80);
    assert!(counts[0] < 27 && counts[1] > 53, "{counts:?}");
    let updates = update_topology(&Snfs, 0.5, &layers, 1, 100).unwrap();
    assert_eq!([0, 2].map(|i| updates[i].mask.nnz()), counts);
    assert_eq!(updates[1].mask, masks[0]);
    // Nothing moves by other methods.
    assert_eq!(redistributed_sparsities(&Rigl, 0.5, &layers).unwrap(), [0.8, 0.0, 0.8]);
    let updates = update_topology(&Rigl, 0.5, &layers, 1, 100).unwrap();
    assert_eq!([0, 2].map(|i| updates[i].mask.nnz()), [40, 40]);
}

#[test]
fn gmp_follows_the_cube() {
    let at = |progress| Gmp.sparsity_at(0.9, progress);
    assert_eq!([at(0.0), at(1.0)], [0.0, 0.9]);
    assert!((at(0.5) - 0.9 * 0.875).abs() < 1e-12);
    assert_eq!(Rigl.sparsity_at(0.9, 0.0), 0.9);
    let layer = LayerSpec::new("fc", [3, 4]).unwrap();
    assert_eq!(Gmp.initial_mask(&layer, 0.9, STREAM).unwrap(), Mask::full(3, 4));
    assert_eq!(Gmp.magnitude_mask(&layer, &[1.0; 12], 0.9).unwrap(), Mask::full(3, 4));
}

#[test]
fn random_inputs_of_a_group_are_all_as_likely() {
    let layer = LayerSpec::new("fc", [1, 10]).unwrap();
    let set = AnyMethod::from(Set).with_nm(NmPattern::TWO_OF_FOUR).unwrap();
    let mask = Mask::from_bytes(1, 10, &[1, 1, 0, 0, 0, 1, 1, 0, 1, 1]).unwrap();
    // 6 weights, 2 dropped: the second of the first group and the second of the second.
    let weights = [9.0, 1.0, 0.0, 0.0, 0.0, 8.0, 2.0, 0.0, 7.0, 6.0];
    let of =
        Layer { name: "fc", weights: &weights, grads: &weights, mask: &mask, sparsity: 0.4, ablate: false };
    let (mut grown, mut drawn) = ([0; 10], [0; 10]);
    for step in 0..3000 {
        let stream = Stream { step, ..STREAM };
        let new = update_layer(&*set, 0.34, &of, stream).unwrap().mask;
        new.inputs(0).for_each(|input| grown[input] += 1);
        set.initial_mask(&layer, 0.5, stream).unwrap().inputs(0).for_each(|input| drawn[input] += 1);
    }
    assert_eq!([0, 5, 8, 9].map(|i| grown[i]), [3000; 4]);
    // Binomial(3000, 1/3): mean 1000, standard deviation 26; and 1500, 27.
    assert!([1, 2, 3, 4, 6, 7].iter().all(|&i| usize::abs_diff(grown[i], 1000) < 130), "{grown:?}");
    assert!((0..8).all(|i| usize::abs_diff(drawn[i], 1500) < 140) && drawn[8..] == [3000; 2], "{drawn:?}");
}

/// A layer whose dense gradient is looked at in two blocks.
#[test]
fn groups_of_all_neurons_are_filled() {
    let (neurons, inputs) = (6, 1 << 16);
    let mask = Mask::empty(neurons, inputs);
    let weights = vec![0.0; neurons * inputs];
    let grads: Vec<f32> =
        (0..neurons * inputs).map(|position| ((position / inputs + position) % 4) as f32).collect();
    let layer =
        Layer { name: "fc", weights: &weights, grads: &grads, mask: &mask, sparsity: 0.5, ablate: false };
    let method = AnyMethod::from(Rigl).with_nm(NmPattern::TWO_OF_FOUR).unwrap();
    let mask = update_layer(&*method, 0.3, &layer, STREAM).unwrap().mask;
    for neuron in 0..neurons {
        assert!(
            (0..inputs).all(|input| mask.is_active(neuron, input) == ((neuron + input) % 4 > 1)),
            "{neuron}"
        );
    }
}

/// By |W · G| over both layers.
#[test]
fn sensitivity_is_shared_by_all_layers() {
    let layers = ["a", "b"].map(|name| LayerSpec::new(name, [2, 4]).unwrap());
    let products =
        [vec![9.0, -8.0, 0.1, 0.2, 7.0, 0.3, 0.4, 6.0], vec![0.5, 5.0, 0.6, 0.7, 0.8, 0.01, 0.02, -0.9]];
    let masks =
        initial_masks(&Rigl, &layers, &products, InitialMask::Sensitivity, (0.625, Default::default()), 0)
            .unwrap();
    let bytes: Vec<Vec<u8>> = masks.iter().map(|(_, mask)| mask.to_bytes()).collect();
    assert_eq!(bytes, [[1, 1, 0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0, 1]]);
}

/// MEST is the only one that looks at gradients of active weights, and they are checked.
#[test]
fn gradients_of_active_weights_are_checked() {
    let mask = &Mask::from_bytes(1, 4, &[1, 0, 1, 0]).unwrap();
    let update = |grads: &[f32]| {
        let layer = ActiveLayer {
            name: "fc",
            values: &[1.0, 2.0],
            mask,
            sparsity: 0.5,
            ablate: true,
            grads,
            members: Members::default(),
        };
        update_active_layer(&Mest::default(), 0.5, &layer, DenseGradient::All(&[0.0; 4]), STREAM)
    };
    assert_eq!(
        update(&[1.0]).unwrap_err(),
        Error::Length { layer: "fc".into(), what: "active gradient", expected: 2, got: 1 }
    );
    let wrong = update(&[1.0, f32::INFINITY]).unwrap_err();
    assert!(matches!(wrong, Error::NotFinite { what: "gradient", neuron: 0, input: 2, .. }));
    assert!(update(&[1.0, 1.0]).is_ok());
}

#[test]
fn settings_of_all_methods_are_checked() {
    let refused = |method: &dyn Method| matches!(method.check(), Err(Error::Setting { .. }));
    for wrong in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(&Mest { lambda: wrong }) && refused(&SrSte { decay: wrong, ..SrSte::default() }));
        assert!(refused(&TopKast { decay: wrong, ..TopKast::default() }));
        assert!(refused(&TopKast { backward: wrong, ..TopKast::default() }));
    }
    assert!(refused(&TopKast { backward: 0.99, ..TopKast::default() }));
    assert!(TopKast { backward: 1.0, decay: 0.0 }.check().is_ok());
    // A structure around a method does not hide them.
    let wrong = || AnyMethod::from(Srigl { gamma_sal: -1.0, ..Srigl::default() });
    assert!(refused(&*wrong().with_group(2).unwrap()));
    assert!(refused(&*wrong().with_nm(NmPattern::TWO_OF_FOUR).unwrap()));
    assert_eq!(TopKast::default().inactive_decay(0.9), 1e-4 / (1.0 - 0.9));
    assert_eq!(SrSte::default().inactive_decay(0.5), 2e-4);
}
