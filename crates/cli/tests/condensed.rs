//! `srigl condense`, `predict` and `bench` through the real binary.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

type Tensors = BTreeMap<String, Tensor>;

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

impl Tensor {
    fn floats(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

/// Numbers in [-2, 2) that look random.
fn numbers(count: usize) -> Vec<f32> {
    let bits = |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(i >> 3) >> 8;
    (1..=count as u32).map(|i| bits(i) as f32 / (1 << 22) as f32 - 2.0).collect()
}

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, tensors: &Tensors) {
        let views = tensors
            .iter()
            .map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
        fs::write(self.path(name), safetensors::serialize(views, None::<HashMap<String, String>>).unwrap())
            .unwrap();
    }

    fn get(&self, name: &str) -> Tensors {
        let file = fs::read(self.path(name)).unwrap();
        let views = SafeTensors::deserialize(&file).unwrap().tensors();
        let tensor =
            |v: TensorView| Tensor { dtype: v.dtype(), shape: v.shape().to_vec(), data: v.data().to_vec() };
        views.into_iter().map(|(name, view)| (name, tensor(view))).collect()
    }

    /// `srigl ARGS` in the folder.
    fn run(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
        command.args(args.split_whitespace()).current_dir(self.folder.path()).output().unwrap()
    }

    fn succeed(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &str) -> Value {
        let stdout = self.succeed(&format!("{args} --json"));
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args}: {e} in {stdout}"))
    }

    /// The command fails with one line that contains all of `expected`, and writes nothing.
    fn refuse(&self, args: &str, expected: &[&str]) {
        let files = |bench: &Self| {
            let mut names: Vec<_> =
                fs::read_dir(bench.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = files(self);
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
        assert!(stderr.starts_with("srigl: "), "{args}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args}: {stderr}");
        for expected in expected {
            assert!(stderr.contains(expected), "{args}: no `{expected}` in: {stderr}");
        }
        assert!(output.stdout.is_empty(), "{args}: printed something");
        assert_eq!(files(self), before, "{args}: files left behind");
    }

    /// A few steps on the generated data set.
    fn train(&self, model: &str, out: &str) {
        self.train_by("--gamma-sal 0.9 --sparsity 0.9", model, out);
    }

    /// The same by a method.
    fn train_by(&self, method: &str, model: &str, out: &str) {
        let limits = if model == "mlp" { 512 } else { 96 };
        self.succeed(&format!(
            "train --dataset glyphs --train-limit {limits} --test-limit 100 --batch-size 32 --delta-t 1 --epochs 1 \
             --lr 0.02 --quiet {method} --model {model} --out {out}"
        ));
    }

    fn logits(&self, name: &str) -> Vec<f32> {
        let tensors = self.get(name);
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["logits"]);
        assert!([10, 1000].contains(&tensors["logits"].shape[1]));
        tensors["logits"].floats()
    }
}

/// Largest difference, relative to the largest number.
fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f32, |most, w| most.max(w.abs()));
    assert!(largest > 1e-3, "zeros prove nothing");
    got.iter().zip(want).fold(0.0f32, |most, (g, w)| most.max((g - w).abs())) / largest
}

