//! What a damaged file passes for, if it is not refused, runs without harm.

#[path = "random/mod.rs"]
mod random;

use condensed::{Engine, Shape, from_bytes, to_bytes};
use proptest::prelude::*;

/// Most numbers in all results together.
const SMALL: usize = 1 << 20;

/// Runs what is read as a network, folded and not, if it is small. Returns whether it ran.
fn runs(bytes: &[u8]) -> bool {
    let Ok(network) = from_bytes(bytes) else { return false };
    let shapes = network.shapes();
    if shapes.iter().map(Shape::len).sum::<usize>() > SMALL {
        return false;
    }
    let (input, output) = (shapes[0].len(), shapes[shapes.len() - 1].len());
    for network in [network.clone(), network.fold().expect("checked by from_bytes")] {
        let mut engine = Engine::new(&network).expect("checked by from_bytes");
        engine.run(1, &vec![0.5; input], &mut vec![0.0; output]).expect("lengths are right");
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// Most of these are accepted: other values, indices or attributes.
    #[test]
    fn changed_digits_and_data_do_no_harm(
        seed in any::<u64>(),
        digit in prop::option::of((any::<prop::sample::Index>(), "[0-9]{1,2}")),
        byte in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let bytes = to_bytes(&random::network(seed).0).unwrap();
        prop_assert!(runs(&bytes));
        let (header, data) = bytes[8..].split_at(u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize);
        let (mut header, mut data) = (String::from_utf8(header.to_vec()).unwrap(), data.to_vec());
        if let Some((at, number)) = digit {
            // In the list of nodes: a changed offset or shape is always refused.
            let start = header.find("\"network\"").unwrap();
            let end = start + header[start..].find("\"}").unwrap();
            let is_digit = |&at: &usize| header.as_bytes()[at].is_ascii_digit();
            let digits: Vec<usize> = (start..end).filter(is_digit).collect();
            let at = digits[at.index(digits.len())];
            header.replace_range(at..=at, &number);
        }
        if let Some((at, byte)) = byte.filter(|_| !data.is_empty()) {
            let at = at.index(data.len());
            data[at] = byte;
        }
        let length = (header.len() as u64).to_le_bytes();
        let changed = [&length, header.as_bytes(), &data].concat();
        runs(&changed);
    }
}
