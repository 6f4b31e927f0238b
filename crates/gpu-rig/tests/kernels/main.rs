//! The GPU kernels of `srigl-burn` without a GPU: `source.rs` makes CUDA C++ and PTX of them, `on_cpu.rs` runs the CUDA
//! C++ on this machine.

mod on_cpu;
mod source;
