//! Files: networks survive them, and hostile ones are refused.
//!
//! `UPDATE_HOSTILE=1 cargo test -p condensed --test files` writes the files of `tests/hostile` anew.

#[path = "random/mod.rs"]
mod random;

use condensed::{
    CondensedWeight, Network, Node, Op, Shape, Weight, Window, from_bytes, load, ops, save, to_bytes,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn networks_survive(seed in any::<u64>()) {
        let (network, _) = random::network(seed);
        let bytes = to_bytes(&network).unwrap();
        prop_assert_eq!(&from_bytes(&bytes).unwrap(), &network);
        // The same bytes again, and any other reader of the format takes them.
        prop_assert_eq!(&to_bytes(&network).unwrap(), &bytes);
        prop_assert!(SafeTensors::deserialize(&bytes).is_ok());
    }

    /// What comes of a damaged file is a valid network or an error.
    #[test]
    fn flipped_bytes_never_panic(
        seed in any::<u64>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        in_header in any::<bool>(),
    ) {
        let (network, _) = random::network(seed);
        let mut bytes = to_bytes(&network).unwrap();
        let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let size = if in_header { header } else { bytes.len() };
        flips.iter().for_each(|(at, byte)| bytes[at.index(size)] = *byte);
        if let Ok(network) = from_bytes(&bytes) {
            prop_assert_eq!(from_bytes(&to_bytes(&network).unwrap()).unwrap(), network);
        }
    }

    /// Numbers of the header, changed to ones that like to overflow.
    #[test]
    fn changed_numbers_never_panic(
        seed in any::<u64>(),
        place in any::<prop::sample::Index>(),
        number in prop::sample::select(vec!["0", "1", "-1", "4294967296", "4611686018427387904", "1e400",
            "18446744073709551615", "18446744073709551616"]),
    ) {
        let (network, _) = random::network(seed);
        let bytes = to_bytes(&network).unwrap();
        let (header, data) = bytes[8..].split_at(u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize);
        let header = std::str::from_utf8(header).unwrap();
        let starts: Vec<usize> = (1..header.len())
            .filter(|&i| header.as_bytes()[i].is_ascii_digit() && b"[:,".contains(&header.as_bytes()[i - 1]))
            .collect();
        let start = starts[place.index(starts.len())];
        let rest = header[start..].trim_start_matches(|c: char| c.is_ascii_digit());
        let changed = hostile::file(&format!("{}{number}{rest}", &header[..start]), data);
        if let Ok(network) = from_bytes(&changed) {
            prop_assert!(network.output_shape().len() > 0);
        }
    }
}