#[test]
fn condensed_predictions_are_the_dense_ones() {
    let bench = Bench::new();
    // More than go through at once.
    let batch = 70;
    bench.put("x", &[("input".to_string(), f32s(&[batch, 1, 28, 28], &numbers(batch * 784)))].into());
    for model in ["mlp", "mnist-cnn", "resnet8"] {
        bench.train(model, model);
        let report = bench.json(&format!("condense {model} -o small"));
        assert_eq!(report["model"], model);
        let layers = report["layers"].as_array().unwrap();
        let result: Value =
            serde_json::from_slice(&fs::read(bench.path(&format!("{model}/result.json"))).unwrap()).unwrap();
        for trained in result["layers"].as_array().unwrap() {
            let layer = layers.iter().find(|l| l["name"] == trained["name"]).unwrap();
            let full = trained["nnz"] == trained["weights"];
            assert_eq!(layer["condensed"], !full, "{layer}");
            if !full {
                let ablated = trained["ablated"].as_array().unwrap().len();
                assert_eq!(layer["ablated"], ablated, "{layer}");
                assert_eq!(layer["fan_in"], trained["fan_in"], "{layer}");
            }
            assert_eq!(layer["mask_from_zeros"], false);
        }
        let size = fs::metadata(bench.path("small")).unwrap().len();
        assert_eq!(report["bytes_after"], size);
        assert!(size * 2 < report["bytes_before"].as_u64().unwrap(), "{report}");

        let weights = format!("--weights {model}/model.safetensors --model {model} --input x");
        bench.succeed(&format!("predict {weights} -o dense"));
        bench.succeed(&format!("predict {weights} -o engine --condensed --threads 2"));
        bench.succeed("predict --weights small --input x -o file --threads 1");
        let dense = bench.logits("dense");
        assert_eq!(dense.len(), batch * 10);
        for other in ["engine", "file"] {
            let error = relative_error(&bench.logits(other), &dense);
            assert!(error <= 1e-4, "{model}, {other}: {error}");
        }
    }
    // The same samples as vectors.
    bench.put("flat", &[("input".to_string(), f32s(&[batch, 784], &numbers(batch * 784)))].into());
    for model in ["mlp", "resnet8"] {
        let weights = format!("--weights {model}/model.safetensors --model {model}");
        for options in ["", "--condensed"] {
            bench.succeed(&format!("predict {weights} --input flat -o flat-logits {options}"));
            bench.succeed(&format!("predict {weights} --input x -o logits {options}"));
            assert_eq!(bench.logits("flat-logits"), bench.logits("logits"), "{model} {options}");
        }
    }
}

/// Rows of a pattern have constant fan-in, and neurons that share their inputs share their indices in the file.
#[test]
fn patterns_and_groups_are_condensed() {
    let bench = Bench::new();
    let batch = 9;
    bench.put("x", &[("input".to_string(), f32s(&[batch, 1, 28, 28], &numbers(batch * 784)))].into());
    for (name, method, model) in [
        ("nm", "--method rigl --nm 1:10", "mlp"),
        ("ste", "--method sr-ste --nm 1:4", "mnist-cnn"),
        ("groups", "--method srigl --sparsity 0.9 --group 4 --gamma-sal 0.9", "mlp"),
        ("conv-groups", "--method structured-set --sparsity 0.9 --group 8", "mnist-cnn"),
    ] {
        bench.train_by(method, model, name);
        let report = bench.json(&format!("condense {name} -o small-{name}"));
        for layer in report["layers"].as_array().unwrap().iter().filter(|layer| layer["condensed"] == true) {
            assert!(layer["fan_in"].is_number(), "{name}: {layer}");
        }
        let weights = format!("--weights {name}/model.safetensors --model {model} --input x");
        bench.succeed(&format!("predict {weights} -o dense"));
        bench.succeed(&format!("predict --weights small-{name} --input x -o file --threads 1"));
        let error = relative_error(&bench.logits("file"), &bench.logits("dense"));
        assert!(error <= 1e-4, "{name}: {error}");
    }
    let tensors = bench.get("small-groups");
    let shape = |end: &str| {
        let found = tensors.iter().find(|(name, _)| name.contains("fc1") && name.ends_with(end));
        found.unwrap_or_else(|| panic!("{end} of fc1")).1.shape.clone()
    };
    let (indices, values) = (shape("indices"), shape("values"));
    assert_eq!((indices[0], indices[1]), (values[0].div_ceil(4), values[1]));
}

