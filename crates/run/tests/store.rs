//! Files of tensors seen as layers: what is read, what is refused, and what is written back.

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sparsity_core::{Mask, NmPattern, Structure};
use srigl_run::{Error, FileLayer, LayerNames, Store, read_file, zeros_tell_a_mask};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Type, dimensions, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn u8s(shape: &[usize], values: &[u8]) -> Tensor {
    (Dtype::U8, shape.to_vec(), values.to_vec())
}

fn zeros(shape: &[usize]) -> Tensor {
    f32s(shape, &vec![0.0; shape.iter().product()])
}

/// A folder with files of tensors.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let metadata = HashMap::from([("made".to_string(), "here".to_string())]);
        let path = self.path(name);
        fs::write(&path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
        path
    }

    fn store(&self, tensors: &[(&str, Tensor)]) -> Store {
        Store::open(&self.put("model.safetensors", tensors)).unwrap()
    }

    /// What a store writes.
    fn written(&self, store: &Store) -> BTreeMap<String, Tensor> {
        let path = self.path("written.safetensors");
        store.stage(&path).unwrap().commit().unwrap();
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
    }
}

/// The layers of a store, the first by name.
fn layers(store: &Store, transposed: &[&str]) -> Vec<FileLayer> {
    let transposed = transposed.iter().map(|glob| glob.to_string()).collect();
    store.layers(&LayerNames { transposed, exclude: vec![] }).unwrap().0
}

fn refused<T>(result: Result<T, Error>, part: &str) {
    let Err(error) = result else { panic!("not refused: {part}") };
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn what_is_read_is_written_again() {
    let files = Files::new();
    let tensors = [("fc.bias", f32s(&[2], &[1.0, -1.0])), ("fc.weight", f32s(&[2, 1], &[3.0, 4.0]))];
    let mut store = files.store(&tensors);
    let metadata = BTreeMap::from([("made".to_string(), "here".to_string())]);
    assert_eq!(store.metadata(), Some(&metadata));
    assert!(store.notes().is_empty());
    let names: Vec<&str> = store.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["fc.bias", "fc.weight"]);
    let bias = store.get("fc.bias").unwrap();
    assert_eq!((bias.dtype, &bias.shape[..], bias.len(), bias.is_empty()), (Dtype::F32, &[2][..], 2, false));
    assert_eq!(*store.bytes(bias).unwrap(), tensors[0].1.2);
    assert!(store.get("bias").is_none());

    store.insert("empty", Dtype::I64, vec![0, 3], vec![]);
    assert!(store.get("empty").unwrap().is_empty());
    let written = files.written(&store);
    assert_eq!(written.len(), 3);
    assert!(tensors.iter().all(|(name, tensor)| written[*name] == *tensor));
    let again = Store::open(&files.path("written.safetensors")).unwrap();
    assert_eq!(again.metadata(), Some(&metadata));

    store.rename(|name| name.strip_prefix("fc.").map(|rest| format!("head.{rest}")));
    assert_eq!(store.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["head.bias", "head.weight"]);
    assert!(Store::empty(Path::new("new")).tensors().next().is_none());
}

#[test]
fn whole_files_are_read_but_no_devices() {
    let files = Files::new();
    let path = files.path("file");
    fs::write(&path, "some text").unwrap();
    assert_eq!(read_file(&path).unwrap(), b"some text");
    refused(read_file(files.0.path()), "not a regular file");
    refused(Store::open(&files.path("none.safetensors")), "none.safetensors");
    refused(Store::open(&path), "not a safetensors file");
}

#[test]
fn half_the_zeros_tell_a_mask_but_not_all_of_them() {
    for (zeros, values, tell) in [
        (0, 4, false),
        (1, 4, false),
        (2, 4, true),
        (3, 4, true),
        (4, 4, false),
        (2, 5, false),
        (3, 5, true),
        (4, 7, true),
        (0, 0, false),
    ] {
        assert_eq!(zeros_tell_a_mask(zeros, values), tell, "{zeros} of {values}");
    }
}

