//! Three steps of a small network against PyTorch's (`fixtures/training.py`): losses, and all weights afterwards.

use condensed::training::LabelLoss;
use serde::Deserialize;
use srigl_tensors::{Dtype, RawTensor, TensorFile};
use srigl_xmc::{Network, Points, Training, TrainingConfig};
use std::collections::BTreeMap;
use std::fs;

const POINTS: &str = "4 7 9\n0,4 0:0.5 3:-1\n8 1:1.5 3:0.25 6:1\n2,3,5 5:2\n4 0:-0.75 2:1.25\n";
const FEATURES: usize = 7;
const HIDDEN: usize = 6;
const LABELS: usize = 9;
const FAN_IN: usize = 3;

#[derive(Deserialize)]
struct Recorded {
    losses: Vec<f64>,
    embedding: Vec<f32>,
    hidden_bias: Vec<f32>,
    values: Vec<f32>,
    bias: Vec<f32>,
}

fn weight(i: usize, j: usize) -> f32 {
    ((i * 31 + j * 17) % 23) as f32 / 23.0 - 0.5
}

fn floats(shape: &[usize], number: impl Fn(usize) -> f32) -> RawTensor<'static> {
    let data: Vec<u8> = (0..shape.iter().product()).flat_map(|at| number(at).to_le_bytes()).collect();
    RawTensor { dtype: Dtype::F32, shape: shape.into(), data: data.into() }
}

/// The network that the script begins with, as a file.
fn network() -> Vec<u8> {
    let inputs = (0..LABELS).flat_map(|label| {
        let mut row = [label % 6, (label + 1) % 6, (label + 3) % 6];
        row.sort_unstable();
        row.map(|input| (input as u16).to_le_bytes())
    });
    let inputs = RawTensor {
        dtype: Dtype::U16,
        shape: vec![LABELS, FAN_IN],
        data: inputs.flatten().collect::<Vec<u8>>().into(),
    };
    let counts = |numbers: [u32; LABELS]| RawTensor {
        dtype: Dtype::U32,
        shape: vec![LABELS],
        data: numbers.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into(),
    };
    let tensors = [
        ("embedding.weight", floats(&[FEATURES, HIDDEN], |at| weight(at / HIDDEN, at % HIDDEN))),
        ("hidden.bias", floats(&[HIDDEN], |at| weight(50, at))),
        ("labels.order", counts([0, 1, 2, 3, 4, 5, 6, 7, 8])),
        ("labels.points", counts([1, 0, 1, 1, 2, 1, 0, 0, 1])),
        ("tail.inputs", inputs),
        ("tail.values", floats(&[LABELS, FAN_IN], |at| weight(60 + at / FAN_IN, at % FAN_IN))),
        ("tail.bias", floats(&[LABELS], |at| weight(80, at))),
    ];
    let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect();
    let metadata = [("points", "4"), ("group", "1")].map(|(key, value)| (key.to_string(), value.to_string()));
    let file = TensorFile { metadata: Some(metadata.into()), tensors };
    let mut bytes = Vec::new();
    file.write(1 << 16, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_network_is_trained_as_pytorch_trains_it() {
    let recorded: BTreeMap<String, Recorded> =
        serde_json::from_str(include_str!("fixtures/training.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [points, file] = ["points.txt", "network.safetensors"].map(|name| folder.path().join(name));
    fs::write(&points, POINTS).unwrap();
    fs::write(&file, network()).unwrap();
    let points = Points::read(&points, |_| {}).unwrap();
    for (name, _, loss) in LabelLoss::NAMES {
        let recorded = &recorded[name];
        let config = TrainingConfig {
            epochs: 3,
            batch_size: 4,
            learning_rate: 0.05,
            dropout: 0.0,
            loss,
            delta_t: 0,
            ..TrainingConfig::default()
        };
        let mut training = Training::new(Network::read(&file).unwrap(), config, points.len()).unwrap();
        for want in &recorded.losses {
            let batch = training.next().unwrap();
            let got = training.step(&points.batch(&batch).unwrap()).unwrap();
            assert!((got - want).abs() <= 1e-5 * want, "{name}: {got} for {want}");
        }
        assert_eq!(training.next(), None);
        let mut bytes = Vec::new();
        training.network().write(&mut bytes).unwrap();
        let trained = TensorFile::parse(&bytes, 1 << 16).unwrap();
        for (tensor, want) in [
            ("embedding.weight", &recorded.embedding),
            ("hidden.bias", &recorded.hidden_bias),
            ("tail.values", &recorded.values),
            ("tail.bias", &recorded.bias),
        ] {
            let (words, _) = trained.tensors[tensor].data.as_chunks();
            assert_eq!(words.len(), want.len(), "{tensor}");
            for (at, (word, want)) in words.iter().zip(want).enumerate() {
                let got = f32::from_le_bytes(*word);
                assert!((got - want).abs() < 2e-5, "{name}, {tensor} {at}: {got} for {want}");
            }
        }
    }
}
