//! Layers that train, against plain sums in double precision and PyTorch's autograd (`fixtures/training.py`): random shapes,
//! every instruction set, any number of threads.

use condensed::training::{Layer, Scratch};
use condensed::{Error, FanIn, Isa, Pattern, Shape, Window};
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

/// Every `group` neurons that are not ablated read the same `fan_in` inputs, the last ones maybe fewer.
fn grouped([neurons, inputs, fan_in, group]: [usize; 4], rng: &mut SmallRng) -> Pattern {
    let mut mask = vec![false; neurons * inputs];
    let mut active: Vec<_> = mask.chunks_mut(inputs.max(1)).filter(|_| rng.random_bool(0.9)).collect();
    for rows in active.chunks_mut(group) {
        let read = rand::seq::index::sample(rng, inputs, fan_in.min(inputs));
        rows.iter_mut().for_each(|row| read.iter().for_each(|input| row[input] = true));
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

/// A layer, and all that a step of it reads.
struct Case {
    pattern: Pattern,
    /// Window, groups and shape of an image; a linear layer has none.
    conv: Option<(Window, usize, Shape)>,
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
    fn linear(pattern: Pattern, batch: usize, rng: &mut SmallRng) -> Self {
        Self::new(pattern, None, batch, rng)
    }

    fn conv(
        (window, groups, input): (Window, usize, Shape),
        (filters, fan_in): (usize, Option<usize>),
        batch: usize,
        rng: &mut SmallRng,
    ) -> Self {
        let inputs = input.features / groups * window.kernel[0] * window.kernel[1];
        Self::new(pattern(filters, inputs, fan_in, rng), Some((window, groups, input)), batch, rng)
    }

    fn new(pattern: Pattern, conv: Option<(Window, usize, Shape)>, batch: usize, rng: &mut SmallRng) -> Self {
        let (values, bias) = (floats(pattern.len(), rng), floats(pattern.neurons(), rng));
        let mut case = Self { pattern, conv, batch, values, bias, x: vec![], dy: vec![] };
        let (_, _, input, [height, width]) = case.geometry();
        case.x = floats(batch * input.len(), rng);
        case.dy = floats(batch * case.pattern.neurons() * height * width, rng);
        case
    }

    /// Window, groups, shape of a sample, rows and columns of the result.
    fn geometry(&self) -> (Window, usize, Shape, [usize; 2]) {
        let point = Window { kernel: [1; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let vector = Shape { features: self.pattern.inputs(), height: 1, width: 1 };
        let (window, groups, input) = self.conv.unwrap_or((point, 1, vector));
        (window, groups, input, window.output_size(input).unwrap())
    }

    fn layer(&self, isa: Isa) -> Layer {
        let pattern = &self.pattern;
        match self.conv {
            None => Layer::linear_with_isa(pattern, isa).unwrap(),
            Some((window, groups, input)) => {
                Layer::conv2d_with_isa(pattern, window, groups, input, isa).unwrap()
            }
        }
    }

    /// By the definition.
    fn plainly(&self) -> Step<f64> {
        let Self { pattern, batch, values, bias, x, dy, .. } = self;
        let (window, groups, input, [height, width]) = self.geometry();
        let (neurons, inputs) = (pattern.neurons(), pattern.inputs());
        let mut of_input = vec![None; neurons * inputs];
        for (row, &neuron) in pattern.active().iter().enumerate() {
            for (input, place) in pattern.row(row) {
                of_input[neuron as usize * inputs + input] = Some(place);
            }
        }
        let mut step = Step {
            y: vec![0.0; dy.len()],
            dx: vec![0.0; x.len()],
            dvalues: vec![0.0; values.len()],
            dbias: vec![0.0; neurons],
            dense: vec![0.0; neurons * inputs],
        };
        let [rows, columns] = window.kernel;
        let channels = input.features / groups;
        let inside = |axis: usize, window_at: usize, tap: usize, size: usize| {
            let at = window_at * window.stride[axis] + tap * window.dilation[axis];
            at.checked_sub(window.padding[axis]).filter(|at| *at < size)
        };
        for (result, &dy) in dy.iter().enumerate() {
            let (column, row) = (result % width, result / width % height);
            let (neuron, b) = (result / (width * height) % neurons, result / (width * height * neurons));
            step.y[result] += f64::from(bias[neuron]);
            step.dbias[neuron] += f64::from(dy);
            for weight in 0..inputs {
                let (channel, tap) = (weight / (rows * columns), weight % (rows * columns));
                let channel = neuron / (neurons / groups) * channels + channel;
                let row = inside(0, row, tap / columns, input.height);
                let column = inside(1, column, tap % columns, input.width);
                let (Some(row), Some(column)) = (row, column) else { continue };
                let at = ((b * input.features + channel) * input.height + row) * input.width + column;
                let product = f64::from(dy) * f64::from(x[at]);
                step.dense[neuron * inputs + weight] += product;
                if let Some(place) = of_input[neuron * inputs + weight] {
                    step.y[result] += f64::from(values[place]) * f64::from(x[at]);
                    step.dx[at] += f64::from(values[place]) * f64::from(dy);
                    step.dvalues[place] += product;
                }
            }
        }
        assert_eq!(*batch * neurons * height * width, dy.len());
        step
    }

    fn run(&self, layer: &Layer, scratch: &mut Scratch) -> Step<f32> {
        let Self { pattern, batch, values, bias, x, dy, .. } = self;
        let (neurons, inputs) = (pattern.neurons(), pattern.inputs());
        // What was there before does not matter, but for the gradient that is added to.
        let nan = |count: usize| vec![f32::NAN; count];
        let mut step = Step {
            y: nan(dy.len()),
            dx: nan(x.len()),
            dvalues: nan(values.len()),
            dbias: nan(neurons),
            dense: vec![0.0; neurons * inputs],
        };
        layer.forward(values, Some(bias), *batch, x, &mut step.y, scratch).unwrap();
        layer.backward(values, *batch, x, dy, Some(&mut step.dx), &mut step.dvalues, scratch).unwrap();
        layer.bias_gradient(*batch, dy, &mut step.dbias);
        let (first, second) = step.dense.split_at_mut(neurons / 2 * inputs);
        let pass = layer.lay_out(*batch, x, dy).unwrap();
        let all: Vec<usize> = (0..neurons).collect();
        layer.add_dense_gradient(&all[..neurons / 2], &pass, first);
        layer.add_dense_gradient(&all[neurons / 2..], &pass, second);
        // Some of them alone.
        for step_by in 2..5 {
            let some: Vec<usize> = all.iter().copied().skip(step_by % 2).step_by(step_by).collect();
            let mut rows = vec![0.0; some.len() * inputs];
            layer.add_dense_gradient(&some, &pass, &mut rows);
            let expected = some.iter().flat_map(|neuron| &step.dense[neuron * inputs..][..inputs]);
            assert_close(&rows, &expected.map(|g| f64::from(*g)).collect::<Vec<_>>(), "some rows");
        }
        step
    }

    fn check(&self) {
        let want = self.plainly();
        for isa in Isa::all() {
            let layer = self.layer(isa);
            let scratch = &mut Scratch::default();
            // Twice: the second time with memory that has been used.
            for _ in 0..2 {
                let got = self.run(&layer, scratch);
                assert_close(&got.y, &want.y, &format!("{isa:?} y"));
                assert_close(&got.dx, &want.dx, &format!("{isa:?} dx"));
                assert_close(&got.dvalues, &want.dvalues, &format!("{isa:?} dvalues"));
                assert_close(&got.dbias, &want.dbias, &format!("{isa:?} dbias"));
                assert_close(&got.dense, &want.dense, &format!("{isa:?} dense"));
            }
            // Whoever does not ask for the gradient by the input gets the other.
            let mut dvalues = vec![f32::NAN; self.values.len()];
            layer.backward(&self.values, self.batch, &self.x, &self.dy, None, &mut dvalues, scratch).unwrap();
            assert_close(&dvalues, &want.dvalues, &format!("{isa:?} dvalues alone"));
            let mut y = vec![f32::NAN; want.y.len()];
            layer.forward(&self.values, None, self.batch, &self.x, &mut y, scratch).unwrap();
            let positions = (want.y.len() / (self.batch * self.bias.len()).max(1)).max(1);
            let bias = self.bias.iter().flat_map(|bias| std::iter::repeat_n(bias, positions)).cycle();
            let without: Vec<f64> = want.y.iter().zip(bias).map(|(y, b)| y - f64::from(*b)).collect();
            assert_close(&y, &without, &format!("{isa:?} without bias"));
        }
    }
}

/// Numbers of `fixtures/training.py`.
fn hashed(name: &str, count: usize) -> Vec<f32> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let number = |i: u64| {
        let mixed = seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(number).collect()
}

/// A case of `fixtures/training.json`.
#[derive(serde::Deserialize)]
struct Recorded {
    batch: usize,
    groups: usize,
    filters: usize,
    window: Window,
    input: Shape,
    y: Vec<f64>,
    dx: Vec<f64>,
    dweight: Vec<f64>,
    dbias: Vec<f64>,
}

#[test]
#[cfg_attr(miri, ignore = "many cases")]
fn steps_are_those_of_pytorch() {
    let recorded: Vec<Recorded> = serde_json::from_str(include_str!("fixtures/training.json")).unwrap();
    assert_eq!(recorded.len(), 20);
    for (index, want) in recorded.into_iter().enumerate() {
        let Recorded { batch, groups, filters, window, input, .. } = want;
        let hashed = |what: &str, count| hashed(&format!("{index} {what}"), count);
        let inputs = input.features / groups * window.kernel[0] * window.kernel[1];
        let mask: Vec<bool> = hashed("mask", filters * inputs).iter().map(|number| *number < -0.2).collect();
        let at_mask = |all: Vec<f64>| -> Vec<f64> {
            all.into_iter().zip(&mask).filter(|(_, active)| **active).map(|(number, _)| number).collect()
        };
        let weights = hashed("weight", filters * inputs).into_iter().map(f64::from).collect();
        let is_vector = input.positions() == 1 && window.kernel == [1, 1];
        let case = Case {
            pattern: Pattern::from_mask(&mask, filters, inputs).unwrap(),
            conv: (!is_vector).then_some((window, groups, input)),
            batch,
            values: at_mask(weights).into_iter().map(|value| value as f32).collect(),
            bias: hashed("bias", filters),
            x: hashed("x", want.dx.len()),
            dy: hashed("dy", want.y.len()),
        };
        for isa in Isa::all() {
            let got = case.run(&case.layer(isa), &mut Scratch::default());
            assert_close(&got.y, &want.y, &format!("case {index}, {isa:?} y"));
            assert_close(&got.dx, &want.dx, &format!("case {index}, {isa:?} dx"));
            assert_close(&got.dense, &want.dweight, &format!("case {index}, {isa:?} dense"));
            let dvalues = at_mask(want.dweight.clone());
            assert_close(&got.dvalues, &dvalues, &format!("case {index}, {isa:?} dvalues"));
            assert_close(&got.dbias, &want.dbias, &format!("case {index}, {isa:?} dbias"));
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
        Case::linear(pattern(neurons, inputs, fan_in, rng), batch, rng).check();
    }

    #[test]
    fn linear_layers_that_share_inputs(
        size in [1_usize..300, 1_usize..300, 1_usize..40],
        group in prop::sample::select(vec![2_usize, 3, 4, 5, 8, 16]),
        batch in 0_usize..150,
        seed: u64,
    ) {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let ([neurons, inputs, fan_in], batch) =
            if cfg!(miri) { (size.map(|size| size / 16 + 1), batch / 8) } else { (size, batch) };
        Case::linear(grouped([neurons, inputs, fan_in, group], rng), batch, rng).check();
    }

    #[test]
    fn convolutions_that_share_inputs(
        (groups, channels, filters) in (1_usize..3, 1_usize..9, 1_usize..20),
        kernel in [1_usize..4, 1_usize..4],
        stride in [1_usize..4, 1_usize..4],
        padding in [0_usize..3, 0_usize..3],
        dilation in [1_usize..3, 1_usize..3],
        more in [0_usize..9, 0_usize..20],
        fan_in in 1_usize..12,
        group in prop::sample::select(vec![2_usize, 3, 4, 8, 16]),
        batch in 0_usize..40,
        seed: u64,
    ) {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let size: [usize; 2] = std::array::from_fn(|axis| {
            let least = (kernel[axis] - 1) * dilation[axis] + 1;
            least.saturating_sub(2 * padding[axis]).max(1) + more[axis]
        });
        let input = Shape { features: groups * channels, height: size[0], width: size[1] };
        let window = Window { kernel, stride, padding, dilation };
        let batch = if cfg!(miri) { batch / 20 } else { batch };
        let pattern = grouped([groups * filters, channels * kernel[0] * kernel[1], fan_in, group], rng);
        Case::new(pattern, Some((window, groups, input)), batch, rng).check();
    }

    #[test]
    fn convolutions(
        (groups, channels, filters) in (1_usize..4, 0_usize..9, 0_usize..9),
        kernel in [1_usize..5, 1_usize..5],
        stride in [1_usize..5, 1_usize..5],
        padding in [0_usize..4, 0_usize..4],
        dilation in [1_usize..4, 1_usize..4],
        more in [0_usize..9, 0_usize..20],
        fan_in in proptest::option::of(1_usize..12),
        batch in 0_usize..40,
        seed: u64,
    ) {
        let rng = &mut SmallRng::seed_from_u64(seed);
        // Images are at least as large as the window, less its padding.
        let size: [usize; 2] = std::array::from_fn(|axis| {
            let least = (kernel[axis] - 1) * dilation[axis] + 1;
            least.saturating_sub(2 * padding[axis]).max(1) + more[axis]
        });
        let input = Shape { features: groups * channels, height: size[0], width: size[1] };
        let window = Window { kernel, stride, padding, dilation };
        let batch = if cfg!(miri) { batch / 20 } else { batch };
        Case::conv((window, groups, input), (groups * filters, fan_in), batch, rng).check();
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn offsets_of_every_width() {
    let rng = &mut SmallRng::seed_from_u64(3);
    // Few weights in many inputs are one block, whose offsets are wide.
    for (neurons, inputs, fan_in) in [(40, 3000, 3), (3, 70_000, 2), (70_000, 3, 1), (130, 257, 200)] {
        Case::linear(pattern(neurons, inputs, Some(fan_in), rng), 9, rng).check();
    }
}

/// Many neurons are several parts, large images several bands.
#[test]
#[cfg_attr(miri, ignore = "too large")]
fn large_convolutions() {
    let rng = &mut SmallRng::seed_from_u64(5);
    let window = |stride| Window { kernel: [3; 2], stride: [stride; 2], padding: [1; 2], dilation: [1; 2] };
    for (stride, channels, filters, size, batch) in
        [(1, 40, 150, 20, 9), (2, 150, 20, 33, 3), (1, 2, 3, 80, 2)]
    {
        let input = Shape { features: channels, height: size, width: size };
        Case::conv((window(stride), 1, input), (filters, Some(10)), batch, rng).check();
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn steps_do_not_depend_on_the_number_of_threads() {
    let rng = &mut SmallRng::seed_from_u64(4);
    let mut cases: Vec<Case> = [(500, 700, 200), (1000, 30, 3), (30, 1000, 64)]
        .map(|(neurons, inputs, batch)| Case::linear(pattern(neurons, inputs, Some(25), rng), batch, rng))
        .into();
    let window = Window { kernel: [3; 2], stride: [2, 1], padding: [1; 2], dilation: [1; 2] };
    let input = Shape { features: 16, height: 13, width: 9 };
    cases.push(Case::conv((window, 1, input), (140, Some(20)), 70, rng));
    for (group, batch) in [(2, 100), (4, 200), (16, 300)] {
        cases.push(Case::linear(grouped([300, 700, 70, group], rng), batch, rng));
        cases.push(Case::new(grouped([140, 144, 20, group], rng), Some((window, 1, input)), 70, rng));
    }
    for case in cases {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let step = pool.install(|| case.run(&case.layer(Isa::best()), &mut Scratch::default()));
            [step.y, step.dx, step.dvalues, step.dbias, step.dense]
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
        let (layer, scratch) = (Layer::linear_with_isa(&pattern, isa).unwrap(), &mut Scratch::default());
        let mut y = [0.0; 4];
        layer.forward(&values, None, 2, &[1.0, nan, inf, 1.0], &mut y, scratch).unwrap();
        assert!(y[0] == 2.0 && y[1].is_nan() && y[2] == inf && y[3] == inf, "{isa:?}: {y:?}");
        let (mut dx, mut dvalues) = ([0.0; 4], [0.0; 3]);
        let dy = [nan, 1.0, 1.0, 1.0];
        layer.backward(&values, 2, &[1.0; 4], &dy, Some(&mut dx), &mut dvalues, scratch).unwrap();
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
    let same = Pattern::from_rows(4, 3, [vec![0, 2], vec![], vec![0, 2], vec![0, 1]]).unwrap();
    assert_eq!((same.group(), same.indices().len(), same.len(), same.bytes()), (2, 4, 6, 4 + 12));
    assert_eq!(format!("{same:?}"), "{ neurons: 4, active: 3, fan_in: 2, group: 2, inputs: 3, weights: 6 }");
    assert_eq!((0..6).map(|place| same.input(place)).collect::<Vec<_>>(), [0, 2, 0, 2, 0, 1]);
    assert_eq!(same.row(2).collect::<Vec<_>>(), [(0, 4), (1, 5)]);
    // Runs of 2, 4 and 3 rows are groups of 2, as are those of 2 and 3; of 2, 1 and 2 there are none. A matrix may be one group.
    let group =
        |rows: &[u32]| Pattern::from_rows(rows.len(), 9, rows.iter().map(|row| [*row])).unwrap().group();
    assert_eq!(group(&[1, 1, 2, 2, 2, 2, 3, 3, 3]), 2);
    assert_eq!([group(&[1, 1, 2, 2, 2]), group(&[1, 1, 2, 3, 3]), group(&[4; 5]), group(&[4])], [2, 1, 5, 1]);
    let pattern = Pattern::from_mask(&[true, false, false, false, true, true], 3, 2).unwrap();
    assert_eq!(format!("{pattern:?}"), "{ neurons: 3, active: 2, fan_in: varies, inputs: 2, weights: 3 }");
    assert_eq!((pattern.active(), pattern.len(), pattern.bytes()), (&[0, 2][..], 3, 3 + 8 + 12));
}

#[test]
fn what_does_not_fit_a_layer_panics() {
    let rng = &mut SmallRng::seed_from_u64(9);
    let case = Case::linear(pattern(4, 6, Some(2), rng), 3, rng);
    let layer = case.layer(Isa::best());
    let fits = |values: usize, x: usize, y: usize| {
        let run = || {
            let scratch = &mut Scratch::default();
            layer.forward(&vec![1.0; values], None, 3, &vec![1.0; x], &mut vec![0.0; y], scratch).unwrap();
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok()
    };
    let weights = layer.weights();
    assert!(fits(weights, 18, 12));
    assert!(!fits(weights + 1, 18, 12) && !fits(weights, 17, 12) && !fits(weights, 18, 13));
    let pass = layer.lay_out(3, &case.x, &case.dy).unwrap();
    let takes = |neurons: &[usize]| {
        let run = || layer.add_dense_gradient(neurons, &pass, &mut vec![0.0; neurons.len() * 6]);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok()
    };
    assert!(takes(&[0, 3]) && takes(&[]));
    assert!(!takes(&[0, 4]) && !takes(&[3, 0]) && !takes(&[2, 2]));
}
