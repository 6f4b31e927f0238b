//! Random networks through the engine, against plain loops.

#[path = "random/mod.rs"]
mod random;
mod reference;

use condensed::Engine;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn engine_agrees_with_plain_loops(seed in any::<u64>(), fold in any::<bool>()) {
        let (network, input) = random::network(seed);
        let want = reference::run(&network, &input);
        let network = if fold { network.fold().unwrap() } else { network };
        let mut engine = Engine::new(&network).unwrap();
        // Twice the sample: the second must not see the first.
        let mut got = vec![f32::NAN; 2 * want.len()];
        engine.run(2, &[&input[..], &input].concat(), &mut got).unwrap();
        let norm = want.iter().map(|w| w * w).sum::<f32>().sqrt();
        for got in got.chunks(want.len()) {
            let error = got.iter().zip(&want).map(|(g, w)| (g - w).powi(2)).sum::<f32>().sqrt();
            prop_assert!(error <= 1e-3 * (1.0 + norm), "{want:?}, then {got:?}: {network:?}");
        }
    }
}
