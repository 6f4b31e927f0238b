//! `srigl mask` through the real binary: the authors' golden vectors, round trips, and every kind of bad input.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use tempfile::TempDir;

#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

type Tensors = BTreeMap<String, Tensor>;

fn f32s(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    let data = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), data }
}

fn bytes(dtype: Dtype, shape: &[usize], data: impl Into<Vec<u8>>) -> Tensor {
    Tensor { dtype, shape: shape.to_vec(), data: data.into() }
}

impl Tensor {
    fn floats(&self) -> Vec<f32> {
        self.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

fn encode(tensors: &Tensors, metadata: Option<HashMap<String, String>>) -> Vec<u8> {
    let views =
        tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    safetensors::serialize(views, metadata).unwrap()
}

fn read(path: &Path) -> Tensors {
    let file = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let views = SafeTensors::deserialize(&file).unwrap().tensors();
    views.into_iter().map(|(name, v)| (name, bytes(v.dtype(), v.shape(), v.data()))).collect()
}

/// A raw file with this header.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Values that look random but are not: no two of a tensor have the same size.
fn values(count: usize, seed: u32) -> impl Iterator<Item = f32> {
    (1..=count as u32).map(move |i| {
        let bits = i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8;
        (bits as f32 / (1 << 23) as f32 - 1.0) * 0.1 + 1e-6
    })
}

/// Two layers with gradients, and tensors that are none of our business.
fn model() -> Tensors {
    let layer = |name: &str, shape: &[usize], seed| {
        let count = shape.iter().product();
        let tensor = |suffix: &str, seed| (format!("{name}.{suffix}"), f32s(shape, values(count, seed)));
        [tensor("weight", seed), tensor("grad", seed + 1)]
    };
    let others = [
        ("fc1.bias", f32s(&[20], values(20, 9))),
        ("norm.weight", bytes(Dtype::BF16, &[20], vec![7; 40])),
        ("norm.num_batches_tracked", bytes(Dtype::I64, &[], vec![1; 8])),
        ("weight", f32s(&[2, 2], [f32::NAN; 4])),
    ];
    let others = others.map(|(name, tensor)| (name.to_string(), tensor));
    let layers = [layer("fc1", &[20, 30], 1), layer("conv", &[8, 4, 3, 3], 5)].into_iter().flatten();
    layers.chain(others).collect()
}

/// The model with a mask of every second position in each layer.
fn masked_model() -> Tensors {
    let mut tensors = model();
    for name in ["fc1", "conv"] {
        let shape = tensors[&format!("{name}.weight")].shape.clone();
        let mask: Vec<u8> = (0..shape.iter().product()).map(|i: usize| (i % 2) as u8).collect();
        tensors.insert(format!("{name}.mask"), bytes(Dtype::U8, &shape, mask));
    }
    tensors
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
        fs::write(self.path(name), encode(tensors, None)).unwrap();
    }

    /// `srigl mask ARGS` in the folder.
    fn run(&self, args: &str) -> Output {
        self.run_with_threads(args, 2)
    }

    fn run_with_threads(&self, args: &str, threads: usize) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
        command.arg("mask").args(args.split_whitespace()).current_dir(self.folder.path());
        command.env("RAYON_NUM_THREADS", threads.to_string()).output().unwrap()
    }

    fn succeed(&self, args: &str) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &str) -> Value {
        let stdout = self.succeed(&format!("{args} --json"));
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args}: {e} in {stdout}"))
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The command fails with one line that contains `expected`, and changes no file.
    fn refuse(&self, case: &str, args: &str, expected: &str) {
        let before = self.files();
        let output = self.run(args);
        check_refused(case, &output, expected);
        assert_eq!(self.files(), before, "{case}: files left behind");
    }
}

fn check_refused(case: &str, output: &Output, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    // A signal or a panic would have another code.
    assert_eq!(output.status.code(), Some(1), "{case}: {stderr}");
    assert!(stderr.starts_with("srigl: "), "{case}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{case}: {stderr}");
    assert!(stderr.contains(expected), "{case}: no `{expected}` in: {stderr}");
    assert!(output.stdout.is_empty(), "{case}: printed something");
}

#[test]
fn one_step_matches_the_authors_code() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sparsity-core/tests/golden");
    let mut count = 0;
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let bench = Bench::new();
        fs::copy(path.with_extension("in.safetensors"), bench.path("in")).unwrap();
        let method = settings["method"].as_str().unwrap();
        let mut args = format!(
            "step in -o out --method {method} --distribution uniform --sparsity {} --drop-fraction {}",
            settings["sparsity"], settings["drop_fraction"]
        );
        if method == "srigl" {
            args += &format!(" --gamma-sal {}", settings["gamma_sal"]);
            let spared = settings["no_ablate"].as_array().unwrap();
            for layer in spared.iter().map(|layer| layer.as_str().unwrap()) {
                args += &format!(" --no-ablate {layer}");
            }
            if spared.is_empty() {
                args += " --no-ablate none";
            }
        }
        let report = bench.json(&args);
        let (out, want) = (read(&bench.path("out")), read(&path.with_extension("want.safetensors")));
        assert_eq!(out.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{args}");
        for (name, want) in &want {
            let got = &out[name];
            assert_eq!((got.dtype, &got.shape), (want.dtype, &want.shape), "{}: {name}", path.display());
            // As numbers: the authors' code leaves negative zeros at inactive positions.
            let same = if want.dtype == Dtype::F32 { got.floats() == want.floats() } else { got == want };
            assert!(same, "{}: {name}", path.display());
        }
        let layers = report["layers"].as_array().unwrap();
        assert_eq!(layers.len() * 2, want.len());
        count += 1;
    }
    assert_eq!(count, 11, "golden vectors present");
}

