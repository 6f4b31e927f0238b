//! What several tests of the real binary need. Each of them uses a part.
#![allow(dead_code)]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An empty folder in which `srigl` is run.
pub struct Bench(tempfile::TempDir);

impl Bench {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `srigl` with the words of a line.
    pub fn srigl(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// The same, to be started.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command
    }

    pub fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap()
    }
}

/// All lines of a log, without what depends on the clock.
pub fn timeless(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().retain(|key, _| key != "seconds" && key != "images_per_second");
        line
    };
    text.lines().map(line).collect()
}

/// A folder with pictures of the classes `a` and `b`, so many of each to train on and to test on.
pub fn write_images(root: &Path, of_each: u32) {
    for (split, class, shade) in [("train", "a", 3), ("train", "b", 7), ("val", "a", 3), ("val", "b", 7)] {
        let folder = root.join(split).join(class);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..of_each {
            let file = fs::File::create(folder.join(format!("{number}.png"))).unwrap();
            let mut encoder = png::Encoder::new(file, 40, 36);
            encoder.set_color(png::ColorType::Rgb);
            let pixels: Vec<u8> = (0..40 * 36 * 3).map(|i| (i * (number + shade) % 251) as u8).collect();
            encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        }
    }
}
