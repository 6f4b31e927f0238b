//! What the kernels become on NVIDIA GPUs: CUDA C++ from CubeCL, then PTX from NVRTC. Neither needs a GPU.
//!
//! NVRTC's library is looked for as any other library, its headers under `CUDA_PATH`. Where there is none the
//! second half is left out, unless `SRIGL_REQUIRE_NVRTC` is set. `SRIGL_KERNELS` names a folder to keep sources
//! and PTX in, for a closer look at them.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use cubecl::ir::{
    DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties,
};
use cubecl::prelude::*;
use cubecl::profile::TimingMethod;
use cubecl::{Compiler, CubeKernel, define_kernel};
use cubecl_cpp::register_supported_types;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_cpp::target::Cuda;
use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};
use srigl_burn::gpu::groups::{GROUP, index_words};
use srigl_burn::gpu::{chunk_of, kernels, tile_neurons, tile_units};
use std::path::PathBuf;
use std::sync::Arc;

/// Shared memory of a cube on an H100.
pub const SHARED: usize = 227 << 10;
/// Units of a cube and multiprocessors of an H100.
const UNITS: u32 = 1024;
const MULTIPROCESSORS: u32 = 132;
/// The layer of the paper's timings at 90 %; too many inputs for one chunk.
const INPUTS: usize = 3072;
const NEURONS: usize = 768;
const FAN_IN: usize = 307;
pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Neurons of a bunch.
pub const BUNCHES: [usize; 3] = [1, 2, 4];

/// A kernel in CUDA C++.
pub struct Source {
    pub name: String,
    pub text: String,
    /// Bytes of shared memory.
    pub shared: usize,
}

#[test]
fn kernels_compile_for_cuda() {
    let nvrtc = has_nvrtc();
    for dtype in FLOATS {
        for (packed, bunch) in [true, false].into_iter().flat_map(|packed| BUNCHES.map(|b| (packed, b))) {
            let sources =
                [rows(dtype, packed, bunch), tiles(dtype, packed, bunch), pixels(dtype, packed, bunch)];
            for source in &sources {
                if let Some(ptx) = compile(source, nvrtc) {
                    check(source, &ptx, dtype, packed);
                }
            }
            let [rows, tiles, pixels] = sources.map(|source| source.shared);
            assert_eq!(rows, (kernels::LANES * kernels::ROWS) as usize * size_of::<f32>());
            assert!(tiles > SHARED / 3 && tiles <= SHARED / 2, "{tiles} bytes in {dtype:?}");
            assert_eq!(pixels, 0);
            for flat in [true, false] {
                let sampled = sampled(dtype, packed, flat, bunch);
                if let Some(ptx) = compile(&sampled, nvrtc) {
                    let load = format!("ld.global.nc.v{}.u32", index_words(packed));
                    assert!(ptx.contains(&load), "{} has no {load}:\n{ptx}", sampled.name);
                }
            }
        }
        compile(&pad(dtype), nvrtc);
        compile(&place(dtype), nvrtc);
    }
}

/// PTX without variables in local memory, if there is NVRTC.
fn compile(source: &Source, nvrtc: bool) -> Option<String> {
    keep(&source.name, "cu", &source.text);
    let ptx = nvrtc.then(|| ptx(source))?;
    keep(&source.name, "ptx", &ptx);
    assert!(!ptx.contains(".local"), "{} keeps variables in memory:\n{ptx}", source.name);
    Some(ptx)
}

/// A group's values are one load and its indices another, and `tiles` reads four samples of an input at once.
fn check(source: &Source, ptx: &str, dtype: DType, packed: bool) {
    let float = if dtype == DType::F32 { "f32" } else { "u16" };
    let values = format!("ld.global.nc.v{GROUP}.{float}");
    let indices = format!("ld.global.nc.v{}.u32", index_words(packed));
    for load in [values, indices] {
        assert!(ptx.contains(&load), "{} has no {load}:\n{ptx}", source.name);
    }
    if source.name.starts_with("tiles") {
        let load = format!("ld.shared.v{GROUP}.{float}");
        let count = ptx.matches(&load).count();
        assert!(count >= GROUP, "{} has {count} of {load}:\n{ptx}", source.name);
    }
}

pub fn rows(dtype: DType, packed: bool, bunch: usize) -> Source {
    let (device, target) = device();
    let kernel = kernels::rows::Rows::new(
        settings(kernels::LANES, kernels::ROWS),
        device,
        target,
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        (),
        (),
        (),
        (),
        GROUP,
        index_words(packed),
        bunch,
        packed,
        dtype_to_storage_type(dtype),
    );
    source("rows", dtype, &suffix(packed, bunch), &kernel)
}

/// Neurons of a cube of `tiles`.
pub fn tile(bunch: usize) -> u32 {
    let units = tile_units(SHARED, bunch, UNITS as usize);
    tile_neurons(NEURONS, 256, INPUTS, FAN_IN / bunch, MULTIPROCESSORS as usize, units)
}

pub fn tiles(dtype: DType, packed: bool, bunch: usize) -> Source {
    let (device, target) = device();
    let tile = tile(bunch);
    let kernel = kernels::tiles::Tiles::new(
        settings(kernels::QUADS, tile),
        device,
        target,
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        (),
        (),
        (),
        (),
        (),
        GROUP,
        index_words(packed),
        tile,
        chunk_of(SHARED, dtype, INPUTS, bunch) as u32,
        bunch,
        packed,
        dtype_to_storage_type(dtype),
    );
    source("tiles", dtype, &suffix(packed, bunch), &kernel)
}

