//! `srigl data`: look at the data sets and download them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;
use srigl_data::fetch::{self, Outcome, Remote};
use srigl_data::{DataSet, Images, Source, cache_dir, load, open};
use srigl_run::{print, printable};

/// Examples of each class on a contact sheet.
const EXAMPLES: usize = 12;

/// Screen pixels per image pixel on a contact sheet.
const SCALE: usize = 2;

/// Arguments of `srigl data`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  srigl data info fashion-mnist
  srigl data fetch mnist --data ~/mnist
  srigl data sheet glyphs -o glyphs.png")]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Say where a set comes from and what is in it
    Info {
        /// The data set
        set: DataSet,
        /// Folder with the files, or with a sub-folder named after the set; without it the system's
        /// folder, the cache and the network are tried
        #[arg(long, value_name = "DIR", required_if_eq("set", "image-folder"))]
        data: Option<PathBuf>,
        /// Image folders: classes may have no pictures
        #[arg(long)]
        allow_empty: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Download a set, and check the checksums of the files that are there already
    Fetch {
        /// The data set
        set: DataSet,
        /// Folder for the files; the cache if not given
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Draw the first 12 training images of each class, one row per class, as a PNG
    Sheet {
        /// The data set
        set: DataSet,
        /// The picture to write
        #[arg(short, long, value_name = "FILE.png")]
        output: PathBuf,
        /// Folder with the files, or with a sub-folder named after the set; without it the system's
        /// folder, the cache and the network are tried
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
}

/// Runs `srigl data`.
///
/// # Errors
/// What [`open`] and [`fetch::fetch`] report, or a picture that cannot be written.
pub fn run(args: DataArgs) -> Result<()> {
    match args.command {
        DataCommand::Info { set, data, allow_empty, json } => {
            info(&open(set, data.as_deref(), allow_empty)?, json)
        }
        DataCommand::Fetch { set, data } => fetch_files(set, data),
        DataCommand::Sheet { set, output, data } => {
            let images = load(set, data.as_deref())?;
            write_sheet(&images, &output)?;
            print::line(&format!("wrote `{}`: {}, top to bottom:", output.display(), images.set))?;
            Ok(print::line(&images.class_names.join(", "))?)
        }
    }
}

fn info(source: &Source, as_json: bool) -> Result<()> {
    let (set, origin, names) = (source.set(), source.origin(), source.class_names());
    let (train, test) = source.class_counts();
    if as_json {
        let split =
            |counts: &[usize]| json!({ "count": counts.iter().sum::<usize>(), "class_counts": counts });
        let mut value = json!({
            "set": set,
            "source": origin,
            "class_names": names,
            "train": split(&train),
            "test": split(&test),
        });
        if let Source::Memory(images) = source {
            let (mean, std) = images.mean_std();
            value["shape"] = json!([images.channels, images.height, images.width]);
            value["mean"] = json!(mean);
            value["std"] = json!(std);
        }
        if let Source::Folder(folder) = source {
            for (split, listing) in [("train", &folder.train), ("test", &folder.test)] {
                value[split]["left_out"] = json!(listing.left_out.count());
            }
        }
        return Ok(print::json(&value)?);
    }

    print::line(&format!("set       {set}"))?;
    print::line(&format!("source    {origin}"))?;
    match source {
        Source::Memory(images) => {
            let Images { channels, height, width, .. } = images;
            let (mean, std) = images.mean_std();
            print::line(&format!("shape     {channels} x {height} x {width} (channels, height, width)"))?;
            print::line(&format!(
                "pixels    mean {mean:.4}, std {std:.4} (training images, scaled to [0, 1])"
            ))?;
        }
        Source::Folder(folder) => {
            print::line("shape     pictures of various sizes, read when they are needed")?;
            for (split, listing) in [("train", &folder.train), ("test", &folder.test)] {
                if !listing.left_out.is_empty() {
                    print::line(&format!("{split:9} {}", listing.left_out))?;
                }
            }
        }
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["label", "class", "train", "test"]);
    for (label, name) in names.iter().enumerate() {
        table.add_row([
            label.to_string(),
            printable(name),
            train[label].to_string(),
            test[label].to_string(),
        ]);
    }
    let sum = |counts: &[usize]| counts.iter().sum::<usize>().to_string();
    table.add_row([String::new(), "all".to_string(), sum(&train), sum(&test)]);
    for column in [0, 2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    Ok(print::line(&table.to_string())?)
}

fn fetch_files(set: DataSet, dir: Option<PathBuf>) -> Result<()> {
    let Some(remote) = Remote::of(set) else {
        bail!(
            "nothing to fetch for {set}: glyphs are generated, an image folder is your own, and EMNIST comes from \
             torchvision.datasets.EMNIST(DIR, split, download=True), whose folder --data DIR reads"
        );
    };
    let dir = dir
        .or_else(|| cache_dir(set))
        .context("neither XDG_CACHE_HOME nor HOME is set; say where with `--data DIR`")?;
    let outcomes = fetch::fetch(&remote, &dir)?;
    for (file, outcome) in remote.files.iter().zip(outcomes) {
        let done = match outcome {
            Outcome::Intact => "already there and intact",
            Outcome::Downloaded => "downloaded, checksum right",
        };
        print::line(&format!("{}  {done}", dir.join(file.name).display()))?;
    }
    Ok(())
}

fn write_sheet(images: &Images, path: &Path) -> Result<()> {
    let (width, height, pixels) = sheet(images);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(srigl_run::atomic::write(path, &bytes)?)
}

/// Width, height and grey values `[height, width]` of a contact sheet: the first channel of the
/// first training images of each class, with gaps between and black where a class has too few.
fn sheet(images: &Images) -> (usize, usize, Vec<u8>) {
    const GAP: usize = 4;
    const GAP_GREY: u8 = 96;
    let (tile_width, tile_height) = (images.width * SCALE + GAP, images.height * SCALE + GAP);
    let (width, height) = (EXAMPLES * tile_width + GAP, images.classes * tile_height + GAP);
    let image_size = images.channels * images.height * images.width;
    let mut pixels = vec![GAP_GREY; width * height];
    for class in 0..images.classes {
        let mut examples = (0..images.train.len()).filter(|&i| usize::from(images.train.labels[i]) == class);
        for column in 0..EXAMPLES {
            let image = examples.next().map(|i| &images.train.images[i * image_size..]);
            let (left, top) = (column * tile_width + GAP, class * tile_height + GAP);
            for y in 0..images.height * SCALE {
                for x in 0..images.width * SCALE {
                    let from = y / SCALE * images.width + x / SCALE;
                    pixels[(top + y) * width + left + x] = image.map_or(0, |image| image[from]);
                }
            }
        }
    }
    (width, height, pixels)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tempfile::TempDir;

    use super::*;
    use srigl_data::Split;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        data: DataArgs,
    }

    fn srigl_data(args: &[&str]) -> Result<()> {
        run(Cli::try_parse_from([&["data"], args].concat())?.data)
    }

    #[test]
    fn draws_a_sheet() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("glyphs.png");
        srigl_data(&["sheet", "glyphs", "-o", path.to_str().unwrap()]).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let picture = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((picture.width, picture.height), (724, 604));
        // Row 0, column 1 is the second image of class 0, which is image 10.
        let (train, _) = srigl_data::glyphs::generate();
        assert_eq!(pixels[4 * 724 + 64], train.images[10 * 784]);
        assert_eq!(pixels[0], 96);
    }

    #[test]
    fn classes_with_few_examples_fit() {
        let split = Split { images: vec![255; 784], labels: vec![9] };
        let names = vec![String::new(); 10];
        let images = Images::new(DataSet::Mnist, String::new(), (split.clone(), split), names, [1, 28, 28]);
        let (width, height, pixels) = sheet(&images);
        assert_eq!(pixels.len(), width * height);
        assert!(pixels.contains(&255));
    }

    #[test]
    fn commands_run() {
        srigl_data(&["info", "glyphs"]).unwrap();
        srigl_data(&["info", "glyphs", "--json"]).unwrap();
        assert!(srigl_data(&["fetch", "glyphs"]).is_err());
        assert!(srigl_data(&["info", "mnist", "--data", "/no/such/folder"]).is_err());
    }
}