#[test]
fn weights_of_every_float_are_read_and_written_in_their_type() {
    let files = Files::new();
    let values = [1.5_f32, -0.25, 0.0, 8.0, -3.0, 0.5];
    type Encode = fn(f32) -> Vec<u8>;
    let types: [(Dtype, Encode); 4] = [
        (Dtype::F32, |v| v.to_le_bytes().to_vec()),
        (Dtype::F16, |v| f16::from_f32(v).to_le_bytes().to_vec()),
        (Dtype::BF16, |v| bf16::from_f32(v).to_le_bytes().to_vec()),
        (Dtype::F64, |v| f64::from(v).to_le_bytes().to_vec()),
    ];
    for (dtype, encode) in types {
        let bytes = |values: &[f32]| values.iter().copied().flat_map(encode).collect::<Vec<u8>>();
        let mut store = files.store(&[("fc.weight", (dtype, vec![2, 3], bytes(&values)))]);
        let layer = layers(&store, &[]).remove(0);
        assert!(store.has_floats(&layer) && !store.has_mask(&layer));
        assert_eq!(store.weights(&layer).unwrap(), values, "{dtype}");
        assert_eq!(store.finite_floats("fc.weight", store.get("fc.weight").unwrap()).unwrap(), values);
        assert_eq!(store.weight_fan_ins(&layer).unwrap(), [2, 3]);
        let mask = Mask::from_bytes(2, 3, &[1, 0, 1, 1, 1, 0]).unwrap();
        let other = Mask::from_bytes(2, 3, &[1, 1, 1, 1, 0, 0]).unwrap();
        store.mask_weights(&layer, &[&mask, &other]).unwrap();
        assert_eq!(store.weights(&layer).unwrap(), [1.5, 0.0, 0.0, 8.0, 0.0, 0.0], "{dtype}");
        let new = values.map(|value| value * 2.0);
        store.set_weights(&layer, &new);
        assert_eq!(files.written(&store)["fc.weight"], (dtype, vec![2, 3], bytes(&new)));
    }
}

