//! Networks learn what was put into made-up points, and the same whatever the number of threads.

use condensed::training::LabelLoss;
use srigl_xmc::{
    Network, NetworkConfig, Points, Rankings, Training, TrainingConfig, inverse_propensities, synth::Plan,
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
    let network = NetworkConfig { hidden: 128, fan_in: 16, seed: 1 }.build(points).unwrap();
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
        let before = NetworkConfig { hidden: 128, fan_in: 16, seed: 1 }.build(&train_points).unwrap();
        let moved =
            (0..150).filter(|label| network.output().label(*label).0 != before.output().label(*label).0);
        assert!(moved.count() > 140);
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
    let network = NetworkConfig { hidden: 4, fan_in: 2, seed: 1 }.build(&points).unwrap();
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
        let network = NetworkConfig { hidden: 8, fan_in: 4, seed: 1 }.build(&points).unwrap();
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
    let network = NetworkConfig { hidden: 8, fan_in: 4, seed: 1 }.build(&points).unwrap();
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
        let changed = text.replacen(from, to, 1);
        assert_eq!(changed.len(), text.len());
        read(&[&bytes[..8], changed.as_bytes(), &bytes[header..]].concat()).unwrap_err().to_string()
    };
    assert!(
        error("output.bias", "output.bios")
            .contains("there is no `output.bias`: it is no network of srigl xmc")
    );
    assert!(error("[30,128]", "[128,30]").contains("the shapes of its tensors do not fit each other"));
    assert!(error("U16", "F16").contains("`output.inputs` is of F16 instead of U16"));
    assert!(error("\"50\"", "\"00\"").contains("do not say how many training points there were"));
    assert!(error("\"50\"", "\"01\"").contains("of 1 training points"));
    // The last bytes of the file are inputs of the last label, of which 128 is none.
    let mut changed = bytes.clone();
    *changed.last_chunk_mut().unwrap() = 128u16.to_le_bytes();
    assert!(read(&changed).unwrap_err().to_string().contains("input index 128 of a matrix with 128 columns"));
}