#[test]
fn init_step_and_inspect_agree_for_all_methods() {
    for (method, target) in [
        ("srigl", "--sparsity 0.8"),
        ("srigl", "--sparsity 0.8 --group 4"),
        ("srigl", "--nm 1:4"),
        ("rigl", "--sparsity 0.8"),
        ("rigl", "--nm 2:4"),
        ("set", "--sparsity 0.8"),
        ("set", "--nm 3:7"),
        ("static", "--sparsity 0.8"),
        ("structured-set", "--sparsity 0.8"),
        ("structured-set", "--nm 2:4 --group 3"),
        ("structured-static", "--sparsity 0.8"),
        ("mest", "--sparsity 0.8"),
        ("snfs", "--sparsity 0.8"),
    ] {
        let bench = Bench::new();
        bench.put("in", &model());
        let target = format!("--method {method} {target}");
        let random = format!("init in -o sparse {target} --initial-mask random --seed 3");
        let (init, inspected) = (bench.json(&random), bench.json("inspect sparse"));
        assert_eq!(
            (&init["layers"], &init["sparsity"]),
            (&inspected["layers"], &inspected["sparsity"]),
            "{method}"
        );
        let inputs = read(&bench.path("in"));
        let sparse = read(&bench.path("sparse"));
        for name in ["fc1", "conv"] {
            let (mask, old) = (&sparse[&format!("{name}.mask")], inputs[&format!("{name}.weight")].floats());
            let new = sparse[&format!("{name}.weight")].floats();
            assert_eq!((mask.dtype, &mask.shape), (Dtype::U8, &sparse[&format!("{name}.weight")].shape));
            for (i, active) in mask.data.iter().enumerate() {
                let want = if *active == 1 { old[i] } else { 0.0 };
                assert_eq!(new[i].to_bits(), want.to_bits(), "{method} {name} {i}");
            }
        }

        let step = bench.json(&format!("step sparse -o new {target} --drop-fraction 0.3 --gamma-sal 0.9"));
        let inspect = bench.json("inspect new");
        assert_eq!(step["sparsity"], inspect["sparsity"], "{method}");
        let new = read(&bench.path("new"));
        assert!(!new.contains_key("fc1.grad") && !new.contains_key("conv.grad"));
        for (i, layer) in step["layers"].as_array().unwrap().iter().enumerate() {
            let name = layer["name"].as_str().unwrap();
            let (was, now) = (&init["layers"][i], &inspect["layers"][i]);
            for field in ["name", "neurons", "active", "ablated", "fan_in", "nnz", "sparsity"] {
                assert_eq!(layer[field], now[field], "{method} {name} {field}");
            }
            let count = |layer: &Value, field: &str| layer[field].as_i64().unwrap();
            let change = count(layer, "grown") - count(layer, "pruned");
            assert_eq!(count(layer, "nnz") - count(was, "nnz"), change, "{method} {name}");
            // What is there on purpose; patterns may come and go by chance.
            for field in ["nm", "group"].into_iter().filter(|field| target.contains(&format!("--{field}"))) {
                assert_eq!(was[field], now[field], "{target} {name}");
            }
            match method {
                "srigl" | "structured-set" => assert_eq!(layer["constant_fan_in"], true),
                "static" | "structured-static" => {
                    assert_eq!(new[&format!("{name}.mask")], sparse[&format!("{name}.mask")]);
                }
                "snfs" => assert!(count(layer, "pruned") > 0),
                _ => assert!(count(layer, "pruned") > 0 && change == 0, "{method} {name}"),
            }
            let mask = &new[&format!("{name}.mask")].data;
            let weights = new[&format!("{name}.weight")].floats();
            let zero = |(active, weight): (&u8, &f32)| *active == 1 || weight.to_bits() == 0;
            assert!(mask.iter().zip(&weights).all(zero), "{method} {name}: inactive weights are 0");
        }
    }
}

/// The structure that was asked for is what `inspect` tells, and what it leads to.
#[test]
fn patterns_and_groups_are_told() {
    let bench = Bench::new();
    bench.put("in", &model());
    let layers = |args: &str| bench.json(args)["layers"].clone();
    bench.succeed("init in -o nm --method rigl --nm 2:4 --initial-mask random --seed 1");
    let nm = layers("inspect nm");
    assert_eq!([0, 1].map(|i| nm[i]["nm"].as_str().unwrap()), ["2:4"; 2]);
    // conv has 36 inputs, fc1 30: seven groups of four, and two.
    assert_eq!([0, 1].map(|i| nm[i]["fan_in"].as_u64().unwrap()), [18, 16]);
    let plan = layers("plan in --nm 2:4");
    assert_eq!([0, 1].map(|i| plan[i]["fan_in"].as_u64().unwrap()), [18, 16]);
    bench.succeed("init in -o groups --method srigl --sparsity 0.8 --group 4 --initial-mask random");
    assert_eq!([0, 1].map(|i| layers("inspect groups")[i]["group"].as_u64().unwrap()), [4; 2]);
    let text = bench.succeed("inspect groups");
    assert!(text.contains("structure") && text.contains("groups of 4"), "{text}");
    // The larger half of each group of weights stays.
    bench.succeed("init in -o nm --method rigl --nm 2:4");
    let (before, after) = (read(&bench.path("in")), read(&bench.path("nm")));
    let (weights, mask) = (before["fc1.weight"].floats(), &after["fc1.mask"].data);
    for (weights, mask) in weights.chunks(30).zip(mask.chunks(30)) {
        for (weights, mask) in weights.chunks(4).zip(mask.chunks(4)) {
            let of = |active: u8| {
                weights.iter().zip(mask).filter(move |(_, m)| **m == active).map(|(w, _)| w.abs())
            };
            assert!(of(1).fold(f32::MAX, f32::min) >= of(0).fold(0.0, f32::max));
            assert_eq!(of(1).count(), 2);
        }
    }
    let output = bench.run("init in -o none --nm 2:4 --sparsity 0.5");
    assert_eq!(output.status.code(), Some(2), "one of them");
    for (args, expected) in [
        (
            "init in -o none --method rigl --sparsity 0.5 --group 4",
            "method `rigl` cannot have groups that share inputs",
        ),
        ("init in -o none --method snfs --nm 2:4", "method `snfs` cannot have an N:M pattern"),
    ] {
        bench.refuse(args, args, expected);
    }
    let said = bench.run("init in -o ste --method sr-ste --sparsity 0.9");
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("the sparsity is that of 2:4"), "{said}");
}

