//! Bytes of any kind as a file; what is accepted must survive a round trip, folding and running.

#![no_main]

use condensed::{Engine, Error, Network, Op, from_bytes, ops, to_bytes};
use libfuzzer_sys::fuzz_target;

/// Little memory, so that whoever asks for more by a word of the file is found.
const BUDGET: u64 = 1 << 26;

/// Results of networks that are run, in floats. Valid networks may be far larger, as they name the size of their results; to
/// run those would only show that time is finite.
const SMALL: usize = 1 << 16;

fn small(network: &Network) -> bool {
    let shapes = network.shapes();
    let padded = |(node, input): (&condensed::Node, usize)| match &node.op {
        Op::Conv2d(ops::Conv2d { window, .. }) | Op::MaxPool(ops::MaxPool(window)) => {
            let side = |axis: usize, size: usize| {
                size + 2 * window.padding[axis]
                    + window.kernel[axis] * window.dilation[axis]
                    + window.stride[axis]
            };
            side(0, shapes[input].height).saturating_mul(side(1, shapes[input].width))
        }
        Op::Attention(ops::Attention { heads }) => heads.saturating_mul(shapes[input].positions().pow(2)),
        _ => 0,
    };
    let nodes = network.nodes().iter().filter_map(|node| Some((node, *node.inputs.first()?)));
    network.nodes().len() < 50
        && shapes.iter().all(|shape| shape.len() < SMALL)
        && nodes.map(padded).all(|size| size < SMALL)
}

fuzz_target!(|bytes: &[u8]| {
    srigl_tensors::memory::set_limit(BUDGET);
    let Ok(network) = from_bytes(bytes) else { return };
    let again = to_bytes(&network).expect("a valid network");
    assert_eq!(from_bytes(&again).expect("our own file"), network);
    // A flattened image repeats what follows each of its features.
    let folded = match network.clone().fold() {
        Err(Error::Memory { .. }) => None,
        folded => Some(folded.expect("a valid network")),
    };
    for network in [Some(network), folded].into_iter().flatten() {
        let shapes = network.shapes();
        if small(&network) {
            let mut engine = match Engine::new(&network) {
                Err(Error::Memory { .. }) => continue,
                engine => engine.expect("a valid network"),
            };
            let mut output = vec![0.0; 2 * shapes[shapes.len() - 1].len()];
            match engine.run(2, &vec![0.5; 2 * shapes[0].len()], &mut output) {
                Err(Error::Memory { .. }) => {}
                done => done.expect("shapes fit"),
            }
        }
    }
});
