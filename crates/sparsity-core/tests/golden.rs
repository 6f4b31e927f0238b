//! Single topology updates made with the authors' PyTorch code (calgaryml/condensed-sparsity): masks, ablated
//! neurons and weights must match exactly. `tests/golden/*.json` has the settings; every layer has the same
//! sparsity (uniform).

use safetensors::SafeTensors;
use sparsity_core::methods::{Rigl, Srigl};
use sparsity_core::{Layer, Mask, Method, settle_weights, update_topology};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Settings {
    method: String,
    sparsity: f64,
    drop_fraction: f64,
    #[serde(default)]
    gamma_sal: f64,
    #[serde(default)]
    no_ablate: Vec<String>,
}

struct Tensor {
    neurons: usize,
    bytes: Vec<u8>,
}

impl Tensor {
    fn read(file: &SafeTensors, name: &str) -> Self {
        let view = file.tensor(name).unwrap();
        Self { neurons: view.shape()[0], bytes: view.data().to_vec() }
    }

    fn floats(&self) -> Vec<f32> {
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn mask(&self) -> Mask {
        Mask::from_bytes(self.neurons, self.bytes.len() / self.neurons, &self.bytes).unwrap()
    }
}

fn check(json: &Path) {
    let settings: Settings = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let read = |kind: &str| fs::read(json.with_extension(format!("{kind}.safetensors"))).unwrap();
    let (input, want) = (read("in"), read("want"));
    let (input, want) = (SafeTensors::deserialize(&input).unwrap(), SafeTensors::deserialize(&want).unwrap());
    let method: Box<dyn Method> = match settings.method.as_str() {
        "rigl" => Box::new(Rigl),
        "srigl" => Box::new(Srigl { gamma_sal: settings.gamma_sal, ..Default::default() }),
        other => panic!("unknown method {other}"),
    };

    let mut names: Vec<String> =
        want.names().iter().filter_map(|n| n.strip_suffix(".mask")).map(String::from).collect();
    names.sort();
    let read = |kind: &str| -> Vec<Tensor> {
        names.iter().map(|n| Tensor::read(&input, &format!("{n}.{kind}"))).collect()
    };
    let mut weights: Vec<Vec<f32>> = read("weight").iter().map(Tensor::floats).collect();
    let grads: Vec<Vec<f32>> = read("grad").iter().map(Tensor::floats).collect();
    let masks: Vec<Mask> = read("mask").iter().map(Tensor::mask).collect();
    let layers: Vec<Layer> = (0..names.len())
        .map(|i| Layer {
            name: &names[i],
            weights: &weights[i],
            grads: &grads[i],
            mask: &masks[i],
            sparsity: settings.sparsity,
            ablate: !settings.no_ablate.contains(&names[i]),
        })
        .collect();
    let updates = update_topology(&*method, settings.drop_fraction, &layers, 0, 1).unwrap();

    for (i, name) in names.iter().enumerate() {
        let file = json.display();
        let mask = Tensor::read(&want, &format!("{name}.mask")).mask();
        assert_eq!(updates[i].mask.ablated(), mask.ablated(), "{file}: ablated neurons of {name}");
        assert!(updates[i].mask == mask, "{file}: mask of {name}");
        settle_weights(&mut weights[i], &masks[i], &updates[i].mask);
        assert_eq!(
            weights[i],
            Tensor::read(&want, &format!("{name}.weight")).floats(),
            "{file}: weights of {name}"
        );
    }
}

#[test]
fn single_updates_match_the_authors_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    assert_eq!(files.len(), 11, "golden vectors present");
    files.iter().for_each(|f| check(f));
}
