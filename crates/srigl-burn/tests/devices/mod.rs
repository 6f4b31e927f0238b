//! The devices of a build.

#![allow(dead_code, reason = "not every test uses all of it")]

use burn::tensor::Device;

/// The devices with kernels for CPUs.
#[allow(deprecated)]
pub fn cpus() -> Vec<Device> {
    vec![Device::flex(), Device::ndarray()]
}

/// The GPU, if the build has one: with `--features webgpu` Mesa's software device, for example, with `cuda` the
/// first GPU (docs/cuda.md).
pub fn gpus() -> Vec<Device> {
    vec![
        #[cfg(feature = "webgpu")]
        Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        Device::cuda(0usize),
    ]
}

/// All of them.
pub fn all() -> Vec<Device> {
    [cpus(), gpus()].concat()
}
