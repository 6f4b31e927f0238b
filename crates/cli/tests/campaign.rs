//! Interruptions of every kind, a few in the tests and as many as one likes by hand (docs/reliability.md):
//!
//! ```sh
//! SRIGL_KILLS=1000 SRIGL_DISKS=1000 cargo test -p srigl-cli --test campaign -- --nocapture
//! ```

mod common;

use common::{timeless, write_images};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A number of the environment.
fn from_environment(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A share of 1, another each time.
fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

/// `srigl train` with these flags.
fn train(flags: &str, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
    command.arg("train").args(flags.split_whitespace()).args(["--quiet", "--resume", "--out"]).arg(out);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Files that must be the same, to the last bit.
fn assert_same_files(a: &Path, b: &Path) {
    for file in [
        "config.json",
        "inputs.json",
        "model.safetensors",
        "best.safetensors",
        "topology.jsonl",
        "masks.jsonl",
    ] {
        assert!(fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap(), "{file} differs");
    }
    assert_eq!(timeless(&a.join("metrics.jsonl")), timeless(&b.join("metrics.jsonl")));
    let names = |run: &Path| -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b));
}

fn killed_after(mut child: Child, patience: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < patience {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{}", std::io::read_to_string(child.stderr.take().unwrap()).unwrap());
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// Killed again and again at random moments, from the first to the last, a run leaves the files of one that was not.
#[test]
fn kills_at_random_moments() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    write_images(&images, 8);
    let images = format!(
        "--dataset image-folder --data {} --workers 3 --model resnet18-small --width 4 --image-size 32 --batch-size 4 --epochs 3 \
         --sparsity 0.5 --delta-t 2 --checkpoint-every 1",
        images.display()
    );
    let glyphs = "--dataset glyphs --train-limit 256 --test-limit 64 --batch-size 32 --delta-t 3 --lr 0.05 --checkpoint-every 2";
    let kinds = [
        ("mlp", format!("{glyphs} --model mlp --epochs 4")),
        (
            "batch norm",
            format!("{glyphs} --model resnet8 --train-limit 64 --epochs 3").replacen(
                "--train-limit 256 ",
                "",
                1,
            ),
        ),
        ("folder of images", images),
    ];
    let wanted = from_environment("SRIGL_KILLS", 6).div_ceil(kinds.len());
    for (name, flags) in &kinds {
        let straight = folder.path().join(format!("{name} straight"));
        let started = Instant::now();
        succeeds(&mut train(flags, &straight));
        let duration = started.elapsed();
        let (mut kills, mut runs) = (0, 0);
        while kills < wanted {
            let out = folder.path().join(format!("{name} {runs}"));
            runs += 1;
            // Each attempt gets further on average, so that a run ends some time.
            for attempt in 1.. {
                let patience = duration.mul_f64(random() * (1.0 + 0.2 * f64::from(attempt)));
                if !killed_after(train(flags, &out).spawn().unwrap(), patience) {
                    break;
                }
                kills += 1;
            }
            assert_same_files(&straight, &out);
            fs::remove_dir_all(&out).unwrap();
        }
        println!("{name}: {kills} kills, {runs} runs to their ends, all files as without");
    }
}

/// On a disk of any size that is too small, a run ends with a sentence, and goes on when there is room. Each size stops another
/// write.
#[cfg(target_os = "linux")]
#[test]
fn full_disks() {
    let flags = "--dataset glyphs --train-limit 64 --test-limit 20 --batch-size 16 --delta-t 2 --epochs 2 --model vit-tiny --width 16 \
                 --patch 14 --lr 0.01 --checkpoint-every 1";
    let folder = tempfile::tempdir().unwrap();
    let straight = folder.path().join("straight");
    succeeds(&mut train(flags, &straight));
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("disk")).unwrap();
    fs::write(
        at("script"),
        "set -e\n\
         mount -t tmpfs -o size=${1}k none disk\n\
         shift\n\
         status=0\n\
         \"$@\" 2> error || status=$?\n\
         echo $status > status\n\
         mount -o remount,size=64m disk\n\
         \"$@\" 2> again\n\
         rm -rf run && cp -r disk/run run\n",
    )
    .unwrap();
    let on_disk = |kilobytes: usize| {
        let mut command = Command::new("unshare");
        command.current_dir(folder.path()).args(["-rm", "sh", "script", &kilobytes.to_string()]);
        let train = train(flags, Path::new("disk/run"));
        command.arg(train.get_program()).args(train.get_args()).output()
    };
    // The program lies elsewhere; only the run is on the disk.
    let files: u64 =
        fs::read_dir(&straight).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    // A file has its old and its new contents for a moment.
    let enough = 2 * files as usize / 1024 + 64;
    let Ok(first) = on_disk(enough).map(|output| output.status.success()) else {
        eprintln!("skipped: there is no `unshare`");
        return;
    };
    if !first {
        eprintln!("skipped: no file systems may be mounted here");
        return;
    }
    assert_eq!(fs::read_to_string(at("status")).unwrap().trim(), "0", "{enough} kB are enough");
    // Pages have 4 kB.
    let sizes = (enough / 4).min(from_environment("SRIGL_DISKS", 6));
    let mut stopped = 0;
    for i in 0..sizes {
        let kilobytes = 4 + 4 * (i * (enough / 4) / sizes);
        let output = on_disk(kilobytes).unwrap();
        let again = fs::read_to_string(at("again")).unwrap_or_default();
        assert!(
            output.status.success(),
            "{kilobytes} kB: {again} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (status, error) =
            (fs::read_to_string(at("status")).unwrap(), fs::read_to_string(at("error")).unwrap());
        match status.trim() {
            "0" => {}
            "1" => {
                stopped += 1;
                assert!(
                    error.lines().any(|line| line.starts_with("srigl: cannot"))
                        && error.contains("No space left"),
                    "{kilobytes} kB: {error}"
                );
            }
            status => panic!("{kilobytes} kB: {status}: {error}"),
        }
        assert_same_files(&straight, &at("run"));
    }
    println!("{sizes} sizes of disks, {stopped} of them too small, all files as on a large one");
    assert!(stopped > 0 && stopped <= sizes);
}
