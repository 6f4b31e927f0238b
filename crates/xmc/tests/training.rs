//! Networks learn what was put into made-up points, and the same whatever the number of threads.

use condensed::training::LabelLoss;
use srigl_xmc::{
    Growth, Network, NetworkConfig, Points, Rankings, Training, TrainingConfig, inverse_propensities,
    synth::Plan,
};

fn points(plan: &Plan, seed: u64) -> Points {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    plan.write(seed, &mut file).unwrap();
    Points::read(file.path(), |_| {}).unwrap()
}

fn precision(network: &Network, test: &Points) -> f64 {
    let mut rankings = Rankings::new(1, inverse_propensities(&test.label_counts().unwrap(), test.len()));
    let all: Vec<usize> = (0..test.len()).collect();
    let batch = test.batch(&all).unwrap();
    for (point, best) in network.top(1, &batch).unwrap().into_iter().enumerate() {
        rankings.add(batch.labels(point), &best.iter().map(|(label, _)| *label).collect::<Vec<_>>());
    }
    rankings.precision()[0]
}

fn train(points: &Points, config: TrainingConfig) -> (Network, Vec<f64>) {
    let network =
        NetworkConfig { hidden: 128, fan_in: 16, seed: 1, ..Default::default() }.build(points).unwrap();
    let mut training = Training::new(network, config, points.len()).unwrap();
    let mut losses = Vec::new();
    while let Some(batch) = training.next() {
        losses.push(training.step(&points.batch(&batch).unwrap()).unwrap());
    }
    assert_eq!(losses.len() as u64, training.steps());
    (training.network().clone(), losses)
}

#[test]
fn made_up_labels_are_found_with_either_loss() {
    let plan = Plan { points: 3000, features: 600, labels: 150, ..Plan::default() };
    let (train_points, test) = (points(&plan, 1), points(&Plan { points: 500, ..plan }, 2));
    for loss in [LabelLoss::BinaryCrossEntropy, LabelLoss::SquaredHinge] {
        let config = TrainingConfig {
            epochs: 8,
            batch_size: 64,
            learning_rate: 5e-3,
            delta_t: 50,
            loss,
            dropout: 0.2,
            ..Default::default()
        };
        let (network, losses) = train(&train_points, config);
        let found = precision(&network, &test);
        assert!(found > 0.8, "{loss:?}: P@1 {found}, losses {:?}", &losses[losses.len() - 3..]);
        // Labels have other inputs than at first.
        let before = NetworkConfig { hidden: 128, fan_in: 16, seed: 1, ..Default::default() }
            .build(&train_points)
            .unwrap();
        let moved =
            (0..150).filter(|label| network.output().inputs(*label) != before.output().inputs(*label));
        assert!(moved.count() > 140);
    }
}

#[test]
fn labels_that_share_inputs_or_read_all_of_them_are_found() {
    let plan = Plan { points: 3000, features: 600, labels: 150, ..Plan::default() };
    let (train_points, test) = (points(&plan, 1), points(&Plan { points: 500, ..plan }, 2));
    let training = TrainingConfig {
        epochs: 8,
        batch_size: 64,
        learning_rate: 5e-3,
        delta_t: 50,
        dropout: 0.2,
        growth: Growth::Gradient,
        ..Default::default()
    };
    for (group, dense_head) in [(1, 0), (8, 0), (1, 20), (8, 20), (1, 1000)] {
        let config = NetworkConfig { hidden: 128, fan_in: 16, group, dense_head, seed: 1 };
        let mut training = Training::new(config.build(&train_points).unwrap(), training, 3000).unwrap();
        while let Some(batch) = training.next() {
            training.step(&train_points.batch(&batch).unwrap()).unwrap();
        }
        let network = training.finish().unwrap();
        let found = precision(&network, &test);
        assert!(found > 0.8, "{config:?}: P@1 {found}");
        let output = network.output();
        // Made-up labels are ordered by their frequency, about.
        let of_head = (0..150).filter(|label| output.inputs(*label).len() == 128).count();
        assert_eq!(of_head, dense_head.min(150));
        let head = (0..of_head).map(|label| output.inputs(label).len());
        assert!(head.take(10).all(|fan_in| fan_in == 128), "the most frequent ones are dense");
        let mut rows: Vec<&[u16]> =
            (0..150).map(|label| output.inputs(label)).filter(|row| row.len() == 16).collect();
        rows.sort_unstable();
        let sizes: Vec<usize> = rows.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
        assert!(sizes.iter().filter(|size| **size != group).count() <= 1, "{sizes:?}");
        assert_eq!(network.parameters(), 600 * 128 + 128 + of_head * 129 + (150 - of_head) * 17);
    }
}

