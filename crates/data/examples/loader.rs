//! How many pictures a second the loader decodes and augments as ImageNet's are.
//!
//! ```text
//! cargo run -p srigl-data --example loader -- make DIR [COUNT]     write synthetic JPEGs
//! cargo run -p srigl-data --example loader -- DIR [WORKERS]        print images per second
//! ```
//!
//! The pictures that `make` writes are SYNTHETIC, but about as large and as hard to decode as ImageNet's:
//! 500x375 pixels, noise at all scales, about 100 kB each, colours at half resolution.
//! `benches/torchvision_loader.py` measures torchvision's loader on the same folder.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use srigl_data::{DataSet, Loader, Options, Transform};

const WIDTH: usize = 500;
const HEIGHT: usize = 375;
const CLASSES: usize = 4;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", dir] => make(Path::new(dir), 1280),
        ["make", dir, count] => make(Path::new(dir), count.parse()?),
        [dir] => measure(Path::new(dir), 2),
        [dir, workers] => measure(Path::new(dir), workers.parse()?),
        _ => bail!("say `make DIR [COUNT]` or `DIR [WORKERS]`"),
    }
}

fn measure(dir: &Path, workers: usize) -> Result<()> {
    let source = srigl_data::open(DataSet::ImageFolder, Some(dir), false)?;
    let options = Options { workers, ..Options::default() };
    let loader = Loader::new(source, Transform::imagenet(224, 256), options)?;
    println!("{:.1} images/s", loader.rate(64)?);
    Ok(())
}

fn make(dir: &Path, count: usize) -> Result<()> {
    let mut bytes = 0;
    for i in 0..count {
        for split in ["train", "val"] {
            let folder = dir.join(split).join(format!("class{}", i % CLASSES));
            fs::create_dir_all(&folder)?;
            if split == "train" || i < CLASSES {
                let path = folder.join(format!("{i:05}.JPEG"));
                let mut encoder = Encoder::new_file(&path, 88)?;
                encoder.set_sampling_factor(SamplingFactor::F_2_2);
                encoder.encode(&picture(i as u64), WIDTH as u16, HEIGHT as u16, ColorType::Rgb)?;
                bytes += fs::metadata(&path)?.len() as usize;
            }
        }
    }
    println!("{count} synthetic pictures, {} kB each", bytes / 1000 / (count + CLASSES));
    Ok(())
}

/// Noise at six scales in each channel, `[height, width, 3]`: grids of random values, doubling in
/// resolution and falling in strength, blended linearly.
fn picture(seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut values = vec![128.0_f32; HEIGHT * WIDTH * 3];
    for (cell, strength) in [(256, 70.0), (64, 55.0), (16, 40.0), (4, 30.0), (2, 22.0), (1, 14.0)] {
        let columns = WIDTH / cell + 2;
        let mut noise = || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let grid: Vec<f32> = (0..(HEIGHT / cell + 2) * columns * 3).map(|_| noise()).collect();
        let at = |y: usize, x: usize, c: usize| grid[(y * columns + x) * 3 + c];
        for (i, value) in values.iter_mut().enumerate() {
            let (y, x, c) = (i / 3 / WIDTH, i / 3 % WIDTH, i % 3);
            let (row, column) = (y / cell, x / cell);
            let (down, right) = ((y % cell) as f32 / cell as f32, (x % cell) as f32 / cell as f32);
            let line = |row| at(row, column, c) * (1.0 - right) + at(row, column + 1, c) * right;
            *value += strength * (line(row) * (1.0 - down) + line(row + 1) * down);
        }
    }
    values.into_iter().map(|value| value as u8).collect()
}
