//! Layers that train, against plain sums in double precision: random shapes, every instruction set, any number of threads.

use condensed::training::Linear;
use condensed::{Error, FanIn, Isa, Pattern};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Few cases under Miri, which is slow.
fn cases() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 150 })
    }
}

/// Every row has `fan_in` weights, or a random number of them; some rows none.
fn pattern(neurons: usize, inputs: usize, fan_in: Option<usize>, rng: &mut SmallRng) -> Pattern {
    let mut mask = vec![false; neurons * inputs];
    for row in mask.chunks_mut(inputs.max(1)).filter(|_| rng.random_bool(0.9)).collect::<Vec<_>>() {
        let k = fan_in.unwrap_or_else(|| rng.random_range(0..=inputs)).min(inputs);
        rand::seq::index::sample(rng, inputs, k).into_iter().for_each(|input| row[input] = true);
    }
    Pattern::from_mask(&mask, neurons, inputs).unwrap()
}

fn floats(count: usize, rng: &mut SmallRng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Relative error of the whole result.
fn assert_close(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
    let norm: f64 = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    assert!(error <= 1e-5 * norm + 1e-6, "{what}: error {error} of {norm}");
}

/// All that a step of a linear layer reads.
struct Case {
    pattern: Pattern,
    batch: usize,
    values: Vec<f32>,
    bias: Vec<f32>,
    x: Vec<f32>,
    dy: Vec<f32>,
}

/// All that it computes.
#[derive(Debug, PartialEq)]
struct Step<T> {
    y: Vec<T>,
    dx: Vec<T>,
    dvalues: Vec<T>,
    dbias: Vec<T>,
    dense: Vec<T>,
}

impl Case {
    fn new(pattern: Pattern, batch: usize, rng: &mut SmallRng) -> Self {
        let (neurons, inputs) = (pattern.neurons(), pattern.inputs());
        let values = floats(pattern.len(), rng);
        let [bias, x, dy] = [neurons, batch * inputs, batch * neurons].map(|count| floats(count, rng));
        Self { pattern, batch, values, bias, x, dy }
    }

    /// By the definition.
    fn plainly(&self) -> Step<f64> {
        let Self { pattern, batch, values, bias, x, dy } = self;
        let (neurons, inputs) = (pattern.neurons(), pattern.inputs());
        let mut step = Step {
            y: bias.repeat(*batch).into_iter().map(f64::from).collect(),
            dx: vec![0.0; x.len()],
            dvalues: vec![0.0; values.len()],
            dbias: vec![0.0; neurons],
            dense: vec![0.0; neurons * inputs],
        };
        for b in 0..*batch {
            for (row, &neuron) in pattern.active().iter().enumerate() {
                let result = b * neurons + neuron as usize;
                for place in pattern.row_range(row) {
                    let input = b * inputs + pattern.indices().get(place);
                    step.y[result] += f64::from(values[place]) * f64::from(x[input]);
                    step.dx[input] += f64::from(values[place]) * f64::from(dy[result]);
                    step.dvalues[place] += f64::from(dy[result]) * f64::from(x[input]);
                }
            }
            for neuron in 0..neurons {
                let dy = f64::from(dy[b * neurons + neuron]);
                step.dbias[neuron] += dy;
                for input in 0..inputs {
                    step.dense[neuron * inputs + input] += dy * f64::from(x[b * inputs + input]);
                }
            }
        }
        step
    }

    fn run(&self, layer: &mut Linear) -> Step<f32> {
        let Self { pattern, batch, values, bias, x, dy } = self;
        let (neurons, inputs) = (pattern.neurons(), pattern.inputs());
        // What was there before does not matter.
        let nan = |count: usize| vec![f32::NAN; count];
        let mut step = Step {
            y: nan(batch * neurons),
            dx: nan(batch * inputs),
            dvalues: nan(values.len()),
            dbias: nan(neurons),
            dense: nan(neurons * inputs),
        };
        layer.forward(values, Some(bias), *batch, x, &mut step.y).unwrap();
        layer.backward(values, *batch, x, dy, Some(&mut step.dx), &mut step.dvalues).unwrap();
        layer.bias_gradient(dy, &mut step.dbias);
        let (first, second) = step.dense.split_at_mut(neurons / 2 * inputs);
        layer.dense_gradient(0..neurons / 2, *batch, x, dy, first);
        layer.dense_gradient(neurons / 2..neurons, *batch, x, dy, second);
        step
    }

    fn check(&self) {
        let want = self.plainly();
        for isa in Isa::all() {
            let mut layer = Linear::with_isa(self.pattern.clone(), isa).unwrap();
            // Twice: the second time with memory that has been used.
            for _ in 0..2 {
                let got = self.run(&mut layer);
                assert_close(&got.y, &want.y, &format!("{isa:?} y"));
                assert_close(&got.dx, &want.dx, &format!("{isa:?} dx"));
                assert_close(&got.dvalues, &want.dvalues, &format!("{isa:?} dvalues"));
                assert_close(&got.dbias, &want.dbias, &format!("{isa:?} dbias"));
                assert_close(&got.dense, &want.dense, &format!("{isa:?} dense"));
            }
            // Whoever does not ask for the gradient by the input gets the other.
            let mut dvalues = vec![f32::NAN; self.values.len()];
            layer.backward(&self.values, self.batch, &self.x, &self.dy, None, &mut dvalues).unwrap();
            assert_close(&dvalues, &want.dvalues, &format!("{isa:?} dvalues alone"));
            let mut y = vec![f32::NAN; want.y.len()];
            layer.forward(&self.values, None, self.batch, &self.x, &mut y).unwrap();
            let bias = self.bias.iter().cycle();
            let without: Vec<f64> = want.y.iter().zip(bias).map(|(y, b)| y - f64::from(*b)).collect();
            assert_close(&y, &without, &format!("{isa:?} without bias"));
        }
    }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn linear_layers(
        neurons in 0_usize..300,
        inputs in 0_usize..300,
        fan_in in proptest::option::of(1_usize..40),
        batch in 0_usize..150,
        seed: u64,
    ) {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let (neurons, inputs, batch) =
            if cfg!(miri) { (neurons / 16, inputs / 16, batch / 8) } else { (neurons, inputs, batch) };
        Case::new(pattern(neurons, inputs, fan_in, rng), batch, rng).check();
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn offsets_of_every_width() {
    let rng = &mut SmallRng::seed_from_u64(3);
    // Few weights in many inputs are one block, whose offsets are wide.
    for (neurons, inputs, fan_in) in [(40, 3000, 3), (3, 70_000, 2), (70_000, 3, 1), (130, 257, 200)] {
        Case { dy: vec![], ..Case::new(pattern(neurons, inputs, Some(fan_in), rng), 0, rng) };
        let case = Case::new(pattern(neurons, inputs, Some(fan_in), rng), 9, rng);
        let (mut layer, want) = (Linear::new(case.pattern.clone()).unwrap(), case.plainly());
        let (mut y, mut dx) = (vec![0.0; want.y.len()], vec![0.0; want.dx.len()]);
        let mut dvalues = vec![0.0; want.dvalues.len()];
        layer.forward(&case.values, Some(&case.bias), 9, &case.x, &mut y).unwrap();
        layer.backward(&case.values, 9, &case.x, &case.dy, Some(&mut dx), &mut dvalues).unwrap();
        assert_close(&y, &want.y, "y");
        assert_close(&dx, &want.dx, "dx");
        assert_close(&dvalues, &want.dvalues, "dvalues");
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn steps_do_not_depend_on_the_number_of_threads() {
    let rng = &mut SmallRng::seed_from_u64(4);
    for (neurons, inputs, batch) in [(500, 700, 200), (1000, 30, 3), (30, 1000, 64)] {
        let case = Case::new(pattern(neurons, inputs, Some(25), rng), batch, rng);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let step = pool.install(|| case.run(&mut Linear::new(case.pattern.clone()).unwrap()));
            [step.y, step.dx, step.dvalues, step.dbias]
                .map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let alone = on(1);
        for threads in 2..=16 {
            assert!(on(threads) == alone, "{threads} threads");
        }
    }
}

#[test]
fn specials_are_passed_on_by_the_weights_that_read_them() {
    // The first neuron reads the first input, the second both.
    let pattern = Pattern::from_mask(&[true, false, true, true], 2, 2).unwrap();
    let (values, inf, nan) = ([2.0, 3.0, 4.0], f32::INFINITY, f32::NAN);
    for isa in Isa::all() {
        let mut layer = Linear::with_isa(pattern.clone(), isa).unwrap();
        let mut y = [0.0; 4];
        layer.forward(&values, None, 2, &[1.0, nan, inf, 1.0], &mut y).unwrap();
        assert!(y[0] == 2.0 && y[1].is_nan() && y[2] == inf && y[3] == inf, "{isa:?}: {y:?}");
        let (mut dx, mut dvalues) = ([0.0; 4], [0.0; 3]);
        let dy = [nan, 1.0, 1.0, 1.0];
        layer.backward(&values, 2, &[1.0; 4], &dy, Some(&mut dx), &mut dvalues).unwrap();
        assert!(dx[0].is_nan() && dx[1..] == [4.0, 5.0, 4.0], "{isa:?}: {dx:?}");
        assert!(dvalues[0].is_nan() && dvalues[1..] == [2.0, 2.0], "{isa:?}: {dvalues:?}");
    }
}

#[test]
fn patterns_are_checked() {
    let refused = |neurons, inputs, active: &[u32], fan_in, indices: &[u32]| {
        Pattern::new(neurons, inputs, active.to_vec(), fan_in, indices.to_vec()).unwrap_err().to_string()
    };
    let constant = FanIn::Constant;
    assert!(refused(2, 3, &[1, 0], constant(1), &[0, 0]).contains("ascend"));
    assert!(refused(2, 3, &[2], constant(1), &[0]).contains('2'));
    assert!(refused(2, 3, &[0], constant(2), &[1, 1]).contains("ascend"));
    assert!(refused(2, 3, &[0], constant(1), &[3]).contains('3'));
    assert!(refused(2, 3, &[0], FanIn::Varying(vec![0, 2]), &[1]).contains("pointers"));
    assert!(matches!(Pattern::from_mask(&[true], 1, 2), Err(Error::Weight(_))));
    let pattern = Pattern::from_mask(&[true, false, false, false, true, true], 3, 2).unwrap();
    assert_eq!(format!("{pattern:?}"), "{ neurons: 3, active: 2, fan_in: varies, inputs: 2, weights: 3 }");
    assert_eq!((pattern.active(), pattern.len(), pattern.bytes()), (&[0, 2][..], 3, 3 + 8 + 12));
}