/// Labels 2k and 2k + 1 always come together.
#[test]
fn labels_that_come_together_share_inputs() {
    let mut text = "200 5 40\n".to_string();
    for point in 0..200 {
        let pair = point % 20;
        text += &format!("{},{} 0:1\n", 2 * pair, 2 * pair + 1);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let points = Points::read(file.path(), |_| {}).unwrap();
    let config = NetworkConfig { hidden: 64, fan_in: 8, group: 2, dense_head: 0, seed: 3 };
    let network = config.build(&points).unwrap();
    for pair in 0..20 {
        assert_eq!(network.output().inputs(2 * pair), network.output().inputs(2 * pair + 1));
    }
}

#[test]
fn a_training_goes_on_as_if_it_had_never_stopped() {
    let plan = Plan { points: 300, features: 200, labels: 600, ..Plan::default() };
    let points = points(&plan, 1);
    let config = TrainingConfig { epochs: 3, batch_size: 70, delta_t: 3, ..Default::default() };
    // The last two are dense, whatever they are called.
    for (fan_in, group, dense_head) in [(8, 1, 0), (8, 4, 50), (8, 1, 600), (40, 1, 50), (40, 100, 0)] {
        let network = NetworkConfig { hidden: 40, fan_in, group, dense_head, seed: 1 };
        let network = network.build(&points).unwrap();
        let mut training = Training::new(network, config, 300).unwrap();
        let step = |training: &mut Training| {
            let batch = training.next()?;
            Some(training.step(&points.batch(&batch).unwrap()).unwrap())
        };
        // In the middle of an epoch.
        (0..7).for_each(|_| _ = step(&mut training).unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        training.write("so far", &mut file.as_file()).unwrap();
        let (mut again, state) = Training::read(file.path(), config, 300).unwrap();
        assert_eq!(state, "so far");
        assert_eq!(again.steps_taken(), 7);
        while let Some(loss) = step(&mut training) {
            assert_eq!(step(&mut again), Some(loss));
        }
        assert_eq!(step(&mut again), None);
        assert!(training.network() == again.network());

        let refused = |config, points| Training::read(file.path(), config, points).unwrap_err().to_string();
        assert!(refused(config, 299).ends_with("a training on 300 points, not 299"));
        let short = TrainingConfig { epochs: 1, ..config };
        assert!(refused(short, 300).ends_with("a training of 7 steps, more than the 5 wanted"));
        let mut bytes = std::fs::read(file.path()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file.path(), &bytes).unwrap();
        assert!(refused(config, 300).ends_with("it is damaged: its checksum does not match"));
        // A network alone is no training.
        let mut network = tempfile::NamedTempFile::new().unwrap();
        training.network().write(&mut network).unwrap();
        let error = Training::read(network.path(), config, 300).unwrap_err().to_string();
        assert!(error.ends_with("its metadata have no `step` that is a positive number"), "{error}");
    }
}

#[test]
fn any_number_of_threads_trains_the_same() {
    let plan = Plan { points: 300, features: 200, labels: 600, ..Plan::default() };
    let points = points(&plan, 1);
    let config = TrainingConfig { epochs: 2, batch_size: 70, delta_t: 3, ..Default::default() };
    let on = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| train(&points, config))
    };
    assert!(on(1) == on(3));
}

#[test]
fn every_point_passes_once_an_epoch_in_an_order_of_its_own() {
    let plan = Plan { points: 25, features: 10, labels: 3, ..Plan::default() };
    let points = points(&plan, 1);
    let network =
        NetworkConfig { hidden: 4, fan_in: 2, seed: 1, ..Default::default() }.build(&points).unwrap();
    let config = TrainingConfig { epochs: 2, batch_size: 10, ..Default::default() };
    let mut training = Training::new(network, config, 25).unwrap();
    let mut epochs = Vec::new();
    while let Some(batch) = training.next() {
        training.step(&points.batch(&batch).unwrap()).unwrap();
        epochs.extend(batch);
    }
    let (first, second) = epochs.split_at(25);
    assert_ne!(first, second);
    for epoch in [first, second] {
        let mut epoch = epoch.to_vec();
        epoch.sort_unstable();
        assert_eq!(epoch, (0..25).collect::<Vec<_>>());
    }
}

