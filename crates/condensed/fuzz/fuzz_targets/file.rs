//! Reads arbitrary bytes as a network, and runs what is accepted if it is small.

#![no_main]

use condensed::{Engine, Shape, from_bytes};

/// Most numbers in all results together.
const SMALL: usize = 1 << 16;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(network) = from_bytes(bytes) else { return };
    let shapes = network.shapes();
    if shapes.iter().map(Shape::len).sum::<usize>() > SMALL {
        return;
    }
    let (input, output) = (shapes[0].len(), shapes[shapes.len() - 1].len());
    for network in [network.clone(), network.fold().expect("checked by from_bytes")] {
        let mut engine = Engine::new(&network).expect("checked by from_bytes");
        engine.run(1, &vec![0.5; input], &mut vec![0.0; output]).expect("lengths are right");
    }
});