#[test]
fn masks_and_gradients_are_those_of_their_layer() {
    let files = Files::new();
    let mut store = files.store(&[
        ("fc.weight", f32s(&[2, 3], &[1.0; 6])),
        ("fc.mask", u8s(&[2, 3], &[1, 0, 1, 0, 0, 0])),
        ("fc.grad", f32s(&[2, 3], &[6.0, 5.0, 4.0, 3.0, 2.0, 1.0])),
        ("other.weight", f32s(&[2, 3], &[1.0; 6])),
    ]);
    let found = layers(&store, &[]);
    let (fc, other) = (&found[0], &found[1]);
    let (mask, dtype) = store.mask(fc).unwrap().unwrap();
    assert_eq!((mask.to_bytes(), dtype), (vec![1, 0, 1, 0, 0, 0], Dtype::U8));
    assert!(store.has_mask(fc) && !store.has_mask(other));
    assert_eq!(store.mask_fan_ins(fc).unwrap(), Some(vec![2, 0]));
    assert_eq!(store.grads(fc).unwrap().unwrap(), [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
    assert!(store.mask(other).unwrap().is_none() && store.grads(other).unwrap().is_none());
    assert_eq!(store.mask_fan_ins(other).unwrap(), None);

    store.set_mask(other, &mask, Dtype::BOOL);
    store.remove_grads(fc);
    let written = files.written(&store);
    assert_eq!(written["other.mask"], (Dtype::BOOL, vec![2, 3], vec![1, 0, 1, 0, 0, 0]));
    assert!(!written.contains_key("fc.grad") && written.contains_key("fc.mask"));
}

/// Of a mask if there is one, of what is not 0 otherwise, in whatever form that is.
#[test]
fn structures_are_those_of_masks_or_of_zeros() {
    let files = Files::new();
    let (rows, inputs) = (6, 70);
    // 1:5, and groups of three.
    let active = |neuron: usize, input: usize| input % 5 == neuron / 3;
    let bytes: Vec<u8> = (0..rows * inputs).map(|at| u8::from(active(at / inputs, at % inputs))).collect();
    let turned: Vec<u8> = (0..inputs * rows).map(|at| u8::from(active(at % rows, at / rows))).collect();
    let shape = [rows, inputs];
    // Numbers of which each byte may be the one that is not 0, and zeros of both signs.
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        let number = |(at, active): (usize, &u8)| match (active, at % 3) {
            (0, sign) => {
                if sign == 0 {
                    -0.0
                } else {
                    0.0
                }
            }
            (_, 0) => f32::from_bits(1),
            (_, 1) => 2.0,
            _ => -1.5,
        };
        bytes.iter().enumerate().map(number).collect()
    };
    let halves = |dtype: Dtype, values: &[f32]| -> Tensor {
        let half = |value: &f32| match dtype {
            Dtype::F16 => f16::from_f32(*value).to_le_bytes(),
            _ => bf16::from_f32(*value).to_le_bytes(),
        };
        (dtype, shape.to_vec(), values.iter().flat_map(half).collect())
    };
    let large: Vec<f32> = bytes.iter().map(|active| if *active == 1 { 2.0 } else { -0.0 }).collect();
    let store = files.store(&[
        ("a.weight", f32s(&shape, &vec![1.0; rows * inputs])),
        ("a.mask", u8s(&shape, &bytes)),
        ("b.weight", f32s(&shape, &numbers(&bytes))),
        ("c.weight", halves(Dtype::F16, &large)),
        ("d.weight", halves(Dtype::BF16, &large)),
        ("e.weight", f32s(&[inputs, rows], &numbers(&turned))),
        ("f.weight", f32s(&[inputs, rows], &vec![1.0; rows * inputs])),
        ("f.mask", u8s(&[inputs, rows], &turned)),
        ("g.weight", f32s(&shape, &vec![1.0; rows * inputs])),
    ]);
    let found = layers(&store, &["e", "f"]);
    let structures: Vec<Structure> =
        found.iter().map(|layer| store.structure(layer).unwrap().unwrap()).collect();
    let expected = Structure { nm: NmPattern::new(1, 5).ok(), group: 3 };
    assert_eq!(expected, Structure::of(&Mask::from_bytes(rows, inputs, &bytes).unwrap()));
    assert_eq!(structures[..6], [expected; 6]);
    assert_eq!(structures[6], Structure { nm: None, group: rows });
}

#[test]
fn a_transposed_layer_is_turned_on_the_way_in_and_out() {
    let files = Files::new();
    // Two inputs and three neurons; neuron 1 reads input 1 only.
    let mut store = files.store(&[
        ("fc.weight", f32s(&[2, 3], &[1.0, 0.0, 3.0, 4.0, 5.0, 6.0])),
        ("fc.mask", u8s(&[2, 3], &[1, 0, 1, 1, 1, 0])),
    ]);
    let layer = layers(&store, &["f*"]).remove(0);
    assert_eq!((layer.transposed, &layer.spec.dims[..]), (true, &[3, 2][..]));
    assert_eq!(store.weights(&layer).unwrap(), [1.0, 4.0, 0.0, 5.0, 3.0, 6.0]);
    assert_eq!(store.weight_fan_ins(&layer).unwrap(), [2, 1, 2]);
    assert_eq!(store.mask(&layer).unwrap().unwrap().0.to_bytes(), [1, 1, 0, 1, 1, 0]);
    assert_eq!(store.mask_fan_ins(&layer).unwrap(), Some(vec![2, 1, 1]));
    let mask = Mask::from_bytes(3, 2, &[0, 1, 1, 1, 1, 1]).unwrap();
    store.set_mask(&layer, &mask, Dtype::U8);
    store.set_weights(&layer, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    store.mask_weights(&layer, &[&mask]).unwrap();
    let written = files.written(&store);
    assert_eq!(written["fc.mask"], u8s(&[2, 3], &[0, 1, 1, 1, 1, 1]));
    assert_eq!(written["fc.weight"], f32s(&[2, 3], &[0.0, 3.0, 5.0, 2.0, 4.0, 6.0]));
}

/// Pieces of 4 MiB: rows and columns that do not end where they do are counted all the same.
#[test]
fn layers_larger_than_a_piece_are_counted() {
    let files = Files::new();
    const ROW: usize = 700_001;
    let mut values = vec![1.0_f32; 3 * ROW];
    for zero in [0, ROW - 1, ROW, (1 << 20) - 1, 1 << 20, 2 * ROW + 5] {
        values[zero] = 0.0;
    }
    let store = files.store(&[("fc.weight", f32s(&[3, ROW], &values))]);
    let layer = layers(&store, &[]).remove(0);
    assert_eq!(store.weight_fan_ins(&layer).unwrap(), [ROW - 2, ROW - 3, ROW - 1]);
    assert_eq!(*store.bytes(store.get("fc.weight").unwrap()).unwrap(), f32s(&[], &values).2);
    let turned = store.weight_fan_ins(&layers(&store, &["fc"])[0]).unwrap();
    let few: Vec<usize> = (0..ROW).filter(|column| turned[*column] < 3).collect();
    assert_eq!(few, [0, 5, (1 << 20) - 1 - ROW, (1 << 20) - ROW, ROW - 1]);
    assert_eq!((turned[0], turned[5]), (1, 2));

    values[2 * ROW + 7] = f32::NAN;
    let store = files.store(&[("fc.weight", f32s(&[3, ROW], &values))]);
    refused(store.weight_fan_ins(&layers(&store, &[])[0]), "NaN at neuron 2, input 7");
    refused(store.weight_fan_ins(&layers(&store, &["fc"])[0]), "NaN at neuron 7, input 2");
}

#[test]
fn values_that_no_layer_may_have_are_named_with_their_place() {
    let files = Files::new();
    let store = files.store(&[
        ("a.weight", f32s(&[2, 3], &[1.0, 1.0, 1.0, 1.0, f32::INFINITY, 1.0])),
        ("a.grad", f32s(&[2, 3], &[1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0])),
        ("a.mask", u8s(&[2, 3], &[1, 0, 1, 1, 2, 0])),
    ]);
    let layer = layers(&store, &[]).remove(0);
    refused(store.weights(&layer), "weight is inf at neuron 1, input 1");
    refused(store.weight_fan_ins(&layer), "weight is inf at neuron 1, input 1");
    refused(store.grads(&layer), "gradient is NaN at neuron 0, input 2");
    refused(store.mask(&layer), "tensor `a.mask`: mask value 2 at position 4");
    refused(store.mask_fan_ins(&layer), "tensor `a.mask`: mask value 2 at position 4");
    let weight = store.get("a.weight").unwrap();
    refused(store.finite_floats("a.weight", weight), "tensor \"a.weight\" is inf at position 4");
    let turned = layers(&store, &["a"]).remove(0);
    refused(store.weight_fan_ins(&turned), "weight is inf at neuron 1, input 1");
    refused(store.grads(&turned), "gradient is NaN at neuron 2, input 0");
    refused(store.mask_fan_ins(&turned), "mask value 2 at position 3");
}

#[test]
fn tensors_of_a_layer_have_its_shape_and_a_type_that_fits() {
    let files = Files::new();
    let store = files.store(&[
        ("a.weight", (Dtype::I32, vec![2, 2], vec![0; 16])),
        ("a.mask", zeros(&[2, 2])),
        ("b.weight", zeros(&[2, 2])),
        ("b.mask", u8s(&[4], &[0; 4])),
        ("b.grad", zeros(&[2, 3])),
    ]);
    let found = layers(&store, &[]);
    let floats = "is I32, but must be F32 or F16 or BF16 or F64; convert it first";
    refused(store.weights(&found[0]), floats);
    refused(store.weight_fan_ins(&found[0]), floats);
    refused(store.finite_floats("a.weight", store.get("a.weight").unwrap()), floats);
    assert!(!store.has_floats(&found[0]));
    refused(store.mask(&found[0]), "tensor `a.mask` is F32, but must be U8 or BOOL");
    refused(store.mask(&found[1]), "tensor `b.mask` has shape [4], but `b.weight` has [2, 2]");
    refused(store.grads(&found[1]), "tensor `b.grad` has shape [2, 3], but `b.weight` has [2, 2]");
    let mut gone = files.store(&[("b.weight", zeros(&[2, 2]))]);
    gone.rename(|_| None);
    refused(gone.weights(&found[1]), "tensor `b.weight` is missing");
    refused(gone.weight_fan_ins(&found[1]), "tensor `b.weight` is missing");
}

#[test]
fn applied_masks_go_and_leave_zeros() {
    let files = Files::new();
    let ones = |shape: &[usize]| f32s(shape, &vec![1.0; shape.iter().product()]);
    let mask = |shape: &[usize]| u8s(shape, &vec![0; shape.iter().product()]);
    let mut store = files.store(&[
        ("fc.weight", ones(&[1, 2])),
        ("fc.mask", u8s(&[1, 2], &[0, 1])),
        ("fc.grad", ones(&[1, 2])),
        ("conv.weight", ones(&[1, 1, 1, 2])),
        ("conv.mask", mask(&[1, 1, 1, 2])),
        ("norm.weight", ones(&[2])),
        ("norm.mask", mask(&[2])),
        ("norm.grad", ones(&[2])),
        ("free.weight", ones(&[2, 1])),
        ("lone.mask", mask(&[1, 2])),
    ]);
    store.apply_masks().unwrap();
    let written = files.written(&store);
    assert_eq!(written["fc.weight"], f32s(&[1, 2], &[0.0, 1.0]));
    assert_eq!(written["conv.weight"], zeros(&[1, 1, 1, 2]));
    assert_eq!(written["free.weight"], ones(&[2, 1]));
    assert_eq!(written["norm.weight"], ones(&[2]), "one dimension is no layer");
    let names: Vec<&str> = written.keys().map(String::as_str).collect();
    let kept =
        ["conv.weight", "fc.weight", "free.weight", "lone.mask", "norm.grad", "norm.mask", "norm.weight"];
    assert_eq!(names, kept);

    for mask in [u8s(&[2, 1], &[0, 1]), zeros(&[1, 2])] {
        let mut store = files.store(&[("fc.weight", ones(&[1, 2])), ("fc.mask", mask)]);
        refused(store.apply_masks(), "but must be U8 or BOOL [1, 2], as its weight is");
    }
}

#[test]
fn names_and_dimensions_tell_the_layers() {
    let files = Files::new();
    let store = files.store(&[
        ("a.weight", zeros(&[2, 3])),
        ("a.b.weight", zeros(&[2, 3, 1, 1])),
        ("a.bias", zeros(&[2])),
        ("a.mask", zeros(&[2, 3])),
        ("a.grad", zeros(&[2, 3])),
        ("attn.in_proj_weight", zeros(&[2, 3])),
        ("norm.weight", zeros(&[2])),
        ("weight", zeros(&[2, 3])),
        ("pos", zeros(&[2, 3])),
        ("index", (Dtype::I64, vec![1, 1], vec![0; 8])),
        ("tok_emb.weight", zeros(&[2, 3])),
        ("patch_embed.weight", zeros(&[2, 3, 4, 4])),
    ]);
    let (found, notes) = store.layers(&LayerNames::default()).unwrap();
    let names: Vec<&str> = found.iter().map(|layer| &*layer.spec.name).collect();
    assert_eq!(names, ["a", "a.b", "attn.in_proj", "patch_embed"]);
    assert_eq!(
        notes,
        [
            "left out as embeddings, by their names: `tok_emb`",
            "no layers by their names, so left as they are: `pos`"
        ]
    );
    let joint = &found[2];
    assert_eq!(
        (&*joint.weight, joint.mask(), joint.grad()),
        ("attn.in_proj_weight", "attn.in_proj_weight.mask".into(), "attn.in_proj_weight.grad".into())
    );
    assert_eq!((found[0].mask(), found[0].grad()), ("a.mask".into(), "a.grad".into()));

    let exclude = vec!["a*".to_string()];
    let (left, _) = store.layers(&LayerNames { exclude, ..LayerNames::default() }).unwrap();
    assert_eq!(left.len(), 1, "a, a.b and attn.in_proj are out");
    let store = files.store(&[("fc.weight", zeros(&[2, 3]))]);
    let (_, notes) = store.layers(&LayerNames::default()).unwrap();
    assert!(notes.is_empty(), "nothing was guessed: {notes:?}");
}

#[test]
fn layers_that_may_be_turned_are_said() {
    let files = Files::new();
    let store = files.store(&[
        ("h.0.c_fc.weight", zeros(&[2, 3])),
        ("h.0.c_proj.weight", zeros(&[2, 3])),
        ("conv.c_attn.weight", zeros(&[2, 3, 1, 1])),
        ("fc.weight", zeros(&[2, 3])),
    ]);
    let notes = |transposed: &[&str]| {
        let transposed = transposed.iter().map(|glob| glob.to_string()).collect();
        store.layers(&LayerNames { transposed, exclude: vec![] }).unwrap().1
    };
    let [note] = &notes(&[])[..] else { panic!("one note") };
    assert!(note.starts_with("warning: `h.0.c_fc`, `h.0.c_proj` have names of GPT-2's Conv1D"), "{note}");
    let [note] = &notes(&["h.0.c_fc"])[..] else { panic!("one note") };
    assert!(note.starts_with("warning: `h.0.c_proj` have"), "{note}");
    assert!(notes(&["h.*"]).is_empty());
}

#[test]
fn layers_that_cannot_be_are_refused() {
    let files = Files::new();
    let find = |tensors: &[(&str, Tensor)], exclude: &[&str], transposed: &[&str]| {
        let globs = |globs: &[&str]| globs.iter().map(|glob| glob.to_string()).collect();
        let names = LayerNames { exclude: globs(exclude), transposed: globs(transposed) };
        files.store(tensors).layers(&names).map(|(layers, _)| layers.len())
    };
    let (fc, conv) = (("fc.weight", zeros(&[2, 3])), ("conv.weight", zeros(&[2, 3, 1, 1])));
    let both = [fc.clone(), conv.clone()];
    refused(find(&[("fc.bias", zeros(&[2]))], &[], &[]), "no layers: none of its 1 tensors");
    refused(find(&both, &["*"], &[]), "no layers");
    refused(find(&both, &["x"], &[]), "--exclude x: no layer has such a name; there are `conv`, `fc`");
    refused(find(&both, &[], &["fc", "x"]), "--transposed x: no layer has such a name");
    refused(find(&both, &["["], &[]), "--exclude [: ");
    refused(find(&both, &[], &["conv"]), "layer `conv` of --transposed has 4 dimensions");
    refused(find(&[("fc.weight", zeros(&[0, 3]))], &[], &[]), "--exclude leaves it out");
    refused(find(&[("f\u{1b}c.weight", zeros(&[2, 3]))], &[], &[]), "has control characters");
    assert_eq!(find(&both, &["conv"], &["fc"]).unwrap(), 1);

    let many: Vec<(String, Tensor)> = (0..9).map(|i| (format!("l{i}.weight"), zeros(&[1, 1]))).collect();
    let many: Vec<(&str, Tensor)> = many.iter().map(|(name, tensor)| (&**name, tensor.clone())).collect();
    refused(find(&many, &["x"], &[]), "`l6`, `l7`, … (9 in all)");
    let eight = find(&many[..8], &["x"], &[]).unwrap_err().to_string();
    assert!(eight.ends_with("`l6`, `l7`"), "{eight}");
}

#[test]
fn optimizers_in_a_file_are_left_out() {
    let files = Files::new();
    let store = files.store(&[
        ("fc.weight", zeros(&[2, 3])),
        ("optimizer.state.0.exp_avg", zeros(&[2, 3])),
        ("optim.0.state", zeros(&[2])),
        ("optimizer.weight", zeros(&[2, 3])),
        ("cell.state.weight", zeros(&[2, 3])),
    ]);
    assert_eq!(store.notes(), ["2 tensors of optimizers are left out"]);
    let names: Vec<&str> = store.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["cell.state.weight", "fc.weight", "optimizer.weight"]);
}

#[test]
fn pairs_of_torch_prune_become_weights_and_masks() {
    let files = Files::new();
    let store = files.store(&[
        ("fc.weight_orig", f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
        ("fc.weight_mask", f32s(&[2, 2], &[1.0, 0.0, 0.0, 1.0])),
        ("fc.bias_orig", f32s(&[2], &[5.0, 6.0])),
        ("fc.bias_mask", u8s(&[2], &[0, 1])),
        ("grid.table_orig", f32s(&[1, 2], &[7.0, 8.0])),
        ("grid.table_mask", u8s(&[1, 2], &[1, 0])),
        ("norm.weight_orig", f32s(&[1], &[7.0])),
        ("norm.weight_mask", u8s(&[1], &[1])),
    ]);
    assert_eq!(store.notes(), ["4 pairs NAME_orig, NAME_mask of torch.nn.utils.prune are weights and masks"]);
    let written = files.written(&store);
    assert_eq!(written["fc.weight"], f32s(&[2, 2], &[1.0, 0.0, 0.0, 4.0]));
    assert_eq!(written["fc.mask"], u8s(&[2, 2], &[1, 0, 0, 1]));
    assert_eq!(written["fc.bias"], f32s(&[2], &[0.0, 6.0]));
    assert_eq!(written["grid.table"], f32s(&[1, 2], &[7.0, 0.0]));
    let names: Vec<&str> = written.keys().map(String::as_str).collect();
    assert_eq!(names, ["fc.bias", "fc.mask", "fc.weight", "grid.table", "norm.weight"]);

    // No pairs: a mask of another shape, values that are no floats, a name that is there, no mask.
    let apart = [
        ("a_orig", zeros(&[2])),
        ("a_mask", u8s(&[1], &[1])),
        ("b_orig", u8s(&[1], &[1])),
        ("b_mask", u8s(&[1], &[1])),
        ("c", zeros(&[1])),
        ("c_orig", zeros(&[1])),
        ("c_mask", u8s(&[1], &[1])),
        ("d_orig", zeros(&[1])),
    ];
    let store = files.store(&apart);
    assert!(store.notes().is_empty());
    assert_eq!(files.written(&store).len(), apart.len());
}

#[test]
fn a_mask_of_torch_prune_is_zeros_and_ones() {
    let files = Files::new();
    let pair = |mask: Tensor| {
        let store = files.store(&[("fc.weight_orig", zeros(&[1, 2])), ("fc.weight_mask", mask)]);
        store.bytes(store.get("fc.mask").unwrap()).map(|bytes| bytes.into_owned())
    };
    assert_eq!(pair((Dtype::BOOL, vec![1, 2], vec![1, 0])).unwrap(), [1, 0]);
    assert_eq!(pair(f32s(&[1, 2], &[-0.0, 1.0])).unwrap(), [0, 1]);
    refused(pair(f32s(&[1, 2], &[1.0, 0.5])), "a mask has 0.5 at position 1; only 0 and 1 may be");
    refused(pair(u8s(&[1, 2], &[2, 0])), "a mask has 2 at position 0");
    refused(pair((Dtype::I64, vec![1, 2], vec![0; 16])), "a mask is I64, but must be U8, BOOL or floats");
}

#[test]
fn shards_are_one_file() {
    let files = Files::new();
    files.put("one.safetensors", &[("a.weight", zeros(&[2, 3])), ("unlisted", zeros(&[1]))]);
    files.put("two.safetensors", &[("b.weight", f32s(&[1, 1], &[7.0]))]);
    let index = files.path("model.safetensors.index.json");
    let open = |map: &str| {
        fs::write(&index, format!("{{\"weight_map\":{map}}}")).unwrap();
        Store::open(&index)
    };
    let store = open(r#"{"a.weight":"one.safetensors","b.weight":"two.safetensors"}"#).unwrap();
    assert_eq!(store.notes(), ["2 shards read as one file"]);
    assert_eq!(store.metadata().unwrap()["made"], "here");
    let written = files.written(&store);
    assert_eq!((written.len(), &written["b.weight"]), (2, &f32s(&[1, 1], &[7.0])));
    refused(open(r#"{"c.weight":"one.safetensors"}"#), "tensor `c.weight` is not in `one.safetensors`");
    for elsewhere in ["../one.safetensors", "/one.safetensors", "sub/one.safetensors", ".."] {
        refused(open(&format!(r#"{{"a.weight":"{elsewhere}"}}"#)), "is not the name of a file beside it");
    }
    refused(open("7"), "it is not an index of shards");
    // The largest index is read, and a larger one is not.
    let of_size = |size| {
        File::create(&index).unwrap().set_len(size).unwrap();
        Store::open(&index)
    };
    refused(of_size(100_000_000), "it is not an index of shards");
    refused(of_size(100_000_001), "an index of 100000001 bytes is too large");
}

/// Made by `pytorch.py`, beside them.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/tests/fixtures").join(name)
}

#[test]
fn files_of_pytorch_are_read() {
    let files = Files::new();
    for (name, notes) in [("state.pt", 0), ("legacy.pt", 0), ("checkpoint.pt", 1)] {
        let store = Store::open(&fixture(name)).unwrap();
        assert_eq!(store.notes(), &["the weights are those under `model`"][..notes], "{name}");
        let written = files.written(&store);
        assert_eq!(written["fc.weight"], f32s(&[2, 3], &[0.0, 0.25, 0.5, 0.75, 1.0, 1.25]), "{name}");
        assert_eq!(written["turned.weight"], f32s(&[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]), "{name}");
        let steps = (Dtype::I64, vec![], 7_i64.to_le_bytes().to_vec());
        assert_eq!((written.len(), &written["bn.num_batches_tracked"]), (4, &steps), "{name}");
    }
    // Names that begin as a key of checkpoints are no such key.
    let (mut bytes, path) = (fs::read(fixture("legacy.pt")).unwrap(), files.path("flat.pt"));
    let at = bytes.windows(9).position(|name| name == b"fc.weight").unwrap();
    bytes[at..][..9].copy_from_slice(b"net.first");
    fs::write(&path, bytes).unwrap();
    let store = Store::open(&path).unwrap();
    assert!(store.notes().is_empty() && store.get("net.first").is_some() && store.get("fc.bias").is_some());

    let path = files.path("cut.pt");
    fs::write(&path, &fs::read(fixture("state.pt")).unwrap()[..300]).unwrap();
    refused(Store::open(&path), "is a PyTorch file that cannot be used");
}

/// Strides of 0 make one number a large tensor. Four times the size of the file is more than any honest one has.
#[test]
fn tensors_larger_than_their_file_are_refused() {
    let files = Files::new();
    let good = fs::read(fixture("legacy.pt")).unwrap();
    // Dimensions 2 and 3 of `fc.weight`, and its strides 3 and 1, as pickle has them.
    let (found, path) = (b"K\x02K\x03\x86q\x09K\x03K\x01\x86", files.path("huge.pt"));
    let at = good.windows(found.len()).position(|bytes| bytes == found).unwrap();
    let open = |rows: u8, columns: u8| {
        let mut bytes = good.clone();
        bytes[at..][..found.len()]
            .copy_from_slice(&[b'K', rows, b'K', columns, 0x86, b'q', 9, b'K', 0, b'K', 0, 0x86]);
        fs::write(&path, bytes).unwrap();
        Store::open(&path).map(|store| store.get("fc.weight").unwrap().shape.clone())
    };
    // The other tensors have 40 bytes.
    assert_eq!(4 * (9 * 86) + 40, 4 * good.len());
    assert_eq!(open(9, 86).unwrap(), [9, 86]);
    refused(open(25, 31), "is larger than the file");
}
