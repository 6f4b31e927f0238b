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
        ("cuda", index) => cuda(index),
        _ => bail!("unknown device `{name}`: use flex, ndarray, cuda or cuda:N"),
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: &str) -> Result<Device> {
    match index {
        "" => Ok(Device::cuda(0usize)),
        index => match index.parse::<usize>() {
            Ok(index) => Ok(Device::cuda(index)),
            Err(_) => bail!("`{index}` is no CUDA device index: use cuda:0, cuda:1, …"),
        },
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: &str) -> Result<Device> {
    bail!("this srigl was built without CUDA: build it with `cargo build -p srigl-cli --features cuda`")
}