/// Weights of the perceptron with a share of zeros in the first layer, and no masks.
fn mlp(zeros: f32) -> Tensors {
    let layer = |name: &str, n: usize, m: usize| {
        let scale = 1.0 / (m as f32).sqrt();
        let weights: Vec<f32> = numbers(n * m).iter().map(|v| v * scale).collect();
        let bias = f32s(&[n], &numbers(n));
        [(format!("{name}.weight"), f32s(&[n, m], &weights)), (format!("{name}.bias"), bias)]
    };
    let mut tensors: Tensors = [layer("fc1", 300, 784), layer("fc2", 100, 300), layer("fc3", 10, 100)]
        .into_iter()
        .flatten()
        .collect();
    let mut first = tensors["fc1.weight"].floats();
    let count = (zeros * first.len() as f32) as usize;
    // 97 shares no factor with the number of weights.
    (0..count).for_each(|i| first[i * 97 % (300 * 784)] = 0.0);
    tensors.insert("fc1.weight".into(), f32s(&[300, 784], &first));
    tensors
}

#[test]
fn zeros_tell_a_mask_only_where_half_are_zero() {
    let bench = Bench::new();
    bench.put("x", &[("input".to_string(), f32s(&[3, 784], &numbers(3 * 784)))].into());
    for (zeros, sparse) in [(0.4, false), (0.9, true)] {
        bench.put("in", &mlp(zeros));
        let report = bench.json("condense in --model mlp -o out");
        let told: Vec<bool> = report["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["mask_from_zeros"].as_bool().unwrap())
            .collect();
        assert_eq!(told, [sparse, false, false]);
        assert_eq!(report["layers"][0]["condensed"], sparse);
        let text = bench.succeed("condense in --model mlp -o out");
        assert_eq!(text.contains("zeros count as inactive: fc1"), sparse, "{text}");
        assert_eq!(text.contains("varies"), sparse, "{text}");
        assert!(text.ends_with("wrote `out`\n"), "{text}");
        bench.succeed("predict --model mlp --weights in --input x -o dense");
        bench.succeed("predict --weights out --input x -o small");
        assert!(relative_error(&bench.logits("small"), &bench.logits("dense")) <= 1e-4);
    }
}

#[test]
fn weights_outside_the_mask_do_not_count() {
    let bench = Bench::new();
    bench.put("x", &[("input".to_string(), f32s(&[3, 784], &numbers(3 * 784)))].into());
    let mut tensors = mlp(0.0);
    let mask: Vec<u8> = (0..300 * 784).map(|i| u8::from(i % 7 == 0)).collect();
    tensors.insert("fc1.mask".into(), Tensor { dtype: Dtype::U8, shape: vec![300, 784], data: mask.clone() });
    bench.put("masked", &tensors);
    let zeroed: Vec<f32> =
        tensors["fc1.weight"].floats().iter().zip(&mask).map(|(w, m)| w * f32::from(*m)).collect();
    tensors.insert("fc1.weight".into(), f32s(&[300, 784], &zeroed));
    tensors.remove("fc1.mask");
    bench.put("zeroed", &tensors);
    for weights in ["masked", "zeroed"] {
        bench.succeed(&format!("predict --model mlp --weights {weights} --input x -o {weights}-logits"));
        bench.succeed(&format!(
            "predict --model mlp --weights {weights} --input x -o {weights}-c --condensed"
        ));
    }
    assert_eq!(bench.logits("masked-logits"), bench.logits("zeroed-logits"));
    assert!(relative_error(&bench.logits("masked-c"), &bench.logits("zeroed-logits")) <= 1e-4);
}

#[test]
fn broken_inputs_are_refused() {
    let bench = Bench::new();
    let good = mlp(0.9);
    bench.put("good", &good);
    bench.put("x", &[("input".to_string(), f32s(&[2, 784], &numbers(2 * 784)))].into());
    bench.succeed("condense good --model mlp -o small");

    // Weights.
    let put = |name: &str, tensor: &str, value: Option<Tensor>| {
        let mut tensors = good.clone();
        match value {
            Some(value) => tensors.insert(tensor.to_string(), value),
            None => tensors.remove(tensor),
        };
        bench.put(name, &tensors);
    };
    let mask = |shape: &[usize], value: u8, dtype| {
        Some(Tensor { dtype, shape: shape.to_vec(), data: vec![value; shape.iter().product()] })
    };
    let mut nan = good["fc2.bias"].floats();
    nan[7] = f32::NAN;
    for (tensor, value, expected) in [
        ("fc2.bias", None, "`fc2.bias` is missing"),
        ("fc2.bias", Some(f32s(&[100], &nan)), "\"fc2.bias\" is NaN at position 7"),
        ("fc2.weight", Some(f32s(&[300, 100], &numbers(30_000))), "fc2.weight"),
        ("fc2.weight", mask(&[100, 600], 0, Dtype::U8), "must be F32"),
        ("fc4.weight", Some(f32s(&[1, 10], &numbers(10))), "`fc4.weight` is unexpected"),
        ("fc4.mask", mask(&[1, 10], 1, Dtype::U8), "`fc4.mask` is the mask of no tensor"),
        ("fc2.mask", mask(&[100, 300], 2, Dtype::U8), "\"fc2.mask\" has 2 at position 0"),
        ("fc2.mask", mask(&[300, 100], 1, Dtype::U8), "\"fc2.mask\" has shape [300, 100]"),
        ("fc2.mask", mask(&[100, 300], 1, Dtype::I8), "must be U8 or BOOL"),
    ] {
        put("bad", tensor, value);
        bench.refuse("condense bad --model mlp -o out", &["`bad`", expected]);
        for options in ["", "--condensed"] {
            bench.refuse(
                &format!("predict --model mlp --weights bad --input x -o out {options}"),
                &["`bad`", expected],
            );
        }
    }
    bench.refuse("condense good -o out", &["--model", "mnist-cnn"]);
    bench.refuse("condense good --model resnet8 -o out", &["`good`", "conv1.weight"]);
    bench.refuse("condense good --model alexnet -o out", &["alexnet", "resnet50"]);
    bench.refuse("condense none --model mlp -o out", &["cannot read `none`"]);
    bench.refuse("condense small --model mlp -o out", &["`small` is condensed already"]);
    bench.refuse("condense good --model mlp -o none/out", &["no folder `none`"]);
    bench.refuse("condense . -o out", &["config.json"]);

    // Inputs.
    let put = |tensor: &str, value| bench.put("y", &[(tensor.to_string(), value)].into());
    let mut infinite = numbers(784);
    infinite[5] = f32::INFINITY;
    for (name, value, expected) in [
        ("images", f32s(&[1, 784], &numbers(784)), "`input` is missing"),
        ("input", f32s(&[784], &numbers(784)), "[784]"),
        ("input", f32s(&[0, 784], &[]), "[0, 784]"),
        ("input", f32s(&[1, 785], &numbers(785)), "[785]"),
        ("input", f32s(&[1, 784], &infinite), "\"input\" is inf at position 5"),
        ("input", Tensor { dtype: Dtype::U8, shape: vec![1, 784], data: vec![1; 784] }, "must be F32"),
    ] {
        put(name, value);
        for weights in ["good --model mlp", "good --model mlp --condensed", "small"] {
            bench.refuse(&format!("predict --weights {weights} --input y -o out"), &["`y`", expected]);
        }
    }
    put("input", f32s(&[1, 1, 20, 20], &numbers(400)));
    bench.refuse("predict --weights small --input y -o out", &["`y`", "[1, 20, 20]"]);
    bench.refuse("predict --weights good --model mlp --input y -o out", &["fc1.weight"]);
    bench.refuse("predict --weights good --input x -o out", &["--model"]);
    bench.refuse("predict --weights small --input x -o out --device tpu", &["unknown device"]);
    bench.refuse("predict --weights small --input x -o out --threads 0", &["--threads"]);

    // A damaged condensed file, byte by byte in the header and cut short.
    let bytes = fs::read(bench.path("small")).unwrap();
    for cut in [0, 7, 100, bytes.len() - 1] {
        fs::write(bench.path("cut"), &bytes[..cut]).unwrap();
        bench.refuse("predict --weights cut --input x -o out", &["`cut`"]);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let at = text.find("\\\"relu\\\"").expect("a node in the header");
    let mut other = bytes.clone();
    other[at + 2] = b'x';
    fs::write(bench.path("cut"), &other).unwrap();
    bench.refuse("predict --weights cut --input x -o out", &["`cut`"]);
}

#[test]
fn a_network_goes_from_bench_to_prediction() {
    let bench = Bench::new();
    let report = bench.json("bench model vit-tiny --sparsity 0.8 --rounds 2 --save-weights vit --batch 2");
    check_report(&report, "model", &["dense", "condensed"]);
    assert_eq!(report["shape"]["model"], "vit-tiny");
    assert!((report["actual_sparsity"].as_f64().unwrap() - 0.8).abs() < 0.01);
    bench.put("x", &[("input".to_string(), f32s(&[2, 3, 32, 32], &numbers(2 * 3 * 1024)))].into());
    bench.succeed("predict --weights vit --model vit-tiny --input x -o dense");
    bench.succeed("predict --weights vit --model vit-tiny --input x -o engine --condensed");
    assert!(relative_error(&bench.logits("engine"), &bench.logits("dense")) < 1e-4);
    bench.succeed("condense vit --model vit-tiny -o small");
    bench.succeed("predict --weights small --input x -o file");
    assert_eq!(bench.logits("engine"), bench.logits("file"));
    // In Burn instead of the engine.
    for device in ["flex", "ndarray"] {
        let said = bench.succeed(&format!("predict --weights small --input x -o burn --device {device}"));
        assert!(said.contains(&format!("Burn on {device}")), "{said}");
        assert!(relative_error(&bench.logits("burn"), &bench.logits("engine")) < 1e-4);
    }
    let weights = "--weights vit --model vit-tiny --condensed";
    bench.succeed(&format!("predict {weights} --input x -o burn --device flex"));
    assert!(relative_error(&bench.logits("burn"), &bench.logits("engine")) < 1e-4);
}

/// torchvision's names are Burn's paths, and Burn's network is the engine's.
#[test]
fn convolutional_networks_predict_alike_in_burn_and_in_the_engine() {
    let bench = Bench::new();
    bench.put("x", &[("input".to_string(), f32s(&[2, 3, 64, 48], &numbers(2 * 3 * 64 * 48)))].into());
    for (model, sparsity) in [
        ("resnet18", 0.9),
        ("resnet50", 0.9),
        ("resnet18-small", 0.9),
        ("wrn-22-2", 0.9),
        ("mobilenet-v3-large", 0.5),
        ("mobilenet-v3-small", 0.5),
    ] {
        bench.json(&format!("bench model {model} --sparsity {sparsity} --rounds 1 --save-weights weights"));
        bench.succeed(&format!("predict --weights weights --model {model} --input x -o dense"));
        bench.succeed(&format!("predict --weights weights --model {model} --input x -o engine --condensed"));
        let error = relative_error(&bench.logits("engine"), &bench.logits("dense"));
        assert!(error < 1e-4, "{model}: {error}");
    }
}

fn check_report(report: &Value, what: &str, names: &[&str]) {
    assert_eq!(report["what"], what);
    for field in ["sparsity", "batch", "threads", "rounds", "speedup_over_dense"] {
        assert!(report[field].as_f64().is_some_and(|v| v > 0.0), "{field}: {report}");
    }
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    let median = |name: &str| {
        let at = names.iter().position(|n| *n == name).unwrap();
        results[at]["median_ms"].as_f64().unwrap()
    };
    for result in results {
        let [p10, median, p90] =
            ["p10_ms", "median_ms", "p90_ms"].map(|field| result[field].as_f64().unwrap());
        assert!(0.0 < p10 && p10 <= median && median <= p90, "{result}");
        assert_eq!(result["samples"], report["rounds"]);
        assert!(!result["engine"].as_str().unwrap().is_empty());
    }
    let speedup = median("dense") / median("condensed");
    assert!((report["speedup_over_dense"].as_f64().unwrap() / speedup - 1.0).abs() < 1e-9);
}

#[test]
fn bench_layer_reports_and_saves_what_it_ran() {
    let bench = Bench::new();
    let names = ["dense", "csr", "condensed"];
    for (shape, dims, input) in [
        ("--in 96 --out 40", vec![40, 96], vec![1, 96]),
        ("--in 96 --out 40 --batch 9 --threads 2", vec![40, 96], vec![9, 96]),
        ("--conv 5 12 3 --size 9 --stride 2 --batch 2", vec![12, 5, 3, 3], vec![2, 5, 9, 9]),
        ("--conv 16 12 1 --size 9 --threads 2", vec![12, 16, 1, 1], vec![1, 16, 9, 9]),
    ] {
        let command = format!("bench layer {shape} --sparsity 0.75 --rounds 3 --seed 5 --save-weights");
        let report = bench.json(&format!("{command} a"));
        check_report(&report, "layer", &names);
        assert_eq!(report["rounds"], 3);
        bench.succeed(&format!("{command} b"));
        assert!(fs::read(bench.path("a")).unwrap() == fs::read(bench.path("b")).unwrap(), "same seed");
        let saved = bench.get("a");
        assert_eq!(saved["weight"].shape, dims);
        assert_eq!(saved["bias"].shape, [dims[0]]);
        assert_eq!(saved["input"].shape, input);
        let fan_in = dims[1..].iter().product::<usize>() / 4;
        for row in saved["weight"].floats().chunks(dims[1..].iter().product()) {
            assert_eq!(row.iter().filter(|w| **w != 0.0).count(), fan_in);
        }
    }
    // Results of neurons that are apart are put back in their order, or would not be those of the dense layer.
    for (shape, what, first) in [
        ("--in 96 --out 42 --batch 9 --group 4", "layer", ["dense", "csr"]),
        ("--conv 5 12 3 --size 9 --batch 2 --group 5", "layer", ["dense", "csr"]),
        ("--in 96 --out 42 --batch 9 --group 16 --training", "training of a layer", ["dense", "masked"]),
        ("--conv 8 12 3 --size 9 --batch 2 --group 3 --training", "training of a layer", ["dense", "masked"]),
    ] {
        let report = bench.json(&format!("bench layer {shape} --sparsity 0.75 --rounds 3"));
        check_report(&report, what, &[&first[..], &["condensed", "apart"]].concat());
    }
    let text = bench.succeed("bench layer --in 64 --out 64 --sparsity 0.5 --rounds 2");
    assert!(names.iter().all(|name| text.contains(name)) && text.contains("2 rounds"), "{text}");
}

#[test]
fn bench_runs_in_burn_on_a_device() {
    let bench = Bench::new();
    let names = ["dense", "condensed", "dense bf16", "condensed bf16"];
    for (what, shape) in [
        ("layer", "--in 96 --out 40 --batch 9"),
        ("layer", "--conv 5 12 3 --size 9 --stride 2"),
        ("model", "vit-tiny --batch 2"),
    ] {
        let args = format!("bench {what} {shape} --sparsity 0.75 --rounds 2 --device flex");
        let report = bench.json(&args);
        check_report(&report, what, &names);
        assert_eq!(report["device"], "flex");
        let text = bench.succeed(&args);
        assert!(text.contains("on flex") && text.contains("condensed over it"), "{text}");
    }
}

#[test]
fn bench_train_reports_steps_and_updates() {
    let bench = Bench::new();
    for model in ["mlp", "vit-tiny"] {
        let args = format!("bench train {model} --sparsity 0.8 --batch 8 --steps 12");
        let report = bench.json(&args);
        assert_eq!((report["model"].as_str(), report["steps"].as_u64()), (Some(model), Some(20)));
        let results = report["results"].as_array().unwrap();
        let ms = |i: usize| results[i]["median_ms"].as_f64().unwrap();
        assert_eq!(
            results.iter().map(|r| r["name"].as_str().unwrap()).collect::<Vec<_>>(),
            ["dense", "masked", "sparse"]
        );
        let speedup = results[2]["speedup"]["dense"].as_f64().unwrap();
        assert!((speedup - ms(0) / ms(2)).abs() < 1e-9, "{report}");
        let rate = results[0]["images_per_second"].as_f64().unwrap();
        assert!((rate * ms(0) / 8e3 - 1.0).abs() < 1e-9, "{report}");
        assert!(results[0].get("update_ms").is_none(), "{report}");
        for i in [1, 2] {
            let share = results[i]["update_ms"].as_f64().unwrap() / (100.0 * ms(i));
            assert!((results[i]["update_share"].as_f64().unwrap() - share).abs() < 1e-9, "{report}");
        }
        assert!(bench.succeed(&args).contains("over dense"));
    }
    for (args, expected) in [
        ("mlp --sparsity 1.5", "--sparsity is 1.5"),
        ("mlp --sparsity 0.5 --batch 0", "--batch"),
        ("mlp --sparsity 0.5 --steps 0", "--steps"),
    ] {
        bench.refuse(&format!("bench train {args}"), &[expected]);
    }
}

/// Speaks the protocol of `peer.py` as PyTorch would, but for its results, which are zeros.
#[cfg(unix)]
const FAKE_TORCH: &str = r#"#!/bin/sh
[ "$1 $3 $4 $5" = "-c torch cpu 2" ] || { echo "{\"error\": \"called with $1 $3 $4 $5\"}"; exit; }
echo '{"version": "9"}'
while read -r line; do
    case "$line" in
        *'"do":"time"'*) echo '{"seconds": 0.25}' ;;
        *'"do":"memory"'*) echo '{"bytes": 1000000}' ;;
        *'"do":"read"'*)
            file=$(echo "$line" | sed 's/.*"file":"\([^"]*\)".*/\1/')
            head -c 320 /dev/zero > "$file"
            echo '{}' ;;
        *'"do":"layer"'*)
            file=$(echo "$line" | sed 's/.*"file":"\([^"]*\)".*/\1/')
            grep -q weight "$file" || exit 7
            echo '{"contenders": [{"name": "torch f32", "engine": "PyTorch 9"}], "skipped": []}' ;;
        *'"do":"model"'*) echo '{"error": "ValueError: torchvision has no vit-tiny"}' ;;
        *'"do":"train"'*) echo '{"contenders": [{"name": "torch f32", "engine": "PyTorch 9"}], "skipped": []}' ;;
    esac