#[test]
fn training_that_diverges_says_so() {
    let plan = Plan { points: 50, features: 30, labels: 10, ..Plan::default() };
    let points = points(&plan, 1);
    for loss in [LabelLoss::BinaryCrossEntropy, LabelLoss::SquaredHinge] {
        let network =
            NetworkConfig { hidden: 8, fan_in: 4, seed: 1, ..Default::default() }.build(&points).unwrap();
        let config = TrainingConfig { epochs: 100, learning_rate: 1e38, loss, ..Default::default() };
        let mut training = Training::new(network, config, 50).unwrap();
        let error = loop {
            let batch = points.batch(&training.next().expect("it has diverged by now")).unwrap();
            if let Err(error) = training.step(&batch) {
                break error.to_string();
            }
        };
        assert!(error.contains("training has diverged; take a lower learning rate"), "{error}");
    }
}

#[test]
fn logits_that_are_not_finite_are_no_prediction() {
    let plan = Plan { points: 50, features: 30, labels: 10, ..Plan::default() };
    let points = points(&plan, 1);
    let network =
        NetworkConfig { hidden: 8, fan_in: 4, seed: 1, ..Default::default() }.build(&points).unwrap();
    let config = TrainingConfig { epochs: 1, learning_rate: 1e30, batch_size: 50, ..Default::default() };
    let mut training = Training::new(network, config, 50).unwrap();
    let all = training.next().unwrap();
    training.step(&points.batch(&all).unwrap()).unwrap();
    // Its weights are finite.
    let network = training.finish().unwrap();
    let error = network.evaluate(&points, 5, 10, |_| {}).unwrap_err();
    assert!(error.to_string().contains("logits are not finite"), "{error}");
}

#[test]
fn a_network_is_the_same_after_it_was_written() {
    let plan = Plan { points: 50, features: 30, labels: 300, ..Plan::default() };
    let points = points(&plan, 1);
    let (network, _) = train(&points, TrainingConfig { epochs: 1, ..Default::default() });
    let mut bytes = Vec::new();
    network.write(&mut bytes).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(file.path(), bytes).unwrap();
        Network::read(file.path())
    };
    assert!(read(&bytes).unwrap() == network);
    assert!(read(&bytes[..bytes.len() - 1]).is_err());
    let error = |from: &str, to: &str| {
        let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let text = std::str::from_utf8(&bytes[8..header]).unwrap();
        assert!(text.contains(from), "{text}");
        // Without its checksum.
        let changed = text.replacen(from, to, 1).replacen("sha256", "sha25_", 1);
        assert_eq!(changed.len(), text.len());
        read(&[&bytes[..8], changed.as_bytes(), &bytes[header..]].concat()).unwrap_err().to_string()
    };
    for (from, to, says) in [
        ("tail.bias", "tail.bios", "there is no `tail.bias`: it is no network of srigl xmc"),
        ("tail.values", "toil.values", "it has neither `head.values` nor `tail.values`"),
        ("tail.values", "head.values", "there is no `head.bias`"),
        ("[30,128]", "[128,30]", "`hidden.bias` has the shape [128], others ask for [30]"),
        ("U16", "F16", "`tail.inputs` is of F16 instead of U16"),
        ("\"50\"", "\"00\"", "its metadata have no `points` that is a positive number"),
        ("\"50\"", "\"01\"", "of 1 training points"),
        (
            "\"group\":\"1\"",
            "\"group\":\"2\"",
            "`tail.inputs` has the shape [300, 16], others ask for [150, 16]",
        ),
        ("\"group\":\"1\"", "\"group\":\"0\"", "its metadata have no `group`"),
        ("labels.order", "labels.odder", "there is no `labels.order`"),
    ] {
        let said = error(from, to);
        assert!(said.contains(says), "{said}");
    }
    // A flipped bit.
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    let said = read(&changed).unwrap_err().to_string();
    assert!(said.ends_with("it is damaged: its checksum does not match"), "{said}");
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let text = std::str::from_utf8(&bytes[8..header]).unwrap().replacen("sha256", "sha25_", 1);
    let bytes = [&bytes[..8], text.as_bytes(), &bytes[header..]].concat();
    // A label that the order names twice: its bytes are the first that are 1.
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let one = (header..).step_by(4).find(|at| bytes[*at..at + 8] == [0, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    let mut changed = bytes.clone();
    changed[one + 4] = 0;
    assert!(
        read(&changed).unwrap_err().to_string().contains("`labels.order` does not name every label once")
    );
    // The last bytes of the file are inputs of the last label, of which 128 is none.
    let mut changed = bytes.clone();
    *changed.last_chunk_mut().unwrap() = 128u16.to_le_bytes();
    assert!(read(&changed).unwrap_err().to_string().contains("input index 128 of a matrix with 128 columns"));
}
