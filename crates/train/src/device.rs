//! `--device flex|ndarray|cuda[:N]`.

use anyhow::{Result, bail};
use burn::tensor::Device;

/// The Burn device of that name.
pub fn parse(name: &str) -> Result<Device> {
    match name.split_once(':').unwrap_or((name, "")) {
        ("flex", "") => Ok(Device::flex()),
        // Deprecated by Burn in favour of flex, but people ask for it.
        #[allow(deprecated)]
        ("ndarray", "") => Ok(Device::ndarray()),
        ("cuda", index) if !name.ends_with(':') => cuda(index),
        _ => bail!("unknown device `{name}`: use flex, ndarray, cuda or cuda:N"),
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: &str) -> Result<Device> {
    use anyhow::{anyhow, ensure};
    let index: usize = match index {
        "" => 0,
        index => {
            index.parse().map_err(|_| anyhow!("`{index}` is no index of a device: use cuda:0, cuda:1, …"))?
        }
    };
    let found = Device::enumerate(burn::tensor::DeviceType::Cuda).len();
    ensure!(
        found > 0,
        "no CUDA device: the NVIDIA driver (libcuda) or a GPU is missing; `nvidia-smi` lists both where they are, \
         and `--device flex` runs on the CPU"
    );
    let others = if found == 1 { String::new() } else { format!(" to cuda:{}", found - 1) };
    ensure!(index < found, "there is no cuda:{index}: this machine has cuda:0{others}");
    keep_kernels();
    Ok(Device::cuda(index))
}

/// Keeps compiled kernels on disk, beside what Burn found to be the fastest of them: compiling them is most of what the
/// first steps on a GPU take. The rest of CubeCL's configuration is the user's, from `cubecl.toml` and the environment.
#[cfg(feature = "cuda")]
fn keep_kernels() {
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    // Refused once a device is in use: then the program has chosen already.
    CubeClRuntimeConfig::try_set(config);
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: &str) -> Result<Device> {
    bail!("this srigl was built without CUDA: build it with `cargo build -p srigl-cli --features cuda`")
}

/// Makes the CPU Burn's default device, on which it puts an optimizer's record before the first step takes it to its own.
/// In this build the default would be a GPU, also where there is none.
///
/// Only an environment variable has a say in that, and a program cannot safely change its own: it starts again.
///
/// # Errors
/// If it cannot.
#[cfg(all(feature = "cuda", unix))]
pub fn default_to_cpu() -> Result<()> {
    use std::os::unix::process::CommandExt;
    const DEFAULT: &str = "BURN_DEVICE";
    if std::env::var_os(DEFAULT).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    Err(std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(DEFAULT, "flex")
        .exec()
        .into())
}

/// Ends the program with one sentence where Burn's CUDA backend panics for a cause that the user can mend.
///
/// The backend has no other way to say these: it works in threads of its own, behind the calls.
#[cfg(feature = "cuda")]
pub fn explain_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(cause) = panic.payload_as_str().and_then(explain) {
            srigl_run::print::say(&format!("srigl: {cause}"));
            std::process::exit(1);
        }
        usual(panic);
    }));
}

/// What a message of CubeCL 0.11 or cudarc means for the user.
#[cfg(any(feature = "cuda", test))]
fn explain(message: &str) -> Option<String> {
    if message.contains("Unable to dynamically load") && message.contains("nvrtc") {
        return Some(
            "kernels are compiled by NVRTC on the machine that runs them, and libnvrtc was not found: install \
             CUDA's runtime compiler, or name its folder in LD_LIBRARY_PATH"
                .into(),
        );
    }
    if message.contains("CUDA installation not found") || message.contains("cannot open source file") {
        return Some(
            "kernels are compiled on the machine that runs them, and CUDA's headers were not found: install CUDA's \
             runtime headers, and name the folder above their `include` in CUDA_PATH unless it is /usr/local/cuda"
                .into(),
        );
    }
    if message.contains("UNSUPPORTED_PTX_VERSION") {
        return Some(
            "NVRTC is newer than the NVIDIA driver, which cannot read what it compiles: update the driver, or use the \
             NVRTC of an older CUDA"
                .into(),
        );
    }
    let asked = ["out of device memory allocating ", "can't allocate buffer of size: "]
        .iter()
        .find_map(|text| message.split_once(text))?
        .1;
    let digits: String = asked.chars().take_while(char::is_ascii_digit).collect();
    let mebibytes = digits.parse::<f64>().ok()? / f64::from(1 << 20);
    Some(format!(
        "the GPU is out of memory: {mebibytes:.0} MiB more were asked for; take smaller batches (--micro-batch or \
         --batch-size of train, --batch of bench), or end other programs that `nvidia-smi` shows"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_backend_are_explained() {
        let reading = "Error while reading data: use `try_to_data` instead\nCaused by:\n  \
                       out of device memory allocating 2147483648 bytes\nno backtrace";
        let text = explain(reading).unwrap();
        assert!(text.contains("2048 MiB") && text.contains("--micro-batch"), "{text}");
        assert!(explain("can't allocate buffer of size: 1048576\n").unwrap().contains(" 1 MiB"));
        let missing =
            "Unable to dynamically load the \"nvrtc\" shared library - searched for library names: []";
        assert!(explain(missing).unwrap().contains("libnvrtc"));
        for missing in [
            "\n  CUDA installation not found.\n",
            "catastrophic error: cannot open source file \"cuda_fp16.h\"",
        ] {
            assert!(explain(missing).unwrap().contains("CUDA_PATH"));
        }
        let newer = "Unable to load the PTX: DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, …)";
        assert!(explain(newer).unwrap().contains("update the driver"));
        assert_eq!(explain("index out of bounds"), None);
    }
}