pub fn pixels(dtype: DType, packed: bool, bunch: usize) -> Source {
    let (device, target) = device();
    let kernel = kernels::pixels::Pixels::new(
        settings(kernels::PIXELS, kernels::ROWS),
        device,
        target,
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        GROUP,
        index_words(packed),
        bunch,
        packed,
        dtype_to_storage_type(dtype),
    );
    source("pixels", dtype, &suffix(packed, bunch), &kernel)
}

pub fn pad(dtype: DType) -> Source {
    let (device, target) = device();
    let kernel = kernels::pad::Pad::new(
        settings(256, 1),
        device,
        target,
        buffer(),
        buffer(),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        dtype_to_storage_type(dtype),
    );
    source("pad", dtype, "", &kernel)
}

pub fn place(dtype: DType) -> Source {
    let (device, target) = device();
    let kernel = kernels::place::Place::new(
        settings(256, 1),
        device,
        target,
        buffer(),
        buffer(),
        buffer(),
        (),
        (),
        (),
        dtype_to_storage_type(dtype),
    );
    source("place", dtype, "", &kernel)
}

/// Of images or, if `flat`, of a linear layer.
pub fn sampled(dtype: DType, packed: bool, flat: bool, bunch: usize) -> Source {
    let (device, target) = device();
    let kernel = kernels::sampled::Sampled::new(
        settings(kernels::LANES, kernels::ROWS),
        device,
        target,
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        buffer(),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        GROUP,
        index_words(packed),
        bunch,
        packed,
        flat,
        dtype_to_storage_type(dtype),
    );
    let name = if flat { "sampled-flat" } else { "sampled" };
    source(name, dtype, &suffix(packed, bunch), &kernel)
}

/// Of a kernel's name, for the width of its indices and neurons that share inputs.
fn suffix(packed: bool, bunch: usize) -> String {
    let width = if packed { "-packed" } else { "-words" };
    if bunch == 1 { width.to_string() } else { format!("{width}-{bunch}") }
}

/// Settings as of a launch that checks bounds.
fn settings(width: u32, height: u32) -> KernelSettings {
    KernelSettings::new(CubeDim::new_2d(width, height).into(), ExecutionMode::Checked, AddressType::U32)
}

/// An argument of its own, not the memory of another.
fn buffer() -> BufferCompilationArg {
    BufferCompilationArg { inplace: None }
}

/// An H100 as CubeCL sees it, as far as our kernels can tell.
fn device() -> (Arc<DeviceProperties>, Arc<TargetProperties>) {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: SHARED,
        max_cube_count: (i32::MAX as u32, u16::MAX as u32, u16::MAX as u32),
        max_units_per_cube: UNITS,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(MULTIPROCESSORS),
        num_cpu_cores: None,
        last_level_cache_size: None,
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        max_vector_size: usize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let mut device = DeviceProperties::new(
        Default::default(),
        MemoryDeviceProperties::new(20 << 30, 512),
        hardware,
        TimingMethod::Device,
        DeviceIdentity::default(),
    );
    register_supported_types(&mut device);
    (Arc::new(device), Arc::default())
}

/// The kernel in CUDA C++, by the options that CubeCL's CUDA runtime has on an H100.
fn source(name: &str, dtype: DType, indices: &str, kernel: &dyn CubeKernel) -> Source {
    let name = format!("{name}-{}{indices}", format!("{dtype:?}").to_lowercase());
    let definition = define_kernel(kernel).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let options = CompilationOptions {
        warp_size: 32,
        supports_features: CppSupportedFeatures {
            grid_constants: true,
            clusters: true,
            fast_math: true,
            fast_tanh: true,
            elect_sync: true,
            dp4a: true,
        },
        ..Default::default()
    };
    let kernel = CppCompiler::<Cuda>::default()
        .compile(definition, &options)
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    Source { name, text: kernel.to_string(), shared: kernel.shared_memory_size }
}

/// The source in PTX, by the options that CubeCL's CUDA runtime has on an H100.
fn ptx(source: &Source) -> String {
    let cuda = std::env::var_os("CUDA_PATH").map_or_else(|| PathBuf::from("/usr/local/cuda"), PathBuf::from);
    let include = cuda.join("include");
    let include_paths = [include.join("cccl"), include].map(|path| path.display().to_string());
    let options = CompileOptions {
        arch: Some("sm_90a"),
        include_paths: include_paths.into(),
        options: vec!["-lineinfo".to_string()],
        ..Default::default()
    };
    match compile_ptx_with_opts(&source.text, options) {
        Ok(ptx) => ptx.to_src(),
        Err(CompileError::CompileError { log, .. }) => {
            panic!("{}:\n{}\n{}", source.name, log.to_string_lossy(), source.text)
        }
        Err(error) => panic!("{}: {error}", source.name),
    }
}

/// Whether there is NVRTC. Its bindings panic where they find no library.
fn has_nvrtc() -> bool {
    let Err(panic) = std::panic::catch_unwind(|| compile_ptx_with_opts("", CompileOptions::default())) else {
        return true;
    };
    let reason = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(std::env::var_os("SRIGL_REQUIRE_NVRTC").is_none(), "no NVRTC: {reason}");
    println!("kernels not compiled to PTX, there is no NVRTC: {reason}");
    false
}

/// Writes a text into the folder that `SRIGL_KERNELS` names.
fn keep(name: &str, extension: &str, text: &str) {
    if let Some(folder) = std::env::var_os("SRIGL_KERNELS").map(PathBuf::from) {
        let path = folder.join(name).with_extension(extension);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