done
"#;

#[cfg(unix)]
#[test]
fn bench_takes_turns_with_pytorch() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    fs::write(bench.path("python"), FAKE_TORCH).unwrap();
    fs::set_permissions(bench.path("python"), PermissionsExt::from_mode(0o755)).unwrap();
    let place = "--sparsity 0.8 --device flex --torch ./python";
    // Whoever computes something else, cannot run it or ends is left out; the others are timed.
    let layer = format!("bench layer --in 96 --out 40 --batch 2 --threads 2 --rounds 2 {place}");
    let left_out = |args: &str| {
        let report = bench.json(args);
        let names = report["results"].as_array().unwrap().iter().map(|result| result["name"].clone());
        assert!(names.into_iter().all(|name| !name.as_str().unwrap().starts_with("torch")), "{report}");
        assert_eq!(report["skipped"].as_array().unwrap().len(), 1, "{report}");
        report["skipped"][0]["why"].as_str().unwrap().to_string()
    };
    let why = left_out(&layer);
    assert!(why.contains("`torch f32` differs from the right one"), "{why}");
    let why = left_out(&format!("bench model vit-tiny --threads 2 --rounds 2 {place}"));
    assert!(why.contains("torchvision has no vit-tiny"), "{why}");
    fs::write(bench.path("python"), FAKE_TORCH.replace("echo '{\"seconds\": 0.25}'", "exit 9")).unwrap();
    let why = left_out(&layer);
    assert!(why.contains("torch ended without a word"), "{why}");
    fs::write(bench.path("python"), FAKE_TORCH).unwrap();
    bench.refuse(
        "bench model vit-tiny --sparsity 0.8 --onnxruntime ./onnx",
        &["cannot start --onnxruntime ./onnx"],
    );
    bench.refuse(
        &format!("bench model vit-tiny {place}"),
        &["--torch ./python", "called with -c torch cpu 1"],
    );
    let nobody = layer.replace("./python", "./nobody");
    bench.refuse(&nobody, &["cannot start --torch ./nobody"]);

    let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let train = format!("bench train mlp --batch 4 --steps 1 --json {place}");
    command.args(train.split_whitespace()).env("RAYON_NUM_THREADS", "2").current_dir(bench.folder.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["results"][3]["name"], "torch f32");
    assert_eq!(report["results"][3]["images_per_second"], 16.0);
    // Each in a process of its own, where the system tells.
    if cfg!(target_os = "linux") {
        let bytes = |i: usize| report["results"][i]["peak_bytes"].as_u64().unwrap();
        assert_eq!(bytes(3), 1_000_000);
        // Weights, gradients and velocities of 266 610 parameters; the sparse network has a fifth of them.
        assert!(bytes(1) > 3_200_000 && bytes(1) < 100_000_000 && bytes(2) > 0, "{report}");
    }
}

