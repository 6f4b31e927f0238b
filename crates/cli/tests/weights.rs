//! `srigl train --weights` and the other commands on weights from elsewhere, through the real binary.

mod common;

use common::Bench;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Type, dimensions, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn floats((_, _, data): &Tensor) -> Vec<f32> {
    data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl Bench {
    /// What it says on standard error.
    fn succeed(&self, args: &str) -> String {
        let output = self.srigl(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args}: {said}");
        said
    }

    fn refused(&self, args: &str) -> String {
        let output = self.srigl(args);
        assert!(!output.status.success(), "{args}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Of a perceptron on the generated data set.
    fn train(&self, flags: &str) -> String {
        format!(
            "train --dataset glyphs --train-limit 2048 --test-limit 500 --batch-size 64 --delta-t 5 {flags}"
        )
    }

    fn layer_sparsities(&self, run: &str) -> Vec<f64> {
        let result = self.json(&format!("{run}/result.json"));
        result["layers"].as_array().unwrap().iter().map(|l| l["sparsity"].as_f64().unwrap()).collect()
    }
}

#[test]
fn a_sparse_network_keeps_its_topology_and_its_accuracy() {
    let bench = Bench::new();
    bench.succeed(
        &bench.train("--method srigl --sparsity 0.95 --gamma-sal 0.9 --epochs 3 --lr 0.05 --out first"),
    );
    let accuracy = bench.json("first/result.json")["test_accuracy"].as_f64().unwrap();
    let start = "--weights first/model.safetensors --epochs 1 --lr 1e-9 --weight-decay 0 --method static";
    // The default of --sparsity is another: the file's topology stands.
    let said = bench.succeed(&bench.train(&format!("{start} --out again")));
    assert!(said.contains("starts from model.safetensors, mask: that of the file"), "{said}");
    assert!(said.contains("--sparsity 0.9 is not used"), "{said}");
    let again = bench.json("again/result.json");
    assert_eq!(again["started_from"]["test_accuracy"].as_f64(), Some(accuracy));
    assert_eq!(bench.layer_sparsities("again"), bench.layer_sparsities("first"));
    let (before, after) =
        (read(&bench.path("first/model.safetensors")), read(&bench.path("again/model.safetensors")));
    for layer in ["fc1", "fc2", "fc3"] {
        // A layer that is dense has no mask of its own.
        let mask = format!("{layer}.mask");
        assert_eq!(before[&mask], after[&mask], "{layer}");
    }

    // The same without masks: the zeros tell them, as far as they can.
    let mut bare = before.clone();
    bare.retain(|name, _| !name.ends_with(".mask"));
    write(&bench.path("bare.safetensors"), &bare);
    let bare = "--weights bare.safetensors --epochs 1 --lr 1e-9 --weight-decay 0 --method static --out bare";
    let said = bench.succeed(&bench.train(bare));
    assert!(said.contains("no mask in the file, so zeros count as inactive: fc1"), "{said}");
    let from = &bench.json("bare/result.json")["started_from"];
    assert_eq!(from["test_accuracy"].as_f64(), Some(accuracy), "{from}");

    // A random mask throws it away, and only when asked to.
    let said =
        bench.succeed(&bench.train(&format!("{start} --initial-mask random --sparsity 0.95 --out random")));
    assert!(said.contains(", mask: random"), "{said}");
    let random = bench.json("random/result.json")["started_from"]["test_accuracy"].as_f64().unwrap();
    assert!(random < accuracy - 0.1, "{random} of {accuracy}");
}

/// Killed and resumed without the file it started from, a run is the same as in one go.
#[test]
fn a_run_from_weights_resumes_without_them() {
    let bench = Bench::new();
    bench.succeed(&bench.train("--method rigl --sparsity 0.9 --epochs 1 --out first"));
    fs::copy(bench.path("first/model.safetensors"), bench.path("w.safetensors")).unwrap();
    let flags =
        bench.train("--weights w.safetensors --sparsity 0.5 --method rigl --epochs 16 --seed 5 --out");
    bench.succeed(&format!("{flags} whole"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let mut child = command
        .args(format!("{flags} parts").split_whitespace())
        .current_dir(bench.path(""))
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    while !bench.path("parts/checkpoint.safetensors").exists() {
        assert!(started.elapsed().as_secs() < 120, "it writes a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Should the machine have been too slow to kill it in time, the last checkpoint is what it goes on from.
    fs::remove_file(bench.path("parts/result.json")).ok();
    fs::remove_file(bench.path("w.safetensors")).unwrap();
    bench.succeed(&format!("{flags} parts --resume"));
    for file in ["model.safetensors", "topology.jsonl"] {
        let read = |run: &str| fs::read(bench.path(&format!("{run}/{file}"))).unwrap();
        assert!(read("whole") == read("parts"), "{file}");
    }
    let started_from = |run: &str| bench.json(&format!("{run}/result.json"))["started_from"].clone();
    assert_eq!(started_from("whole"), started_from("parts"));
    assert_eq!(started_from("parts")["sparsity"].as_f64().map(|s| (s * 10.0).round()), Some(9.0));
}

/// Masks without constant fan-in, for methods that need it.
#[test]
fn masks_that_do_not_fit_the_method_are_said_or_refused() {
    let bench = Bench::new();
    bench.succeed(&bench.train("--method rigl --sparsity 0.9 --epochs 1 --out first"));
    let start = "--weights first/model.safetensors --epochs 1";
    let error = bench.refused(&bench.train(&format!("{start} --method structured-static --out x")));
    assert!(error.contains("needs constant fan-in") && error.contains("--initial-mask magnitude"), "{error}");
    let said = bench.succeed(&bench.train(&format!("{start} --out srigl")));
    assert!(said.contains("no constant fan-in in fc1, fc2"), "{said}");
    let layers = bench.json("srigl/result.json")["layers"].clone();
    assert!(layers.as_array().unwrap().iter().all(|layer| layer["fan_in"].is_u64()), "{layers}");
    bench.succeed(
        &bench.train(&format!("{start} --method structured-static --initial-mask magnitude --out y")),
    );
}

#[test]
fn a_dense_network_starts_with_its_largest_weights() {
    let bench = Bench::new();
    bench.succeed(&bench.train("--method dense --epochs 3 --lr 0.05 --out dense"));
    let accuracy = bench.json("dense/result.json")["test_accuracy"].as_f64().unwrap();
    let start = "--weights dense/model.safetensors --epochs 1 --lr 0.01 --sparsity 0.8";
    let said = bench.succeed(&bench.train(&format!("{start} --out pruned")));
    assert!(said.contains(", mask: the largest weights of each neuron, sparsity 80"), "{said}");
    let from = |run: &str| {
        let result = bench.json(&format!("{run}/result.json"));
        result["started_from"]["test_accuracy"].as_f64().unwrap()
    };
    bench.succeed(&bench.train(&format!("{start} --initial-mask random --out random")));
    assert!(from("pruned") > from("random") + 0.1, "{} and {}", from("pruned"), from("random"));
    assert!(from("pruned") > accuracy / 2.0, "{} of {accuracy}", from("pruned"));
    bench.succeed(
        &bench.train(&format!("{start} --method rigl --initial-mask global-magnitude --out global")),
    );
    assert!(from("global") > from("random"));
    let error = bench.refused(&bench.train(&format!("{start} --initial-mask file --out x")));
    assert!(error.contains("neither masks nor zeros"), "{error}");
    assert!(!bench.path("x").exists());
    let error = bench.refused(&bench.train("--initial-mask magnitude --out x"));
    assert!(error.contains("add --weights FILE"), "{error}");
}

/// A perceptron's weights under other names and in other types.
fn perceptron(prefix: &str, classes: usize) -> Tensors {
    let shapes = [("fc1", [300, 784]), ("fc2", [100, 300]), ("fc3", [classes, 100])];
    let values =
        |count: usize| (0..count).flat_map(|i| (((i * 37 + 11) % 97) as f32 / 970.0 - 0.05).to_le_bytes());
    let tensors = shapes.into_iter().flat_map(|(name, [out, input])| {
        let weight = (Dtype::F32, vec![out, input], values(out * input).collect());
        let bias = (Dtype::F32, vec![out], values(out).collect());
        [(format!("{prefix}{name}.weight"), weight), (format!("{prefix}{name}.bias"), bias)]
    });
    tensors.collect()
}

fn as_type(dtype: Dtype, tensors: &Tensors) -> Tensors {
    let bytes = |value: f32| match dtype {
        Dtype::F16 => f16::from_f32(value).to_le_bytes(),
        _ => bf16::from_f32(value).to_le_bytes(),
    };
    let tensor =
        |tensor: &Tensor| (dtype, tensor.1.clone(), floats(tensor).into_iter().flat_map(bytes).collect());
    tensors.iter().map(|(name, t)| (name.clone(), tensor(t))).collect()
}

#[test]
fn weights_of_any_name_and_type_are_one_network() {
    let bench = Bench::new();
    let input = (
        Dtype::F32,
        vec![3, 784],
        (0..3 * 784).flat_map(|i| ((i % 13) as f32 / 13.0).to_le_bytes()).collect(),
    );
    write(&bench.path("x.safetensors"), &Tensors::from([("input".to_string(), input)]));
    let logits = |file: &str| -> (Vec<f32>, String) {
        let said = bench.succeed(&format!(
            "predict --model mlp --weights {file}.safetensors --input x.safetensors -o {file}.y"
        ));
        (floats(&read(&bench.path(&format!("{file}.y")))["logits"]), said)
    };
    write(&bench.path("plain.safetensors"), &perceptron("", 10));
    let (want, said) = logits("plain");
    assert_eq!(said, "", "nothing was guessed");
    for prefix in ["module.", "_orig_mod.", "model.", "module._orig_mod.", "student.backbone."] {
        write(&bench.path("prefixed.safetensors"), &perceptron(prefix, 10));
        let (got, said) = logits("prefixed");
        assert_eq!(got, want, "{prefix}");
        assert!(said.contains(&format!("the prefix `{prefix}` is taken off 6 names")), "{said}");
        bench.succeed("condense prefixed.safetensors --model mlp -o c.safetensors");
        let said = bench.succeed(&bench.train(&format!(
            "--weights prefixed.safetensors --limit-steps 1 --epochs 1 --out {}run",
            prefix.replace('.', "-")
        )));
        assert!(said.contains("is taken off"), "{said}");
    }
    for dtype in [Dtype::F16, Dtype::BF16] {
        write(&bench.path("half.safetensors"), &as_type(dtype, &perceptron("", 10)));
        let (got, _) = logits("half");
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 0.05), "{dtype}: {got:?}, not {want:?}");
        bench.succeed("condense half.safetensors --model mlp -o c.safetensors");
        bench.succeed("export half.safetensors -o e.safetensors");
        assert_eq!(read(&bench.path("e.safetensors"))["fc1.weight"].0, dtype, "export keeps the type");
    }

    // Weights, their moving average and an optimizer in one file.
    let mut several = perceptron("model.", 10);
    several.extend(as_type(Dtype::F16, &perceptron("model_ema.module.", 10)));
    several.insert("optimizer.state.0.exp_avg".into(), perceptron("", 10)["fc1.weight"].clone());
    write(&bench.path("several.safetensors"), &several);
    let (got, said) = logits("several");
    assert_eq!(got, want);
    assert!(
        said.contains("6 tensors outside the network") && said.contains("1 tensors of optimizers"),
        "{said}"
    );
    // Nobody can tell which of two others is meant.
    let mut two = perceptron("teacher.", 10);
    two.extend(perceptron("student.", 10));
    write(&bench.path("two.safetensors"), &two);
    let error = bench.refused("condense two.safetensors --model mlp -o c.safetensors");
    assert!(error.contains("several networks of this kind, named `student.`, `teacher.`"), "{error}");

    // What data-parallel training puts before all names is not the network's.
    write(&bench.path("ddp.safetensors"), &perceptron("module.", 10));
    let said = bench.succeed("export ddp.safetensors -o e.safetensors");
    assert!(said.contains("the prefix `module.`"), "{said}");
    assert!(read(&bench.path("e.safetensors")).contains_key("fc1.weight"));
}

#[test]
fn other_classes_need_a_new_head() {
    let bench = Bench::new();
    let mut pruned = perceptron("", 7);
    let mask = (Dtype::U8, vec![7, 100], (0..700).map(|i| u8::from(i % 10 == 0)).collect());
    pruned.insert("fc3.mask".into(), mask);
    for (file, tensors) in [("dense", perceptron("", 7)), ("pruned", pruned)] {
        write(&bench.path(&format!("{file}.safetensors")), &tensors);
        let start =
            format!("--weights {file}.safetensors --epochs 1 --limit-steps 2 --sparsity 0.8 --out {file}");
        let error = bench.refused(&bench.train(&start));
        assert!(error.contains("tells 7 classes apart, but the data has 10: add --new-head"), "{error}");
        assert!(!bench.path(file).exists(), "nothing is made");
        let said = bench.succeed(&bench.train(&format!("{start} --new-head")));
        assert!(said.contains("`fc3` starts anew"), "{said}");
    }
    // As sparse as the old one, and dense layers stay dense.
    assert_eq!(bench.layer_sparsities("pruned"), [0.0, 0.0, 0.9]);
}

/// `torch.nn.utils.prune` before `prune.remove`.
#[test]
fn pairs_of_torch_prune_are_weights_and_masks() {
    let bench = Bench::new();
    let mut tensors = perceptron("", 10);
    for layer in ["fc1", "fc2", "fc3"] {
        let weight = tensors.remove(&format!("{layer}.weight")).unwrap();
        let count = weight.1.iter().product();
        let mask =
            (0..count).flat_map(|i: usize| f32::from(u8::from(i.is_multiple_of(4))).to_le_bytes()).collect();
        tensors.insert(format!("{layer}.weight_mask"), (Dtype::F32, weight.1.clone(), mask));
        tensors.insert(format!("{layer}.weight_orig"), weight);
    }
    write(&bench.path("prune.safetensors"), &tensors);
    let said = bench.succeed(
        &bench.train("--weights prune.safetensors --epochs 1 --limit-steps 2 --method rigl --out run"),
    );
    assert!(said.contains("3 pairs NAME_orig, NAME_mask"), "{said}");
    assert_eq!(bench.layer_sparsities("run"), [0.75; 3]);
    bench.succeed("condense prune.safetensors --model mlp -o c.safetensors");
}