/// Straight-through estimators and Top-KAST have weights beside the mask.
#[test]
fn weights_outside_stay_where_a_method_keeps_them() {
    for (method, target) in [("top-kast", "--sparsity 0.8"), ("sr-ste", "--nm 2:4")] {
        let bench = Bench::new();
        bench.put("in", &model());
        bench.succeed(&format!("init in -o sparse --method {method} {target}"));
        let (before, sparse) = (read(&bench.path("in")), read(&bench.path("sparse")));
        assert_eq!(before["fc1.weight"], sparse["fc1.weight"], "{method}");
        let mut moved = sparse.clone();
        let larger: Vec<f32> =
            moved["fc1.weight"].floats().iter().enumerate().map(|(i, w)| w * (i % 7) as f32).collect();
        moved.insert("fc1.weight".into(), f32s(&[20, 30], larger));
        bench.put("moved", &moved);
        let output = bench.run(&format!("step moved -o new --method {method} {target} --drop-fraction 0"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && said.contains("weights outside the masks keep their values"),
            "{said}"
        );
        let new = read(&bench.path("new"));
        assert_eq!(new["fc1.weight"], moved["fc1.weight"]);
        assert_ne!(new["fc1.mask"], sparse["fc1.mask"], "weights that were outside have come in");
        assert_eq!(new["conv.mask"], sparse["conv.mask"]);
    }
}

#[test]
fn snip_looks_at_weights_and_gradients_of_all_layers() {
    let bench = Bench::new();
    let tensors = model();
    bench.put("in", &tensors);
    let report = bench.json("init in -o sparse --method snip --sparsity 0.8");
    assert!(report["notes"].to_string().contains("largest |W · ∂loss/∂W|"), "{report}");
    let sparse = read(&bench.path("sparse"));
    let mut products: Vec<(f32, bool)> = Vec::new();
    for name in ["conv", "fc1"] {
        let [weights, grads] = ["weight", "grad"].map(|of| tensors[&format!("{name}.{of}")].floats());
        let active = sparse[&format!("{name}.mask")].data.iter().map(|active| *active == 1);
        products.extend(weights.iter().zip(grads).map(|(w, g)| (w * g).abs()).zip(active));
    }
    products.sort_by(|a, b| b.0.total_cmp(&a.0));
    let kept = products.iter().take_while(|(_, active)| *active).count();
    assert_eq!(kept, (888.0_f64 * (1.0 - 0.8)).floor() as usize);
    assert!(products[kept..].iter().all(|(_, active)| !active));
    let mut without = tensors.clone();
    without.remove("fc1.grad");
    bench.put("without", &without);
    let args = "init without -o none --method snip --sparsity 0.8";
    bench.refuse(args, args, "tensor `fc1.grad` is missing");
}

#[test]
fn gmp_prunes_to_the_sparsity_of_the_moment() {
    let bench = Bench::new();
    bench.put("in", &model());
    bench.succeed("init in -o now --method gmp --sparsity 0.9");
    assert_eq!(bench.json("inspect now")["sparsity"], 0.0);
    let mut last = read(&bench.path("now"));
    for sparsity in [0.5, 0.8, 0.9] {
        let step = format!(
            "step now -o now --method gmp --sparsity {sparsity} --drop-fraction 0 --distribution uniform"
        );
        let report = bench.json(&step);
        assert!((report["sparsity"].as_f64().unwrap() - sparsity).abs() < 0.003, "{report}");
        let now = read(&bench.path("now"));
        let pairs = last["fc1.mask"].data.iter().zip(&now["fc1.mask"].data);
        assert!(pairs.clone().all(|(before, after)| after <= before), "nothing comes back");
        last = now;
    }
}

#[test]
fn plan_shares_the_sparsity() {
    let bench = Bench::new();
    bench.put("in", &model());
    for distribution in ["erk", "er", "uniform"] {
        let plan = bench.json(&format!("plan in --sparsity 0.8 --distribution {distribution}"));
        assert!((plan["sparsity"].as_f64().unwrap() - 0.8).abs() < 1e-12, "{plan}");
        let names: Vec<&Value> = plan["layers"].as_array().unwrap().iter().map(|l| &l["name"]).collect();
        assert_eq!(names, ["conv", "fc1"]);
    }
    let plan = bench.json("plan in --sparsity 0.6 --keep-dense c*v --distribution uniform");
    let (conv, fc1) = (&plan["layers"][0], &plan["layers"][1]);
    assert_eq!((conv["sparsity"].as_f64(), conv["nnz"].as_u64()), (Some(0.0), Some(288)));
    assert_eq!(conv["shape"], serde_json::json!([8, 4, 3, 3]));
    // 0.6 · 888 zeros, all in the 600 weights of fc1.
    assert!((fc1["sparsity"].as_f64().unwrap() - 0.888).abs() < 1e-12, "{fc1}");
    assert_eq!((fc1["nnz"].as_u64(), fc1["fan_in"].as_u64()), (Some(67), Some(3)));

    let text = bench.succeed("plan in --sparsity 0.6");
    assert!(text.contains("8 x 4 x 3 x 3") && text.contains("total"), "{text}");
    assert_eq!(bench.files(), ["in"]);
}

#[test]
fn plan_looks_only_at_shapes() {
    let bench = Bench::new();
    bench.put("half", &Tensors::from([("a.weight".into(), bytes(Dtype::BF16, &[4, 6], vec![0xff; 48]))]));
    assert_eq!(bench.json("plan half --sparsity 0.5")["layers"][0]["nnz"], 12);
}

#[test]
fn layers_follow_the_order_of_their_names_and_not_of_their_tensors() {
    let bench = Bench::new();
    let names = ["b.weight", "a.b.weight", "a.weight", "a-b.weight"];
    let tensors = names.map(|name| (name.to_string(), f32s(&[4, 6], values(24, 0))));
    bench.put("in", &Tensors::from(tensors));
    let report = bench.json("init in -o out --sparsity 0.5 --initial-mask random");
    let names: Vec<&Value> = report["layers"].as_array().unwrap().iter().map(|l| &l["name"]).collect();
    assert_eq!(names, ["a", "a-b", "a.b", "b"]);
    let out = read(&bench.path("out"));
    assert_ne!(out["a.mask"], out["b.mask"], "layers have random streams of their own");
}

#[test]
fn results_depend_on_seeds_alone() {
    let bench = Bench::new();
    // Several entries, which a hash map would order differently in each process.
    let metadata =
        ["format", "author", "licence", "epoch"].map(|key| (key.to_string(), "x\u{e9}".to_string()));
    fs::write(bench.path("in"), encode(&model(), Some(metadata.into()))).unwrap();
    let run = |args: &str, threads, out: &str| {
        let output = bench.run_with_threads(&format!("{args} -o {out}"), threads);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(bench.path(out)).unwrap()
    };
    for method in ["srigl", "set"] {
        let init = format!("init in --method {method} --sparsity 0.7 --weight-init kaiming-normal");
        let one = run(&format!("{init} --seed 1"), 1, "one");
        assert!(one == run(&format!("{init} --seed 1"), 2, "two"), "{method}: threads matter");
        assert!(one != run(&format!("{init} --seed 2"), 1, "two"), "{method}: the seed does not matter");
        let step = format!("step one --method {method} --sparsity 0.7 --drop-fraction 0.5");
        let new = run(&step, 1, "new");
        assert!(new == run(&step, 2, "two"), "{method}: threads matter");
        for other in ["--seed 7", "--step 2"] {
            let random = new != run(&format!("{step} {other}"), 2, "two");
            assert_eq!(random, method == "set", "{method} {other}");
        }
    }
}

#[test]
fn other_tensors_and_metadata_pass_through() {
    let bench = Bench::new();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string()), ("a\"b".into(), "ü\n".into())]);
    fs::write(bench.path("in"), encode(&model(), Some(metadata.clone()))).unwrap();
    bench.succeed("init in -o sparse --sparsity 0.7");
    bench.succeed("step sparse -o new --sparsity 0.7 --drop-fraction 0.3");
    for name in ["sparse", "new"] {
        let file = fs::read(bench.path(name)).unwrap();
        let (header, parsed) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(parsed.metadata().as_ref(), Some(&metadata), "{name}");
        assert!(header.is_multiple_of(8), "{name}: data is aligned");
        let tensors = read(&bench.path(name));
        for (tensor, want) in model().iter().filter(|(tensor, _)| !tensor.starts_with("conv")) {
            if !["fc1.weight", "fc1.grad"].contains(&tensor.as_str()) {
                assert_eq!(&tensors[tensor], want, "{name} {tensor}");
            }
        }
    }
    let sparse = read(&bench.path("sparse"));
    assert_eq!(sparse["fc1.grad"], model()["fc1.grad"], "init leaves gradients alone");
}

