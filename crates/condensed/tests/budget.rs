//! What asks for too much memory or time is refused at once. The budget is one for the process, so these tests have a file
//! of their own, and all set the same.

use condensed::{CondensedWeight, Engine, Error, FanIn, Network, Node, Op, Shape, Weight, Window, ops};
use srigl_tensors::memory::{self, TooLarge};
use std::path::Path;
use std::time::{Duration, Instant};

const BUDGET: u64 = 100 << 20;

/// Whatever is refused or run takes less.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Folds, plans and runs a network, once as it is.
fn run(network: Network, batch: usize) -> Result<(), Error> {
    network.check_memory(batch)?;
    let network = network.fold()?;
    let mut engine = Engine::new(&network)?;
    let x = vec![0.5; batch * engine.input_shape().len()];
    let mut y = vec![0.0; batch * engine.output_shape().len()];
    engine.run(batch, &x, &mut y)
}

/// A condensed network of any kind.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn hostile_files_are_refused_or_run_at_once() {
    memory::set_limit(BUDGET);
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile")];
    folders.extend(std::env::var_os("CONDENSED_HOSTILE").map(Into::into));
    for path in folders.iter().flat_map(|folder| files(folder)) {
        let start = Instant::now();
        let result = condensed::load(&path).and_then(|network| run(network, 1));
        let time = start.elapsed();
        println!("{} {time:?} {}", path.display(), result.as_ref().map_or_else(|e| e.to_string(), |()| "ran".into()));
        if let Err(e) = &result {
            assert!(!e.to_string().contains(char::is_control));
        }
        assert!(time < AT_ONCE, "{} took {time:?}: {result:?}", path.display());
    }
}
