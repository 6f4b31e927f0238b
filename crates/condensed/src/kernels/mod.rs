//! CPU kernels, chosen by instruction set when the program runs.

mod bunches;
#[cfg_attr(not(target_arch = "x86_64"), expect(unused, reason = "only x86-64 has table lookups"))]
mod lookup;
mod planes;
mod rows;
mod simd;
mod tiles;
mod transpose;

pub(crate) use lookup::Lookup;
pub(crate) use planes::{SharedPlanes, prefetch};
pub(crate) use rows::dot_rows;
pub(crate) use tiles::{Reads, SAMPLED, Strips, Tiles, are_shared};
pub(crate) use transpose::{transpose, transpose_part};

use std::sync::LazyLock;

/// Instruction sets that have kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512F, with AVX2 and FMA.
    Avx512,
    /// NEON.
    Neon,
}

impl Isa {
    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            // All that kernels of the set are compiled for, what it implies included: a virtual machine may hide any of it.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx2 => {
                is_x86_feature_detected!("avx")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx512 => {
                Self::Avx2.available()
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("avx512f")
            }
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            _ => false,
        }
    }

    /// All that this machine has, best first.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Avx512, Self::Avx2, Self::Neon, Self::Portable].into_iter().filter(|isa| isa.available())
    }

    /// The best that this machine has.
    pub fn best() -> Self {
        static BEST: LazyLock<Isa> = LazyLock::new(|| Isa::all().next().expect("portable"));
        *BEST
    }

    /// Floats in one register.
    pub(crate) fn lanes(self) -> usize {
        if self == Self::Avx512 { 16 } else { 8 }
    }

    /// Registers that one tile may accumulate in.
    pub(crate) fn accumulators(self) -> usize {
        match self {
            Self::Avx512 => 14,
            Self::Avx2 => 12,
            Self::Neon => 8,
            Self::Portable => 4,
        }
    }
}
