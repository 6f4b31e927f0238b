//! Downloads the files of a data set. A file gets its name only once its checksum is right, so
//! whatever bears the name is whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use srigl_tensors::{atomic, hex};

use super::DataSet;
use super::printable::shown;

/// Where a set is published.
pub struct Remote {
    /// Address that file names are appended to.
    pub mirror: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
}

/// A published file.
pub struct RemoteFile {
    /// Its name, here and there.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What [`fetch`] did about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was there and its checksum is right.
    Intact,
    /// It was downloaded and its checksum is right.
    Downloaded,
}

impl Remote {
    /// Where the files of `set` are published one by one; none for the glyphs, image folders, and EMNIST, which
    /// is one archive of all its six sets.
    pub fn of(set: DataSet) -> Option<Self> {
        let idx = [
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ];
        // The same mirrors as torchvision. Not all of them speak TLS; the checksums make up for it.
        let (mirror, files): (_, &[_]) = match set {
            DataSet::Glyphs | DataSet::ImageFolder => return None,
            DataSet::EmnistByclass
            | DataSet::EmnistBymerge
            | DataSet::EmnistBalanced
            | DataSet::EmnistLetters
            | DataSet::EmnistDigits
            | DataSet::EmnistMnist => return None,
            DataSet::FashionMnist => (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                &[
                    (idx[0], 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                    (idx[1], 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                    (idx[2], 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                    (idx[3], 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
                ],
            ),
            DataSet::Mnist => (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                &[
                    (idx[0], 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                    (idx[1], 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                    (idx[2], 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                    (idx[3], 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
                ],
            ),
            DataSet::Cifar10 => (
                "https://www.cs.toronto.edu/~kriz/",
                &[(
                    "cifar-10-binary.tar.gz",
                    170_052_171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                )],
            ),
            DataSet::Cifar100 => (
                "https://www.cs.toronto.edu/~kriz/",
                &[(
                    "cifar-100-binary.tar.gz",
                    168_513_733,
                    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                )],
            ),
        };
        let file = |&(name, bytes, sha256): &(_, _, &str)| RemoteFile { name, bytes, sha256: sha256.into() };
        Some(Self { mirror: mirror.into(), files: files.iter().map(file).collect() })
    }
}

/// Makes sure that all files of a set lie in `dir`, downloading those that are missing. Draws a
/// progress bar where standard error is a terminal. Says for each file what it took, `[files]`.
///
/// # Errors
/// A file of that name is there but differs from the published one (it is left alone), cannot be
/// downloaded, or arrives with a wrong checksum.
pub fn fetch(remote: &Remote, dir: &Path) -> Result<Vec<Outcome>> {
    let fetch_one = |file: &RemoteFile| {
        let path = dir.join(file.name);
        // A link that leads nowhere is there, too.
        if path.symlink_metadata().is_ok() {
            check_intact(file, &path)?;
            return Ok(Outcome::Intact);
        }
        let url = format!("{}{}", remote.mirror, file.name);
        let cannot = || format!("cannot write `{}`", shown(&path));
        fs::create_dir_all(dir).with_context(cannot)?;
        let staged = atomic::stage(&path, |to| {
            download(&url, file, to).map_err(|error| io::Error::other(format!("{error:#}")))
        });
        let staged = staged.with_context(|| format!("cannot download {url} to `{}`", shown(&path)))?;
        staged.commit().with_context(cannot)?;
        Ok(Outcome::Downloaded)
    };
    remote.files.iter().map(fetch_one).collect()
}

fn check_intact(file: &RemoteFile, path: &Path) -> Result<()> {
    // A pipe would keep its reader waiting.
    ensure!(path.is_file(), "`{}` is no regular file; move it away", shown(path));
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limit = file.bytes + 1; // a longer file is wrong already
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("cannot read `{}`", shown(path)))?;
    ensure!(
        hex(&Sha256::digest(&bytes)) == file.sha256,
        "`{}` differs from the published file (another SHA-256: damaged, or compressed anew); \
         move it away to download that",
        shown(path)
    );
    Ok(())
}

/// Copies `url` to `to` and checks what came.
fn download(url: &str, file: &RemoteFile, to: &mut dyn Write) -> Result<()> {
    // Without a network this should fail at once, and a stalled download soon.
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(Duration::from_secs(5)))
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_per_read(Some(Duration::from_secs(15)))
        .build()
        .into();
    let mut response = agent.get(url).call()?;
    let mut body = response.body_mut().as_reader().take(file.bytes + 1);

    let bar = progress_bar(file);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = body.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    let found = hex(&hash.finalize());
    if found != file.sha256 {
        bail!("what came has SHA-256 {found}, the published file {}", file.sha256);
    }
    Ok(())
}

fn progress_bar(file: &RemoteFile) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
        .expect("a valid template");
    ProgressBar::new(file.bytes).with_style(style).with_message(file.name)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use tempfile::TempDir;

    use super::*;

    /// Serves `contents` in the order of the files of a set, each at its name. The checksums are
    /// those of `contents`.
    pub fn serve(contents: [Vec<u8>; 4]) -> Remote {
        let mut remote = Remote::of(DataSet::Mnist).unwrap();
        for (file, content) in remote.files.iter_mut().zip(&contents) {
            file.bytes = content.len() as u64;
            file.sha256 = hex(&Sha256::digest(content));
        }
        let names: Vec<_> = remote.files.iter().map(|file| file.name).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        remote.mirror = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(&stream);
                while reader.read_line(&mut request).unwrap() > 2 {}
                let content = names
                    .iter()
                    .position(|name| request.starts_with(&format!("GET /{name} ")))
                    .map(|i| &contents[i][..]);
                let (status, content) = match content {
                    Some(content) => ("200 OK", content),
                    None => ("404 Not Found", &b"no"[..]),
                };
                let length = content.len();
                let head =
                    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(&[head.as_bytes(), content].concat());
            }
        });
        remote
    }

    fn four_files() -> [Vec<u8>; 4] {
        std::array::from_fn(|i| vec![i as u8; 200_000])
    }

    #[test]
    fn downloads_what_is_missing() {
        let dir = TempDir::new().unwrap();
        let dir = dir.path().join("new");
        let remote = serve(four_files());
        assert_eq!(fetch(&remote, &dir).unwrap(), [Outcome::Downloaded; 4]);
        assert_eq!(fetch(&remote, &dir).unwrap(), [Outcome::Intact; 4]);
        fs::remove_file(dir.join(remote.files[2].name)).unwrap();
        let outcomes = fetch(&remote, &dir).unwrap();
        assert_eq!(outcomes[2], Outcome::Downloaded);
        assert_eq!(outcomes[3], Outcome::Intact);
        assert_eq!(fs::read(dir.join(remote.files[3].name)).unwrap(), four_files()[3]);
    }

    #[test]
    fn leaves_a_differing_file_alone() {
        let dir = TempDir::new().unwrap();
        let remote = serve(four_files());
        let path = dir.path().join(remote.files[0].name);
        fs::write(&path, "mine").unwrap();
        let error = fetch(&remote, dir.path()).unwrap_err().to_string();
        assert!(error.contains("differs from the published"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = fetch(&remote, dir.path()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        #[cfg(unix)]
        for target in ["/dev/null", "/no/such/file"] {
            fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)).unwrap();
            std::os::unix::fs::symlink(target, &path).unwrap();
            let error = fetch(&remote, dir.path()).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
            assert!(path.is_symlink());
        }
    }

    #[test]
    fn keeps_nothing_of_a_wrong_download() {
        let fails_with = |remote: &Remote, part: &str| {
            let dir = TempDir::new().unwrap();
            let error = format!("{:#}", fetch(remote, dir.path()).unwrap_err());
            assert!(error.contains(part), "{error}");
            assert!(error.contains(remote.files[0].name), "{error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        };
        let mut remote = serve(four_files());
        remote.files[0].sha256 = "0".repeat(64);
        fails_with(&remote, "SHA-256");

        let mut remote = serve(four_files());
        remote.files[0].bytes = 10; // far more comes than was published: it is cut off
        fails_with(&remote, "SHA-256");

        let mut remote = serve(four_files());
        remote.mirror += "elsewhere/";
        fails_with(&remote, "404");

        remote.mirror = "http://127.0.0.1:1/".to_string();
        fails_with(&remote, "refused");
    }

    #[test]
    fn published_files_are_those_that_are_read() {
        for set in [DataSet::FashionMnist, DataSet::Mnist] {
            for (file, name) in Remote::of(set).unwrap().files.iter().zip(super::super::idx::NAMES) {
                assert_eq!(file.name, format!("{name}.gz"));
                assert_eq!(file.sha256.len(), 64);
            }
        }
    }
}