#[test]
fn bench_refuses_what_makes_no_layer() {
    let bench = Bench::new();
    for (args, expected) in [
        ("layer --in 8 --out 8 --sparsity 0.9", "fan-in would be 0"),
        ("layer --in 8 --out 8 --sparsity 1", "--sparsity is 1"),
        ("layer --in 8 --out 8 --sparsity nan", "--sparsity is NaN"),
        ("layer --in 0 --out 8 --sparsity 0.5", "[8, 0]"),
        ("layer --in 8 --out 8 --sparsity 0.5 --batch 0", "--batch"),
        ("layer --in 8 --out 8 --sparsity 0.5 --batch 99999999999999", "--batch"),
        ("layer --in 8 --out 8 --sparsity 0.5 --threads 0", "--threads"),
        ("layer --in 8 --out 8 --sparsity 0.5 --rounds 0", "--rounds"),
        ("layer --conv 8 8 3 --size 0 --sparsity 0.5", "does not fit"),
        ("layer --conv 8 8 3 --size 8 --stride 0 --sparsity 0.5", "does not fit"),
        ("model alexnet --sparsity 0.5", "alexnet"),
        ("layer --in 8 --out 8 --sparsity 0.5 --device tpu", "unknown device `tpu`"),
        ("layer --in 8 --out 8 --sparsity 0.5 --save-weights none/w", "no folder `none`"),
    ] {
        bench.refuse(&format!("bench {args}"), &[expected]);
    }
    for args in ["layer --sparsity 0.5", "layer --in 8 --sparsity 0.5", "layer --conv 8 8 3 --sparsity 0.5"] {
        assert_eq!(bench.run(&format!("bench {args}")).status.code(), Some(2), "{args}");
    }
}

#[test]
fn help_shows_examples() {
    let bench = Bench::new();
    for command in ["condense", "predict", "bench", "bench layer", "bench model", "bench train"] {
        let help = bench.succeed(&format!("{command} --help"));
        assert!(help.contains("Examples:\n  srigl "), "{help}");
    }
}