#[test]
fn dense_layers_need_nothing_and_keep_everything() {
    let bench = Bench::new();
    let mut tensors = masked_model();
    tensors.insert("conv.weight".into(), bytes(Dtype::F16, &[8, 4, 3, 3], vec![1; 576]));
    tensors.remove("conv.grad");
    bench.put("mask", &tensors);
    let args = "--sparsity 0.5 --drop-fraction 0.3 --keep-dense conv --distribution uniform";
    let report = bench.json(&format!("step mask -o out {args}"));
    assert_eq!((&report["layers"][0]["nnz"], &report["layers"][0]["grown"]), (&144.into(), &0.into()));
    let out = read(&bench.path("out"));
    assert_eq!((&out["conv.weight"], &out["conv.mask"]), (&tensors["conv.weight"], &tensors["conv.mask"]));

    tensors.remove("conv.mask");
    bench.put("none", &tensors);
    let report = bench.json(&format!("step none -o out {args}"));
    assert_eq!((&report["layers"][0]["nnz"], &report["layers"][0]["has_mask"]), (&288.into(), &false.into()));
    assert!(!read(&bench.path("out")).contains_key("conv.mask"));

    tensors.remove("fc1.mask");
    bench.put("plain", &tensors);
    bench.succeed("init plain -o out --sparsity 0.5 --keep-dense conv --weight-init torch-default");
    let out = read(&bench.path("out"));
    assert_eq!(out["conv.weight"], tensors["conv.weight"]);
    assert_eq!(out["conv.mask"].data, [1; 288]);
    let bound = out["fc1.weight"].floats().iter().fold(0.0_f32, |max, w| max.max(w.abs()));
    assert!(bound > 0.2, "fc1 was drawn anew: {bound}");
}

#[test]
fn masks_keep_their_type_and_what_is_inactive_is_ignored() {
    let bench = Bench::new();
    let mut tensors = masked_model();
    bench.put("u8", &tensors);
    tensors.get_mut("fc1.mask").unwrap().dtype = Dtype::BOOL;
    // Huge weights where the mask is 0.
    let mut weights = tensors["fc1.weight"].floats();
    weights.iter_mut().step_by(2).for_each(|w| *w = 1e30);
    tensors.insert("fc1.weight".into(), f32s(&[20, 30], weights));
    bench.put("bool", &tensors);
    for method in ["srigl", "rigl", "static"] {
        let args = format!("--method {method} --sparsity 0.5 --drop-fraction 0.3");
        bench.succeed(&format!("step u8 -o u8-out {args}"));
        bench.succeed(&format!("step bool -o bool-out {args}"));
        let (from_u8, from_bool) = (read(&bench.path("u8-out")), read(&bench.path("bool-out")));
        assert_eq!(from_u8["fc1.weight"], from_bool["fc1.weight"], "{method}");
        assert_eq!(from_u8["fc1.mask"].data, from_bool["fc1.mask"].data, "{method}");
        let types = (from_u8["fc1.mask"].dtype, from_bool["fc1.mask"].dtype);
        assert_eq!(types, (Dtype::U8, Dtype::BOOL), "{method}");
    }
}

#[test]
fn set_and_static_need_no_gradients() {
    let bench = Bench::new();
    let mut tensors = masked_model();
    tensors.retain(|name, _| !name.ends_with(".grad"));
    bench.put("in", &tensors);
    for method in ["set", "static"] {
        bench.succeed(&format!("step in -o {method} --method {method} --sparsity 0.5 --drop-fraction 0.3"));
    }
}

#[test]
fn no_ablate_spares_the_layers_it_names() {
    let bench = Bench::new();
    bench.put("in", &model());
    bench.succeed("init in -o sparse --sparsity 0.8 --initial-mask random --seed 1");
    let active = |options: &str| {
        let args = format!("step sparse -o out --sparsity 0.8 --drop-fraction 0.3 {options}");
        let report = bench.json(&args);
        [0, 1].map(|i| report["layers"][i]["active"].as_u64().unwrap())
    };
    let [conv, fc1] = active("--gamma-sal 0.95 --no-ablate none");
    assert!(conv < 8 && fc1 < 20, "{conv} {fc1}");
    assert_eq!(active("--gamma-sal 0.95 --no-ablate fc*"), [conv, 20]);
    assert_eq!(active("--gamma-sal 0.95 --no-ablate c*"), [8, fc1]);
    // The classifier is spared by default, and the report says which layer that is.
    assert_eq!(active("--gamma-sal 0.95"), [conv, 20]);
    let output = bench.run("step sparse -o out --sparsity 0.8 --drop-fraction 0.3");
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("`fc1` is taken for the classifier"), "{notes}");
    assert_eq!(active("--gamma-sal 0"), [8, 20]);
}

#[test]
fn inspect_takes_non_zero_weights_for_active_where_there_is_no_mask() {
    let bench = Bench::new();
    let weight = f32s(&[3, 3], [1.0, -0.0, 2.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]);
    bench.put("in", &Tensors::from([("a.weight".to_string(), weight)]));
    let report = bench.json("inspect in");
    let layer = &report["layers"][0];
    let want = serde_json::json!({
        "name": "a", "shape": [3, 3], "has_mask": false, "neurons": 3, "active": 2, "ablated": [1], "fan_in": null,
        "fan_in_min": 1, "fan_in_max": 2, "nnz": 3, "sparsity": layer["sparsity"], "density": 3.0 / 9.0,
        "constant_fan_in": false, "nm": null, "group": 1,
    });
    assert_eq!(layer, &want);
    assert!(bench.succeed("inspect in").contains("1 to 2"));
}