#[test]
fn every_part_of_a_file_is_needed() {
    let (network, _) = random::network(7);
    let bytes = to_bytes(&network).unwrap();
    assert!(network.nodes().len() > 5, "a network with something in it");
    for length in 0..bytes.len() {
        assert!(from_bytes(&bytes[..length]).is_err(), "the first {length} of {}", bytes.len());
    }
    assert!(from_bytes(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn files_are_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    for seed in [1, 2] {
        let (network, _) = random::network(seed);
        save(&network, &path).unwrap();
        assert_eq!(load(&path).unwrap(), network);
    }
    // A network that cannot be written leaves the old file, and no other.
    let before = load(&path).unwrap();
    let error = save(&with_control_characters(), &path).unwrap_err().to_string();
    assert!(error.contains("network.safetensors`") && error.contains("control characters"), "{error}");
    assert_eq!(load(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    for (path, expected) in [
        (folder.path().to_path_buf(), "not a regular file"),
        (folder.path().join("none/network"), "none/network`"),
    ] {
        let error = save(&before, &path).unwrap_err().to_string();
        assert!(error.starts_with("cannot write `") && error.contains(expected), "{error}");
        let error = load(&path).unwrap_err().to_string();
        assert!(error.starts_with("cannot read `") && error.contains(expected), "{error}");
    }
}

fn with_control_characters() -> Network {
    let mut nodes = random::network(1).0.into_nodes();
    nodes[0].name = "a\u{1b}[31m".into();
    Network::new(nodes).unwrap()
}

#[test]
fn names_with_control_characters_are_not_written() {
    let error = to_bytes(&with_control_characters()).unwrap_err().to_string();
    assert!(error.contains("control characters") && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn hostile_files_are_refused() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    let cases = hostile::cases();
    let readme = hostile::readme(&cases);
    if std::env::var_os("UPDATE_HOSTILE").is_some() {
        for case in &cases {
            std::fs::write(folder.join(case.file_name()), &case.bytes).unwrap();
        }
        std::fs::write(folder.join("README.md"), &readme).unwrap();
    }
    let mut wrong = Vec::new();
    for case in &cases {
        let path = folder.join(case.file_name());
        assert_eq!(std::fs::read(&path).unwrap(), case.bytes, "{}: write it anew", path.display());
        assert!(case.bytes.len() < 4096);
        let error = load(&path).map_or_else(|e| e.to_string(), |_| "accepted".into());
        let named = error.contains(&case.file_name()) && !error.contains(char::is_control);
        if !named || !error.contains(case.says) {
            wrong.push(format!("{}: `{}`, not {error}", case.name, case.says));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(std::fs::read_to_string(folder.join("README.md")).unwrap(), readme);
    let files = |path: &Path| std::fs::read_dir(path).unwrap().count();
    assert_eq!(files(&folder), cases.len() + 1, "files without a case");
}

/// Without the faults, the hostile files would be fine.
#[test]
fn the_pattern_of_hostile_files_is_accepted() {
    let network = from_bytes(&hostile::Parts::default().bytes()).unwrap();
    assert_eq!(network.nodes().len(), 3);
    let network = from_bytes(&hostile::Parts::varying().bytes()).unwrap();
    assert_eq!(network.nodes().len(), 3);
    let network = from_bytes(&hostile::Parts::grouped().bytes()).unwrap();
    assert_eq!(network.nodes().len(), 3);
}

/// Neurons that share inputs share a row of indices; others have files as ever.
#[test]
fn groups_survive() {
    let weight = |rows: &[[usize; 2]]| {
        let mut mask = vec![false; rows.len() * 4];
        for (row, mask) in rows.iter().zip(mask.chunks_mut(4)).filter(|(row, _)| row[0] != row[1]) {
            row.iter().for_each(|input| mask[*input] = true);
        }
        CondensedWeight::from_masked(&vec![0.5; mask.len()], &mask, rows.len(), 4).unwrap()
    };
    let read = |weight: &CondensedWeight| {
        let linear =
            ops::Linear { weight: Weight::Condensed(weight.clone()), bias: vec![0.0; weight.neurons()] };
        let input = Op::Input(ops::Input(Shape { features: 4, height: 1, width: 1 }));
        let node = |name: &str, op, inputs| Node { name: name.into(), op, inputs };
        let network = vec![node("input", input, vec![]), node("fc", Op::Linear(linear), vec![0])];
        let network = Network::new(network).unwrap();
        let bytes = to_bytes(&network).unwrap();
        assert_eq!(from_bytes(&bytes).unwrap(), network);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let indices = file.tensor("fc.indices").unwrap();
        (indices.shape().to_vec(), indices.data().to_vec(), String::from_utf8_lossy(&bytes).contains("group"))
    };
    let shared = weight(&[[0, 3], [0, 0], [0, 3], [1, 2], [1, 2], [2, 3]]);
    assert_eq!((shared.pattern().group(), shared.active().len()), (2, 5));
    assert_eq!(read(&shared), (vec![3, 2], vec![0, 3, 1, 2, 2, 3], true));
    let alone = weight(&[[0, 3], [1, 2], [1, 2]]);
    assert_eq!(read(&alone), (vec![3, 2], vec![0, 3, 1, 2, 1, 2], false));
}

/// Files with one fault each.
mod hostile {
    use serde_json::json;

    pub struct Case {
        pub name: &'static str,
        /// Part of the error.
        pub says: &'static str,
        pub bytes: Vec<u8>,
    }

    impl Case {
        pub fn file_name(&self) -> String {
            format!("{}.safetensors", self.name)
        }
    }

    pub fn readme(cases: &[Case]) -> String {
        let mut text = String::from(
            "Files that are no condensed networks, each for one reason, and what the error says.\n\
             Written by `tests/files.rs`, which also says how.\n\n| file | error |\n|---|---|\n",
        );
        for case in cases {
            text += &format!("| `{}` | {} |\n", case.file_name(), case.says);
        }
        text
    }

    /// A file of a header and data.
    pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    /// What a file is made of, to be damaged.
    #[derive(Clone)]
    pub struct Parts {
        pub metadata: Vec<(&'static str, String)>,
        /// Name, type, shape and data.
        pub tensors: Vec<(&'static str, &'static str, Vec<u64>, Vec<u8>)>,
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn words(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    const NETWORK: &str = r#"[{"name":"input","op":{"input":{"features":4,"height":1,"width":1}},"inputs":[]},
        {"name":"fc","op":{"linear":{"weight":{"condensed":{"inputs":4}}}},"inputs":[0]},
        {"name":"relu","op":"relu","inputs":[1]}]"#;

    impl Default for Parts {
        /// A layer of three neurons with fan-in 2, one ablated.
        fn default() -> Self {
            Self {
                metadata: vec![
                    ("format", "srigl-condensed".into()),
                    ("version", "1".into()),
                    ("network", NETWORK.into()),
                ],
                tensors: vec![
                    ("fc.bias", "F32", vec![3], floats(&[0.5, 1.0, 1.5])),
                    ("fc.active", "U32", vec![2], words(&[0, 2])),
                    ("fc.values", "F32", vec![2, 2], floats(&[1.0, 2.0, 3.0, 4.0])),
                    ("fc.indices", "U8", vec![2, 2], vec![0, 3, 1, 2]),
                ],
            }
        }
    }

    impl Parts {
        /// The same with one weight less in the second row.
        pub fn varying() -> Self {
            let mut parts = Self::default();
            parts.tensor("fc.values", "F32", &[3], &floats(&[1.0, 2.0, 3.0]));
            parts.tensor("fc.indices", "U8", &[3], &[0, 3, 1]);
            parts.tensor("fc.pointers", "U32", &[3], &words(&[0, 2, 3]));
            parts
        }

        /// The same with neurons that share a row of indices.
        pub fn grouped() -> Self {
            let mut parts = Self::default();
            parts.nodes("{\"inputs\":4}", "{\"inputs\":4,\"group\":2}");
            parts.tensor("fc.indices", "U8", &[1, 2], &[0, 3]);
            parts
        }

        /// Replaces or adds a tensor.
        fn tensor(
            &mut self,
            name: &'static str,
            dtype: &'static str,
            shape: &[u64],
            data: &[u8],
        ) -> &mut Self {
            self.remove(name).tensors.push((name, dtype, shape.to_vec(), data.to_vec()));
            self
        }

        fn remove(&mut self, name: &str) -> &mut Self {
            self.tensors.retain(|(other, ..)| *other != name);
            self
        }

        /// Replaces, adds or (`None`) removes an entry of the metadata.
        fn entry(&mut self, key: &'static str, value: Option<&str>) -> &mut Self {
            self.metadata.retain(|(other, _)| *other != key);
            self.metadata.extend(value.map(|value| (key, value.to_string())));
            self
        }

        /// Replaces text in the list of nodes.
        fn nodes(&mut self, old: &str, new: &str) -> &mut Self {
            let network = &mut self.metadata.last_mut().expect("network").1;
            assert!(network.contains(old), "{old}");
            *network = network.replace(old, new);
            self
        }

        fn header(&self) -> String {
            // Text, not a map: names may be there twice.
            let metadata: Vec<String> =
                self.metadata.iter().map(|(k, v)| format!("{}:{}", json!(k), json!(v))).collect();
            let mut entries = vec![format!("\"__metadata__\":{{{}}}", metadata.join(","))];
            let mut at = 0;
            for (name, dtype, shape, data) in &self.tensors {
                let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + data.len()]});
                entries.push(format!("{}:{info}", json!(name)));
                at += data.len();
            }
            format!("{{{}}}", entries.join(","))
        }

        fn data(&self) -> Vec<u8> {
            self.tensors.iter().flat_map(|(.., data)| data.clone()).collect()
        }

        pub fn bytes(&self) -> Vec<u8> {
            file(&self.header(), &self.data())
        }

        /// The file with text of its header replaced.
        fn with_header(&self, old: &str, new: &str) -> Vec<u8> {
            let header = self.header();
            assert!(header.contains(old), "{old} in {header}");
            file(&header.replace(old, new), &self.data())
        }
    }

    pub fn cases() -> Vec<Case> {
        let good = Parts::default().bytes();
        let mut cases = Vec::new();
        let mut case = |name, says, bytes: Vec<u8>| cases.push(Case { name, says, bytes });
        let parts = Parts::default;
        let last = good.len() - 1;

        // Files as a whole.
        case("empty", "less than 8 bytes", vec![]);
        case("short", "less than 8 bytes", good[..7].to_vec());
        case("header-cut", "but only 92 follow", good[..100].to_vec());
        case("data-cut", "but the data has", good[..last].to_vec());
        case("trailing", "1 bytes follow the last tensor", [&good[..], &[0]].concat());
        case("header-huge", "a header of 18446744073709551615 bytes", [&[0xff; 8], &good[8..]].concat());
        case("header-beyond", "but only", [&(1u64 << 20).to_le_bytes(), &good[8..]].concat());
        case("header-not-json", "expected ident", file("not json", &[]));
        case("header-not-utf8", "a damaged one", [&3u64.to_le_bytes()[..], b"{\"\xff"].concat());
        case("header-list", "expected tensors by name", file("[]", &[]));
        case("header-deep", "EOF while parsing", file(&format!("{{\"a\":{{\"b\":{}", "[".repeat(3000)), &[]));
        case("pickle", "a damaged one", b"\x80\x02}q\x00X\x02\x00\x00\x00fcq\x01K\x01s.".to_vec());

        // Tensors in the header.
        let twice = |name| {
            let mut parts = parts();
            let tensor = parts.tensors.iter().find(|t| t.0 == name).expect("there").clone();
            parts.tensors.push(tensor);
            parts.bytes()
        };
        case("tensor-twice", "tensor `fc.values` is there twice", twice("fc.values"));
        case(
            "offsets-overlap",
            "tensor `fc.active` starts at 8, but",
            parts().with_header("[12,20]", "[8,16]"),
        );
        case(
            "offsets-gap",
            "tensor `fc.active` starts at 16, but",
            parts().with_header("[12,20]", "[16,24]"),
        );
        case(
            "offsets-reversed",
            "tensor `fc.active` lies at 12 to 4",
            parts().with_header("[12,20]", "[12,4]"),
        );
        case("offsets-beyond", "but the data has", parts().with_header("[36,40]", "[36,4000]"));
        let most = format!("[36,{}]", u64::MAX);
        case("offsets-overflow", "but the data has", parts().with_header("[36,40]", &most));
        case("offsets-negative", "invalid value", parts().with_header("[12,20]", "[-12,20]"));
        let product = format!("[{},{}]", 1u64 << 33, 1u64 << 33);
        case(
            "shape-overflow",
            "has 16 bytes for F32",
            parts().with_header(
                "\"shape\":[2,2]},\"fc.indices\"",
                &format!("\"shape\":{product}}},\"fc.indices\""),
            ),
        );
        case(
            "shape-bits-overflow",
            "has 12 bytes for F32",
            parts().with_header("\"shape\":[3]", &format!("\"shape\":[{}]", (1u64 << 59) + 3)),
        );
        case(
            "shape-too-large",
            "has 12 bytes for F32 [4]",
            parts().with_header("\"shape\":[3]", "\"shape\":[4]"),
        );
        case("type-unknown", "unknown variant `F33`", parts().with_header("F32", "F33"));

        // Metadata.
        case("no-metadata", "has no `format`", file("{}", &[]));
        case("format-other", "its format is \"pt\"", parts().entry("format", Some("pt")).bytes());
        case("format-missing", "has no `format`", parts().entry("format", None).bytes());
        case("version-other", "it has version \"2\"", parts().entry("version", Some("2")).bytes());
        case("version-missing", "has no `version`", parts().entry("version", None).bytes());
        case("network-missing", "has no `network`", parts().entry("network", None).bytes());
        case("metadata-unknown", "its metadata has \"mood\"", parts().entry("mood", Some("good")).bytes());
        let mut doubled = parts();
        doubled.metadata.push(("version", "2".into()));
        case("metadata-twice", "metadata `version` is there twice", doubled.bytes());
        let one = |text: &str| parts().with_header("\"version\":\"1\"", text);
        case("metadata-number", "expected a string", one("\"version\":1"));

        // The list of nodes.
        case("network-damaged", "list of layers is damaged", parts().entry("network", Some("[{")).bytes());
        case(
            "network-empty",
            "at least one node",
            Parts { tensors: vec![], ..parts() }.entry("network", Some("[]")).bytes(),
        );
        case(
            "op-unknown",
            "unknown variant `tanh`",
            parts().nodes("\"relu\",\"inputs\"", "\"tanh\",\"inputs\"").bytes(),
        );
        case(
            "attribute-unknown",
            "unknown field `slope`",
            parts().nodes("\"op\":\"relu\"", "\"op\":\"relu\",\"slope\":1").bytes(),
        );
        case(
            "attribute-twice",
            "duplicate field `inputs`",
            parts().nodes("\"inputs\":[1]", "\"inputs\":[1],\"inputs\":[1]").bytes(),
        );
        case(
            "attribute-negative",
            "invalid value",
            parts().nodes("\"features\":4", "\"features\":-4").bytes(),
        );
        case(
            "name-twice",
            "layer `fc`: every node needs a name of its own",
            parts().nodes("\"name\":\"relu\"", "\"name\":\"fc\"").bytes(),
        );
        case(
            "name-empty",
            "every node needs a name of its own",
            parts().nodes("\"name\":\"relu\"", "\"name\":\"\"").bytes(),
        );
        case(
            "name-escape",
            "a name must have no control characters",
            parts().nodes("\"name\":\"relu\"", "\"name\":\"\\u001b[31m\"").bytes(),
        );
        case(
            "input-cyclic",
            "layer `fc`: it reads node 2, which does not come before it",
            parts().nodes("\"inputs\":[0]", "\"inputs\":[2]").bytes(),
        );
        case(
            "input-itself",
            "layer `relu`: it reads node 2, which does not come before it",
            parts().nodes("\"inputs\":[1]", "\"inputs\":[2]").bytes(),
        );
        case(
            "input-beyond",
            "layer `relu`: it reads node 9",
            parts().nodes("\"inputs\":[1]", "\"inputs\":[9]").bytes(),
        );
        case(
            "input-missing",
            "layer `relu`: it reads 0 results instead of 1",
            parts().nodes("\"inputs\":[1]", "\"inputs\":[]").bytes(),
        );
        case(
            "input-second",
            "the first node, and no other, is the input",
            parts()
                .nodes(
                    "\"relu\",\"inputs\":[1]",
                    "{\"input\":{\"features\":1,\"height\":1,\"width\":1}},\"inputs\":[]",
                )
                .bytes(),
        );
        case("unread", "layer `fc`: nobody reads", parts().nodes("\"inputs\":[1]", "\"inputs\":[0]").bytes());
        case(
            "input-huge",
            "layer `input`: a result of 4 features of ",
            parts().nodes("\"height\":1", "\"height\":4611686018427387904").bytes(),
        );
        case(
            "input-empty",
            "layer `input`: a result of 4 features of ",
            parts().nodes("\"height\":1", "\"height\":0").bytes(),
        );
        let window = |kernel: u64, stride: u64, padding: u64, dilation: u64| {
            let window = format!(
                "{{\"max_pool\":{{\"kernel\":[{kernel},1],\"stride\":[{stride},1],\"padding\":[{padding},0],\
                 \"dilation\":[{dilation},1]}}}}"
            );
            parts().nodes("\"op\":\"relu\"", &format!("\"op\":{window}")).bytes()
        };
        case("window-zero-kernel", "does not fit images", window(0, 1, 0, 1));
        case("window-zero-stride", "does not fit images", window(1, 0, 0, 1));
        case("window-zero-dilation", "does not fit images", window(1, 1, 0, 0));
        case("window-too-large", "does not fit images", window(2, 1, 0, 1));
        case("window-overflow", "a number of 2^24 or more", window(u64::MAX, 1, u64::MAX, u64::MAX));
        case("window-in-padding", "in the padding alone", window(1, 1, 1, 1));

        // Tensors of layers.
        case("tensor-missing", "tensor `fc.values`: it is missing", parts().remove("fc.values").bytes());
        case("bias-missing", "tensor `fc.bias`: it is missing", parts().remove("fc.bias").bytes());
        case(
            "tensor-unknown",
            "tensor `fc.mask`: no layer has such a tensor",
            parts().tensor("fc.mask", "U8", &[1], &[1]).bytes(),
        );
        case(
            "type-other",
            "tensor `fc.values`: it is U32, but must be F32",
            parts().tensor("fc.values", "U32", &[2, 2], &[0; 16]).bytes(),
        );
        case(
            "indices-wide",
            "tensor `fc.indices`: it is U32, but must be U8",
            parts().tensor("fc.indices", "U32", &[2, 2], &words(&[0, 3, 1, 2])).bytes(),
        );
        case(
            "bias-matrix",
            "tensor `fc.bias`: it has shape [1, 3]",
            parts().tensor("fc.bias", "F32", &[1, 3], &[0; 12]).bytes(),
        );
        case(
            "bias-nan",
            "tensor `fc.bias`: value NaN at position 1",
            parts().tensor("fc.bias", "F32", &[3], &floats(&[0.0, f32::NAN, 0.0])).bytes(),
        );
        case(
            "values-nan",
            "tensor `fc.values`: value NaN at position 2",
            parts().tensor("fc.values", "F32", &[2, 2], &floats(&[1.0, 2.0, f32::NAN, 4.0])).bytes(),
        );
        case(
            "values-infinite",
            "tensor `fc.values`: value -inf at position 3",
            parts().tensor("fc.values", "F32", &[2, 2], &floats(&[1.0, 2.0, 3.0, f32::NEG_INFINITY])).bytes(),
        );
        case(
            "values-rows",
            "tensor `fc.values`: it has 1 rows for 2 neurons",
            parts()
                .tensor("fc.values", "F32", &[1, 2], &[0; 8])
                .tensor("fc.indices", "U8", &[1, 2], &[0, 1])
                .bytes(),
        );
        case(
            "indices-shape",
            "tensor `fc.indices`: it has shape [4, 1], but the values [2, 2]",
            parts().tensor("fc.indices", "U8", &[4, 1], &[0, 3, 1, 2]).bytes(),
        );
        let indices = |indices: [u8; 4]| parts().tensor("fc.indices", "U8", &[2, 2], &indices).bytes();
        case(
            "index-beyond",
            "layer `fc`: condensed weight: input index 4 of a matrix with 4 columns",
            indices([0, 4, 1, 2]),
        );
        case(
            "indices-unsorted",
            "layer `fc`: condensed weight: input indices of neuron 0 do not ascend",
            indices([3, 0, 1, 2]),
        );
        case("indices-twice", "input indices of neuron 2 do not ascend", indices([0, 3, 1, 1]));
        let active = |active: [u32; 2]| parts().tensor("fc.active", "U32", &[2], &words(&active)).bytes();
        case("active-beyond", "active neuron 3 of a matrix with 3 rows", active([0, 3]));
        case("active-unsorted", "active neurons must ascend", active([2, 0]));
        case("active-twice", "active neurons must ascend", active([2, 2]));
        let empty_rows = Parts::default()
            .tensor("fc.values", "F32", &[2, 0], &[])
            .tensor("fc.indices", "U8", &[2, 0], &[])
            .bytes();
        case("fan-in-zero", "an active neuron has fan-in 0", empty_rows);
        let huge_fan_in = parts()
            .tensor("fc.active", "U32", &[0], &[])
            .tensor("fc.values", "F32", &[0, u64::MAX], &[])
            .tensor("fc.indices", "U8", &[0, u64::MAX], &[])
            .bytes();
        case("fan-in-huge", "tensor `fc.values`: a fan-in of", huge_fan_in);
        let pointers = |pointers: &[u32]| {
            Parts::varying().tensor("fc.pointers", "U32", &[pointers.len() as u64], &words(pointers)).bytes()
        };
        case("pointers-beyond", "row pointers do not rise", pointers(&[0, 2, 4]));
        case("pointers-falling", "row pointers do not rise", pointers(&[0, 3, 3]));
        case("pointers-not-from-0", "row pointers do not rise", pointers(&[1, 2, 3]));
        case("pointers-short", "row pointers do not rise", pointers(&[0, 3]));
        case("pointers-none", "row pointers do not rise", pointers(&[]));
        case(
            "pointers-constant",
            "it has shape [2, 2], but must have 1 dimensions",
            parts().tensor("fc.pointers", "U32", &[3], &words(&[0, 2, 4])).bytes(),
        );
        let group = |group: &str, rows: u64| {
            let mut parts = Parts::default();
            parts
                .nodes("{\"inputs\":4}", &format!("{{\"inputs\":4,\"group\":{group}}}"))
                .tensor("fc.indices", "U8", &[rows, 2], &[0, 3, 1, 2][..2 * rows as usize])
                .clone()
        };
        case("group-zero", "tensor `fc.indices`: groups of 0, but 2 active neurons", group("0", 2).bytes());
        case("group-large", "tensor `fc.indices`: groups of 3, but 2 active neurons", group("3", 1).bytes());
        case("group-huge", "groups of 18446744073709551615, but", group("18446744073709551615", 1).bytes());
        case("group-negative", "invalid value", group("-1", 2).bytes());
        case(
            "group-rows",
            "tensor `fc.indices`: it has shape [2, 2], but values [2, 2] in groups of 2 neurons",
            group("2", 2).bytes(),
        );
        let mut varying = Parts::varying();
        varying.nodes("{\"inputs\":4}", "{\"inputs\":4,\"group\":2}");
        case("group-varying", "tensor `fc.indices`: groups of 2, but 0 active neurons", varying.bytes());
        case(
            "inputs-other",
            "layer `fc`: weight [3, 5] for 3 neurons of dense fan-in 4",
            parts().nodes("\"inputs\":4", "\"inputs\":5").bytes(),
        );
        case(
            "inputs-huge",
            "more than 2^32 rows or columns",
            parts()
                .nodes("\"inputs\":4", "\"inputs\":18446744073709551615")
                .tensor("fc.indices", "U32", &[2, 2], &words(&[0, 3, 1, 2]))
                .bytes(),
        );
        let dense = |shape: &[u64], data: &[u8]| {
            let mut parts = parts();
            parts.tensors.truncate(1);
            parts
                .nodes("{\"condensed\":{\"inputs\":4}}", "\"dense\"")
                .tensor("fc.weight", "F32", shape, data)
                .bytes()
        };
        case("dense-rows", "tensor `fc.weight`: it has 4 rows, but the bias 3", dense(&[4, 3], &[0; 48]));
        case("dense-columns", "layer `fc`: weight has 15 numbers instead of 12", dense(&[3, 5], &[0; 60]));
        case("dense-nan", "tensor `fc.weight`: value NaN at position 0", dense(&[3, 4], &[0xff; 48]));
        let op = |op: &str, tensors: &[(&'static str, f32)]| {
            let mut parts = parts();
            parts.nodes("\"op\":\"relu\"", &format!("\"op\":{op}"));
            for (name, value) in tensors {
                parts.tensor(name, "F32", &[3], &floats(&[*value; 3]));
            }
            parts.bytes()
        };
        let norm = [("relu.scale", 1.0), ("relu.shift", 0.0)];
        case(
            "epsilon-negative",
            "layer `relu`: epsilon is -1",
            op("{\"layer_norm\":{\"epsilon\":-1}}", &norm),
        );
        case(
            "epsilon-huge",
            "layer `relu`: epsilon is inf",
            op("{\"layer_norm\":{\"epsilon\":1e300}}", &norm),
        );
        case(
            "scale-nan",
            "tensor `relu.scale`: value NaN",
            op("\"affine\"", &[("relu.scale", f32::NAN), ("relu.shift", 0.0)]),
        );
        case("heads-zero", "of 0 heads", op("{\"attention\":{\"heads\":0}}", &[]));
        case("groups-zero", "layer `fc`: 0 groups do not divide", parts().nodes(
            "{\"linear\":{\"weight\":{\"condensed\":{\"inputs\":4}}}}",
            "{\"conv2d\":{\"weight\":{\"condensed\":{\"inputs\":4}},\"window\":{\"kernel\":[1,1],\"stride\":[1,1],\"padding\":[0,0],\"dilation\":[1,1]},\"groups\":0}}",
        ).bytes());
        case("class-width", "tensor `relu.positions`: it has 2 columns, but the class token 3", {
            let mut parts = parts();
            parts.nodes("\"op\":\"relu\"", "\"op\":\"tokens\"");
            parts
                .tensor("relu.class", "F32", &[3], &[0; 12])
                .tensor("relu.positions", "F32", &[3, 2], &[0; 24])
                .bytes()
        });
        cases
    }
}

/// Two weights, and a window that would gather a TiB.
#[test]
fn a_window_that_gathers_too_much_is_refused() {
    let taps = 1 << 19;
    let mut mask = vec![false; taps];
    (mask[0], mask[taps - 1]) = (true, true);
    let weight = CondensedWeight::from_masked(&vec![1.0; taps], &mask, 1, taps).unwrap();
    let window = Window { kernel: [1, taps], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
    let conv = ops::Conv2d { weight: Weight::Condensed(weight), bias: vec![0.0], window, groups: 1 };
    let image = Shape { features: 1, height: 1, width: 1 << 20 };
    let node = |name: &str, op, inputs| Node { name: name.into(), op, inputs };
    let nodes =
        vec![node("images", Op::Input(ops::Input(image)), vec![]), node("conv", Op::Conv2d(conv), vec![0])];
    let error = Network::new(nodes).unwrap_err().to_string();
    assert!(error.contains("`conv`") && error.contains("smaller kernel"), "{error}");
}

#[test]
fn metadata_tell_a_condensed_network() {
    let says = |format: &str| [("format".to_string(), format.to_string())].into();
    assert!(condensed::file::is_condensed(&says("srigl-condensed")));
    assert!(!condensed::file::is_condensed(&says("pt")));
    assert!(!condensed::file::is_condensed(&Default::default()));
}