#[test]
fn the_input_may_be_the_output_and_survives_a_failure() {
    let bench = Bench::new();
    bench.put("model", &model());
    let text = bench.succeed("init model -o model --sparsity 0.5");
    assert!(text.contains("total") && text.ends_with("wrote `model`\n"), "{text}");
    let before = fs::read(bench.path("model")).unwrap();
    let again = bench.json("init model -o model --sparsity 0.9");
    assert!(before == fs::read(bench.path("model")).unwrap(), "a file with masks keeps them");
    assert!(again["notes"].to_string().contains("the masks are those of the file"), "{again}");
    bench.refuse("failure", "step model -o model --sparsity 0.99 --drop-fraction 0.3", "fan-in would be 0");
    assert!(before == fs::read(bench.path("model")).unwrap());
    bench.succeed("step model -o model --sparsity 0.5 --drop-fraction 0.3");
    assert_eq!(bench.files(), ["model"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode();
        fs::write(bench.path("ordinary"), "").unwrap();
        assert_eq!(mode("model"), mode("ordinary"), "the output can be read by whom other files can");
    }
}

#[test]
fn bad_settings_are_refused() {
    let bench = Bench::new();
    bench.put("plain", &model());
    bench.put("mask", &masked_model());
    let step = "step mask -o out --sparsity 0.5 --drop-fraction";
    for (args, expected) in [
        ("plan plain --sparsity 1", "--sparsity is 1.0, but must be in [0, 1)"),
        ("plan plain --sparsity -0.1", "--sparsity is -0.1, but must be in [0, 1)"),
        ("init plain -o out --sparsity nan", "--sparsity is NaN, but must be in [0, 1)"),
        ("init plain -o out --sparsity 0.97 --distribution uniform", "layer `fc1`: fan-in would be 0"),
        ("init plain -o out --sparsity 0.5 --keep-dense fc3", "--keep-dense fc3: no layer"),
        ("init plain -o out --sparsity 0.5 --keep-dense fc[", "--keep-dense fc["),
        ("init plain -o out --sparsity 0.9 --keep-dense fc*", "layers kept dense hold 600 of 888 weights"),
        ("init plain -o none/out --sparsity 0.5", "no folder `none`"),
        ("init plain -o . --sparsity 0.5", "cannot write `.`"),
        ("init plain -o /dev/null --sparsity 0.5", "cannot write `/dev/null`"),
        (&format!("{step} 1.1"), "--drop-fraction is 1.1, but must be in [0, 1]"),
        (&format!("{step} -0.1"), "--drop-fraction is -0.1, but must be in [0, 1]"),
        (&format!("{step} nan"), "--drop-fraction is NaN, but must be in [0, 1]"),
        (&format!("{step} 0.3 --gamma-sal -1"), "gamma_sal is -1"),
        (&format!("{step} 0.3 --gamma-sal inf"), "gamma_sal is inf"),
        (&format!("{step} 0.3 --no-ablate head"), "--no-ablate head: no layer"),
        ("step mask -o out --sparsity 0.99 --drop-fraction 0.3", "layer `conv`: fan-in would be 0"),
    ] {
        bench.refuse(args, args, expected);
    }
    // clap's own: other words and code, but as clear.
    for args in [
        "plan plain",
        "plan plain --sparsity x",
        "step mask -o out --sparsity 0.5",
        "init plain --sparsity 0",
    ] {
        let output = bench.run(args);
        assert_eq!(output.status.code(), Some(2), "{args}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args}");
    }
    assert_eq!(bench.files(), ["mask", "plain"]);
}

#[test]
fn bad_tensors_are_refused() {
    let with_value = |name: &str, value: f32| {
        let mut values = masked_model()[name].floats();
        values[31] = value;
        f32s(&masked_model()[name].shape, values)
    };
    let shape = [20, 30];
    let mask = |dtype, value: u8| {
        let mut data = masked_model()["fc1.mask"].data.clone();
        data[33] = value;
        bytes(dtype, &shape, data)
    };
    let whole = || Some(bytes(Dtype::I64, &shape, vec![0; 4800]));
    let turned = |name: &str| Some(Tensor { shape: vec![30, 20], ..masked_model()[name].clone() });
    let mut flat_mask = masked_model()["conv.mask"].clone();
    flat_mask.shape = vec![8, 36];
    // The tensor to put or to remove, and what must be in the error.
    let both: [(&str, Option<Tensor>, &str); 6] = [
        ("fc1.weight", Some(with_value("fc1.weight", f32::NAN)), "`fc1`: weight is NaN at neuron 1, input 1"),
        ("fc1.weight", Some(with_value("fc1.weight", f32::INFINITY)), "`fc1`: weight is inf"),
        ("fc1.weight", Some(with_value("fc1.weight", f32::NEG_INFINITY)), "`fc1`: weight is -inf"),
        ("fc1.weight", whole(), "`fc1.weight` is I64, but must be F32 or F16 or BF16 or F64"),
        ("fc1.weight", Some(f32s(&[20, 0], [])), "`fc1`: shape [20, 0] is not a weight"),
        ("x\u{1b}[2J.weight", Some(f32s(&[1, 1], [1.0])), "control characters"),
    ];
    let step_only = [
        ("fc1.grad", None, "`fc1.grad` is missing"),
        ("fc1.grad", Some(with_value("fc1.grad", f32::NAN)), "`fc1`: gradient is NaN at neuron 1, input 1"),
        ("fc1.grad", Some(with_value("fc1.grad", f32::INFINITY)), "`fc1`: gradient is inf"),
        ("fc1.grad", whole(), "`fc1.grad` is I64, but must be F32"),
        ("fc1.grad", turned("fc1.grad"), "`fc1.grad` has shape [30, 20], but `fc1.weight` has [20, 30]"),
        ("fc1.mask", None, "`fc1.mask` is missing"),
        ("fc1.mask", Some(mask(Dtype::U8, 2)), "`fc1.mask`: mask value 2 at position 33"),
        ("fc1.mask", Some(mask(Dtype::BOOL, 255)), "`fc1.mask`: mask value 255 at position 33"),
        ("fc1.mask", Some(mask(Dtype::I8, 1)), "`fc1.mask` is I8, but must be U8 or BOOL"),
        ("fc1.mask", Some(masked_model()["fc1.weight"].clone()), "`fc1.mask` is F32, but must be U8 or BOOL"),
        ("fc1.mask", turned("fc1.mask"), "`fc1.mask` has shape [30, 20], but `fc1.weight` has [20, 30]"),
        ("conv.mask", Some(flat_mask), "`conv.mask` has shape [8, 36], but `conv.weight` has [8, 4, 3, 3]"),
    ];
    let bench = Bench::new();
    let put = |mut tensors: Tensors, name: &str, tensor: &Option<Tensor>| {
        match tensor {
            Some(tensor) => tensors.insert(name.to_string(), tensor.clone()),
            None => tensors.remove(name),
        };
        bench.put("in", &tensors);
    };
    let step = "step in -o out --sparsity 0.5 --drop-fraction 0.3";
    for (name, tensor, expected) in &both {
        put(model(), name, tensor);
        bench.refuse(expected, "init in -o out --sparsity 0.5", expected);
    }
    for (name, tensor, expected) in both.iter().chain(&step_only) {
        put(masked_model(), name, tensor);
        bench.refuse(expected, step, expected);
        bench.refuse(expected, step, "`in`");
    }
    put(masked_model(), "fc1.mask", &Some(mask(Dtype::U8, 2)));
    bench.refuse("inspect", "inspect in", "`fc1.mask`: mask value 2 at position 33");
    bench.refuse("static validates", &format!("{step} --method static"), "`fc1.mask`: mask value 2");
    let nan = with_value("conv.weight", f32::NAN);
    put(masked_model(), "conv.weight", &Some(nan));
    bench.refuse("dense", &format!("{step} --keep-dense conv"), "layer `conv`: weight is NaN");
    put(masked_model(), "fc1.weight", &None);
    bench.refuse("no weight", &format!("{step} --no-ablate fc1"), "--no-ablate fc1: no layer");
    bench.put("in", &Tensors::from([("weight".to_string(), f32s(&[2, 2], [1.0; 4]))]));
    for args in ["plan in --sparsity 0.5", "init in -o out --sparsity 0.5", step, "inspect in"] {
        bench.refuse("no layers", args, "`in`: no layers");
    }
}

#[test]
fn broken_and_hostile_files_are_refused() {
    let entry = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let one = |shape: &str, start, end| format!(r#"{{"a.weight":{}}}"#, entry(shape, start, end));
    let good = encode(&masked_model(), None);
    let huge = u64::MAX / 8;
    let two = |first: &str, second: &str, a: String, b: String| {
        raw(&format!(r#"{{"{first}":{a},"{second}":{b}}}"#), &[0; 16])
    };
    let mut header_cut = good.clone();
    header_cut.truncate(100);
    let mut not_utf8 = raw(&one("[2,2]", 0, 16), &[0; 16]);
    not_utf8[12] = 0xff;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("shorter than a length", vec![1, 2, 3]),
        ("header cut", header_cut),
        ("data cut", good[..good.len() - 1].to_vec()),
        ("data too long", [good.as_slice(), &[0]].concat()),
        ("header length beyond the file", [&1_000_u64.to_le_bytes()[..], b"{}"].concat()),
        ("header length of 2^64 - 1", [&[0xff; 8][..], b"{}"].concat()),
        ("header length of 10^8", [&100_000_000_u64.to_le_bytes()[..], b"{}"].concat()),
        ("not JSON", raw("{\"a.weight\":", &[])),
        ("JSON of another kind", raw("[1, 2]", &[])),
        ("deep JSON", raw(&"[".repeat(1_000_000), &[])),
        ("text", b"this is a text file and no model".to_vec()),
        ("not UTF-8", not_utf8),
        ("unknown type", raw(&one("[2,2]", 0, 16).replace("F32", "F33"), &[0; 16])),
        ("negative dimension", raw(&one("[-2,2]", 0, 16), &[0; 16])),
        ("dimensions overflow", raw(&one(&format!("[{huge},{huge}]"), 0, 16), &[0; 16])),
        ("bytes overflow", raw(&one(&format!("[{huge},2]"), 0, 16), &[0; 16])),
        ("2^60 weights", raw(&one(&format!("[{},{}]", 1u64 << 30, 1u64 << 30), 0, 1 << 62), &[0; 16])),
        ("end before start", raw(&one("[2,2]", 16, 0), &[0; 16])),
        ("offsets beyond the file", raw(&one("[2,2]", 1 << 40, (1 << 40) + 16), &[0; 16])),
        ("offsets of the wrong size", raw(&one("[2,3]", 0, 16), &[0; 16])),
        ("overlap", two("a.weight", "b.weight", entry("[2,2]", 0, 16), entry("[2,1]", 8, 16))),
        ("same bytes", two("a.weight", "b.weight", entry("[2,2]", 0, 16), entry("[2,2]", 0, 16))),
        ("gap", two("a.weight", "b.weight", entry("[1,1]", 0, 4), entry("[2,1]", 8, 16))),
        ("name twice", two("a.weight", "a.weight", entry("[2,2]", 0, 16), entry("[4,1]", 0, 16))),
        ("metadata of numbers", raw(r#"{"__metadata__":{"a":1}}"#, &[])),
    ];
    let bench = Bench::new();
    for (case, file) in cases {
        fs::write(bench.path("in"), file).unwrap();
        for args in ["plan in --sparsity 0.5", "inspect in", "init in -o out --sparsity 0.5"] {
            bench.refuse(case, args, "`in` is not a safetensors file, or a damaged one: ");
        }
        bench.refuse(
            case,
            "step in -o out --sparsity 0.5 --drop-fraction 0.3",
            "`in` is not a safetensors file",
        );
    }
    for args in ["inspect none", "step none -o out --sparsity 0.5 --drop-fraction 0.3"] {
        bench.refuse("missing file", args, "cannot read `none`");
    }
    bench.refuse("folder", "inspect .", "cannot read `.`");
    #[cfg(unix)]
    bench.refuse("endless device", "inspect /dev/zero", "cannot read `/dev/zero`: it is not a regular file");
}

/// The layer's values in another type.
fn as_type(dtype: Dtype, tensor: &Tensor) -> Tensor {
    let data = tensor.floats().into_iter().flat_map(|value| match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => f64::from(value).to_le_bytes().to_vec(),
    });
    Tensor { dtype, shape: tensor.shape.clone(), data: data.collect() }
}

#[test]
fn weights_keep_their_type_and_their_bits() {
    let bench = Bench::new();
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut tensors = model();
        for name in ["fc1.weight", "fc1.grad", "conv.weight", "conv.grad"] {
            tensors.insert(name.into(), as_type(dtype, &tensors[name]));
        }
        bench.put("in", &tensors);
        let init = bench.json("init in -o sparse --sparsity 0.7");
        assert_eq!(init["layers"], bench.json("inspect sparse")["layers"], "{dtype}");
        let step = bench.json("step sparse -o new --sparsity 0.7 --drop-fraction 0.3");
        assert_eq!(step["layers"][1]["nnz"], bench.json("inspect new")["layers"][1]["nnz"], "{dtype}");
        for (file, then) in [("sparse", "in"), ("new", "sparse")] {
            let (now, before) = (read(&bench.path(file)), read(&bench.path(then)));
            let (weight, old) = (&now["fc1.weight"], &before["fc1.weight"]);
            assert_eq!((weight.dtype, weight.data.len()), (dtype, old.data.len()));
            let size = weight.data.len() / 600;
            let (mask, was) = (&now["fc1.mask"].data, before.get("fc1.mask").map(|mask| &mask.data));
            for i in 0..600 {
                let kept = mask[i] == 1 && was.is_none_or(|was| was[i] == 1);
                let want = if kept { &old.data[i * size..][..size] } else { &[0; 8][..size] };
                assert_eq!(&weight.data[i * size..][..size], want, "{dtype} {file} {i}");
            }
        }
        bench.succeed("init in -o drawn --sparsity 0.7 --weight-init kaiming-normal");
        assert_eq!(read(&bench.path("drawn"))["conv.weight"].dtype, dtype);
    }
}

/// By default the largest weights stay; a file with masks or many zeros keeps them.
#[test]
fn initial_masks_come_from_the_file_or_from_magnitudes() {
    let bench = Bench::new();
    bench.put("in", &model());
    let largest = |values: &[f32], n: usize| -> Vec<u8> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
        (0..values.len()).map(|i| u8::from(order[..n].contains(&i))).collect()
    };
    let weights = model()["fc1.weight"].floats();
    let rigl = "--method rigl --sparsity 0.7 --distribution uniform";
    let report = bench.json(&format!("init in -o out {rigl}"));
    assert!(report["notes"].to_string().contains("the largest weights of each layer"), "{report}");
    assert_eq!(read(&bench.path("out"))["fc1.mask"].data, largest(&weights, 180));
    let srigl = bench.json("init in -o srigl --sparsity 0.7 --distribution uniform");
    assert_eq!(srigl["layers"][1]["fan_in"], 9);
    let mask = &read(&bench.path("srigl"))["fc1.mask"].data;
    assert_eq!(mask[..30], largest(&weights[..30], 9));
    let all = bench.json(&format!("init in -o all {rigl} --initial-mask global-magnitude"));
    let nnz: u64 = all["layers"].as_array().unwrap().iter().map(|l| l["nnz"].as_u64().unwrap()).sum();
    assert_eq!(nnz, 266, "⌊888 · 0.3⌋");
    // Zeros tell a mask; what has none stays dense then.
    let mut sparse = read(&bench.path("out"));
    sparse.retain(|name, _| !name.ends_with(".mask"));
    sparse.insert("conv.weight".into(), model()["conv.weight"].clone());
    bench.put("zeros", &sparse);
    let report = bench.json("init zeros -o told --sparsity 0.9");
    assert!(report["notes"].to_string().contains("zeros count as inactive: fc1"), "{report}");
    let told = read(&bench.path("told"));
    assert_eq!(told["fc1.mask"].data, largest(&weights, 180));
    assert_eq!(told["conv.mask"].data, [1; 288]);
    bench.refuse("no masks", "init in -o x --sparsity 0.5 --initial-mask file", "neither masks nor zeros");
    // Masks and zeros, each where it is; what is kept dense is dense. The weights may be drawn anew all the same.
    let mut both = sparse.clone();
    both.insert("conv.mask".into(), masked_model()["conv.mask"].clone());
    bench.put("both", &both);
    let nnz = |args: &str| {
        let report = bench.json(&format!("init both -o o --sparsity 0.9 {args}"));
        [0, 1].map(|i| report["layers"][i]["nnz"].as_u64().unwrap())
    };
    assert_eq!(nnz(""), [144, 180]);
    assert_eq!(nnz("--keep-dense conv"), [288, 180]);
    assert_eq!(nnz("--weight-init kaiming-normal"), [144, 180]);
    let anew = bench.json("init told -o anew --sparsity 0.8 --initial-mask random --distribution uniform");
    assert_eq!(anew["layers"][1]["fan_in"], 5);
}

#[test]
fn names_tell_what_is_a_layer() {
    let bench = Bench::new();
    let tensor = |shape: &[usize]| f32s(shape, values(shape.iter().product(), 3));
    let tensors = [
        ("l.self_attention.in_proj_weight", tensor(&[24, 8])),
        ("l.self_attention.in_proj_weight.grad", tensor(&[24, 8])),
        ("l.self_attention.out_proj.weight", tensor(&[8, 8])),
        ("l.self_attention.out_proj.grad", tensor(&[8, 8])),
        ("wte.weight", tensor(&[50, 8])),
        ("pos_embedding", tensor(&[1, 5, 8])),
        ("patch_embed.proj.weight", tensor(&[8, 3, 2, 2])),
    ];
    bench.put("vit", &tensors.map(|(name, tensor)| (name.to_string(), tensor)).into());
    let plan = bench.json("plan vit --sparsity 0.5");
    let names: Vec<&Value> = plan["layers"].as_array().unwrap().iter().map(|l| &l["name"]).collect();
    assert_eq!(names, ["l.self_attention.in_proj", "l.self_attention.out_proj", "patch_embed.proj"]);
    let notes = plan["notes"].to_string();
    assert!(
        notes.contains("embeddings, by their names: `wte`") && notes.contains("`pos_embedding`"),
        "{notes}"
    );
    let keep = "--keep-dense *.out_proj --keep-dense patch*";
    bench.succeed(&format!("init vit -o sparse --sparsity 0.3 {keep}"));
    let sparse = read(&bench.path("sparse"));
    assert_eq!(sparse["l.self_attention.in_proj_weight.mask"].shape, [24, 8]);
    bench.succeed(&format!("step sparse -o new --sparsity 0.3 --drop-fraction 0.3 {keep}"));
    let plan = bench.json("plan vit --sparsity 0.5 --exclude patch*");
    assert_eq!(plan["layers"].as_array().unwrap().len(), 2);
    bench.refuse("no such", "plan vit --sparsity 0.5 --exclude nothing", "--exclude nothing: no layer");
    bench.refuse("4-d", "plan vit --sparsity 0.5 --transposed patch*", "4 dimensions");
}

/// GPT-2's layers are stored `[in, out]`: rows of the mask are inputs there.
#[test]
fn transposed_layers_have_constant_fan_in_along_columns() {
    let bench = Bench::new();
    let shape = [12, 30];
    let tensors: Tensors = [("weight", 1), ("grad", 2)]
        .map(|(what, seed)| (format!("h.0.mlp.c_fc.{what}"), f32s(&shape, values(360, seed))))
        .into();
    bench.put("gpt2", &tensors);
    let output = bench.run("plan gpt2 --sparsity 0.5");
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("warning: `h.0.mlp.c_fc`") && warned.contains("--transposed"), "{warned}");
    let fan_ins = |file: &str| -> Vec<usize> {
        let mask = read(&bench.path(file))["h.0.mlp.c_fc.mask"].clone();
        assert_eq!(mask.shape, shape);
        (0..30).map(|out| (0..12).filter(|input| mask.data[input * 30 + out] == 1).count()).collect()
    };
    let layer = bench.json("init gpt2 -o sparse --sparsity 0.5 --transposed *.c_*")["layers"][0].clone();
    assert_eq!((&layer["neurons"], &layer["fan_in"]), (&30.into(), &6.into()));
    assert_eq!(fan_ins("sparse"), [6; 30]);
    let step =
        "step sparse -o new --sparsity 0.5 --drop-fraction 0.4 --no-ablation-layers none --transposed *.c_*";
    let step = bench.json(step);
    let inspected = bench.json("inspect new --transposed *.c_*");
    assert_eq!(step["layers"][0]["nnz"], inspected["layers"][0]["nnz"]);
    // The same layer the other way round has the same mask.
    let turned = |tensor: &Tensor| {
        let values = tensor.floats();
        f32s(&[30, 12], (0..360).map(|i| values[i % 12 * 30 + i / 12]))
    };
    let other: Tensors =
        tensors.iter().map(|(name, tensor)| (name.replace("c_fc", "fc"), turned(tensor))).collect();
    bench.put("other", &other);
    bench.succeed("init other -o other --sparsity 0.5");
    bench.succeed("step other -o other --sparsity 0.5 --drop-fraction 0.4 --no-ablate none");
    let (turned, plain) = (read(&bench.path("new")), read(&bench.path("other")));
    let (a, b) = (&turned["h.0.mlp.c_fc.mask"].data, &plain["h.0.mlp.fc.mask"].data);
    assert!((0..360).all(|i| a[i % 12 * 30 + i / 12] == b[i]));
}

#[test]
fn pruned_sharded_and_checkpointed_files_are_read_as_one() {
    let bench = Bench::new();
    let weights = model()["fc1.weight"].floats();
    let mask: Vec<f32> = (0..600).map(|i| f32::from(u8::from(i % 3 == 0))).collect();
    let tensors: Tensors = [
        ("fc1.weight_orig".to_string(), model()["fc1.weight"].clone()),
        ("fc1.weight_mask".into(), f32s(&[20, 30], mask)),
        ("fc1.bias".into(), model()["fc1.bias"].clone()),
        ("optimizer.state.0.exp_avg".into(), f32s(&[20, 30], values(600, 8))),
    ]
    .into();
    bench.put("pruned", &tensors);
    let report = bench.json("inspect pruned");
    assert_eq!(report["layers"].as_array().unwrap().len(), 1, "the optimizer's tensors are no layers");
    assert_eq!((&report["layers"][0]["nnz"], &report["layers"][0]["has_mask"]), (&200.into(), &true.into()));
    bench.succeed("init pruned -o out --sparsity 0.9");
    let out = read(&bench.path("out"));
    assert_eq!(out.keys().collect::<Vec<_>>(), ["fc1.bias", "fc1.mask", "fc1.weight"]);
    let kept = |(i, value): (usize, f32)| if i % 3 == 0 { value } else { 0.0 };
    let want: Vec<f32> = weights.into_iter().enumerate().map(kept).collect();
    assert_eq!(out["fc1.weight"].floats(), want);

    let part = |name: &str| Tensors::from([(name.to_string(), model()[name].clone())]);
    bench.put("model-1.safetensors", &part("fc1.weight"));
    bench.put("model-2.safetensors", &part("conv.weight"));
    let index = |map: &str| {
        let text = format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{map}}}}}"#);
        fs::write(bench.path("model.safetensors.index.json"), text).unwrap();
    };
    index(r#""fc1.weight":"model-1.safetensors","conv.weight":"model-2.safetensors""#);
    let plan = bench.json("plan model.safetensors.index.json --sparsity 0.5");
    assert_eq!(plan["layers"].as_array().unwrap().len(), 2);
    bench.succeed("init model.safetensors.index.json -o whole --sparsity 0.5");
    assert_eq!(read(&bench.path("whole")).len(), 4);
    for (map, expected) in [
        (r#""a.weight":"model-1.safetensors""#, "`a.weight` is not in `model-1.safetensors`"),
        (r#""fc1.weight":"../model-1.safetensors""#, "not the name of a file beside it"),
        (r#""fc1.weight":"/etc/passwd""#, "not the name of a file beside it"),
        (r#""fc1.weight":"none.safetensors""#, "cannot read"),
        (r#""fc1.weight":1"#, "not an index of shards"),
    ] {
        index(map);
        bench.refuse(map, "plan model.safetensors.index.json --sparsity 0.5", expected);
    }
}

/// A file of 24 GB, nearly all of it holes, in little memory.
#[cfg(unix)]
#[test]
fn huge_files_need_little_memory() {
    use std::io::{Seek, SeekFrom, Write};
    let bench = Bench::new();
    let entry = |i: u64, size: u64| {
        let (start, end, inputs) = (i * size, (i + 1) * size, size / 80_000);
        format!(r#""l{i}.weight":{{"dtype":"BF16","shape":[40000,{inputs}],"data_offsets":[{start},{end}]}}"#)
    };
    let write = |name: &str, size: u64| {
        let header = format!("{{{},{},{}}}", entry(0, size), entry(1, size), entry(2, size));
        let mut file = fs::File::create(bench.path(name)).unwrap();
        file.write_all(&raw(&header, &[])).unwrap();
        file.seek(SeekFrom::Current(3 * size as i64 - 1)).unwrap();
        file.write_all(&[0]).unwrap();
    };
    write("huge", 8_000_000_000);
    write("large", 800_000_000);
    let limited = |args: &str| -> Value {
        let mut command = Command::new("sh");
        let line = format!("ulimit -v 1000000; exec \"$0\" mask {args} --json");
        command.args(["-c", &line, env!("CARGO_BIN_EXE_srigl")]).env("RAYON_NUM_THREADS", "1");
        let output = command.current_dir(bench.folder.path()).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let plan = limited("plan huge --sparsity 0.9");
    assert_eq!(plan["layers"][2]["weights"], 4_000_000_000_u64);
    let inspected = limited("inspect large");
    let layer = &inspected["layers"][0];
    assert_eq!((&layer["nnz"], &layer["neurons"]), (&0.into(), &40_000.into()));
}

/// A full disk, without one: files may not grow beyond a limit, and the signal for that is ignored.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_output_and_nothing_else() {
    let bench = Bench::new();
    bench.put("plain", &model());
    bench.put("mask", &masked_model());
    fs::write(bench.path("out"), "old").unwrap();
    for args in ["init plain -o out --sparsity 0.5", "step mask -o out --sparsity 0.5 --drop-fraction 0.3"] {
        for output in ["out", "new"] {
            let args = args.replace("-o out", &format!("-o {output}"));
            let script = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" mask {args}");
            let mut command = Command::new("sh");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_srigl")]).current_dir(bench.folder.path());
            check_refused(&args, &command.output().unwrap(), &format!("cannot write `{output}`"));
            assert_eq!(bench.files(), ["mask", "out", "plain"], "{args}");
            assert_eq!(fs::read_to_string(bench.path("out")).unwrap(), "old", "{args}");
        }
    }
}

/// The report goes out before the file gets its name.
#[cfg(target_os = "linux")]
#[test]
fn a_report_that_cannot_be_printed_leaves_no_output() {
    let bench = Bench::new();
    bench.put("plain", &model());
    let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let args = ["mask", "init", "plain", "-o", "out", "--sparsity", "0.5", "--json"];
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.args(args).current_dir(bench.folder.path()).stdout(full).output().unwrap();
    check_refused("full", &output, "cannot write to standard output");
    assert_eq!(bench.files(), ["plain"]);
}

#[test]
fn help_shows_examples() {
    let bench = Bench::new();
    for command in ["", "plan", "init", "step", "inspect"] {
        let help = bench.succeed(&format!("{command} --help"));
        assert!(help.contains("Examples:\n  srigl mask "), "{help}");
    }
    assert!(bench.succeed("--help").contains("save_file"));
}
