//! The few vector operations that the kernels need, for each instruction set.

/// A vector register of `f32`.
///
/// # Safety
/// The methods of an implementor may only be called where its instruction set is available
/// ([`Isa::available`](super::Isa::available)), and pointers must be valid for `LANES` floats.
pub(super) unsafe trait Simd: Copy {
    /// Floats in a register.
    const LANES: usize;
    /// How many there are.
    const REGISTERS: usize;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    /// A register of each of four values.
    unsafe fn splat_four(from: *const f32) -> [Self; 4];
    /// `self + a · b`, rounded once where the hardware can.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// The sum of all lanes.
    unsafe fn total(self) -> f32;
    /// Adds the sums of all lanes of four registers to four floats.
    unsafe fn add_totals(four: [Self; 4], to: *mut f32);
}

/// Registers that can be looked up as tables of `R` registers.
///
/// # Safety
/// As for [`Simd`]; tables must be valid for `R · LANES` floats, `places` for `LANES` bytes.
pub(super) unsafe trait Table<const R: usize>: Simd {
    /// `R · LANES` floats.
    unsafe fn table(from: *const f32) -> [Self; R];
    /// Lane `i` is element `places[i]` of the table; places are below its length, `R · LANES`.
    unsafe fn lookup(table: [Self; R], places: *const u8) -> Self;
}

/// Plain Rust, for every machine and for Miri.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

// SAFETY: needs no instruction set; unaligned reads and writes of 8 floats.
unsafe impl Simd for Portable {
    const LANES: usize = 8;
    const REGISTERS: usize = 8;
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises 8 readable floats.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises 8 writable floats.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn splat_four(from: *const f32) -> [Self; 4] {
        // SAFETY: the caller promises 4 readable floats.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }.map(|value| Self([value; 8]))
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        let pair = |i: usize| self.0[i] + self.0[i + 4];
        (pair(0) + pair(1)) + (pair(2) + pair(3))
    }
    #[inline(always)]
    unsafe fn add_totals(four: [Self; 4], to: *mut f32) {
        for (i, register) in four.into_iter().enumerate() {
            // SAFETY: the caller promises 4 writable floats.
            unsafe { *to.add(i) += register.total() };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::undocumented_unsafe_blocks, reason = "each method is one intrinsic, on the trait's terms")]
pub(super) mod x86 {
    use super::{Simd, Table};
    use std::arch::x86_64::*;

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    // SAFETY: AVX2 and FMA intrinsics on unaligned memory; the caller guarantees both.
    unsafe impl Simd for Avx2 {
        const LANES: usize = 8;
        const REGISTERS: usize = 16;
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn splat_four(from: *const f32) -> [Self; 4] {
            unsafe {
                // One load; each half has all four values.
                let four = _mm_loadu_ps(from);
                let four = _mm256_set_m128(four, four);
                [
                    Self(_mm256_permute_ps::<0x00>(four)),
                    Self(_mm256_permute_ps::<0x55>(four)),
                    Self(_mm256_permute_ps::<0xaa>(four)),
                    Self(_mm256_permute_ps::<0xff>(four)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn total(self) -> f32 {
            unsafe {
                let pairs = _mm256_hadd_ps(self.0, self.0);
                let fours = _mm256_hadd_ps(pairs, pairs);
                let (low, high) = (_mm256_castps256_ps128(fours), _mm256_extractf128_ps::<1>(fours));
                _mm_cvtss_f32(_mm_add_ss(low, high))
            }
        }
        #[inline(always)]
        unsafe fn add_totals([a, b, c, d]: [Self; 4], to: *mut f32) {
            unsafe {
                // In each half the sums of its four lanes, of all four registers.
                let halves = _mm256_hadd_ps(_mm256_hadd_ps(a.0, b.0), _mm256_hadd_ps(c.0, d.0));
                let (low, high) = (_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_add_ps(low, high)));
            }
        }
    }

    // SAFETY: AVX2; reads 8 bytes.
    unsafe impl Table<2> for Avx2 {
        #[inline(always)]
        unsafe fn table(from: *const f32) -> [Self; 2] {
            unsafe { [Self::load(from), Self::load(from.add(8))] }
        }
        #[inline(always)]
        unsafe fn lookup([low, high]: [Self; 2], places: *const u8) -> Self {
            unsafe {
                let places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(places.cast()));
                let low = _mm256_permutevar8x32_ps(low.0, places);
                let high = _mm256_permutevar8x32_ps(high.0, places);
                // Bit 3 of the place says which; `blendv` looks at the sign bit.
                Self(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(places, 28))))
            }
        }
    }

    /// AVX-512F.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY: AVX-512F intrinsics on unaligned memory; the caller guarantees it.
    unsafe impl Simd for Avx512 {
        const LANES: usize = 16;
        const REGISTERS: usize = 32;
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn splat_four(from: *const f32) -> [Self; 4] {
            unsafe {
                // One load; each quarter has all four values.
                let four = _mm512_broadcast_f32x4(_mm_loadu_ps(from));
                [
                    Self(_mm512_permute_ps::<0x00>(four)),
                    Self(_mm512_permute_ps::<0x55>(four)),
                    Self(_mm512_permute_ps::<0xaa>(four)),
                    Self(_mm512_permute_ps::<0xff>(four)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn total(self) -> f32 {
            unsafe { self.folded().total() }
        }
        #[inline(always)]
        unsafe fn add_totals(four: [Self; 4], to: *mut f32) {
            let [a, b, c, d] = four;
            unsafe { Avx2::add_totals([a.folded(), b.folded(), c.folded(), d.folded()], to) }
        }
    }

    impl Avx512 {
        /// The upper half added to the lower one.
        #[inline(always)]
        unsafe fn folded(self) -> Avx2 {
            unsafe {
                let upper = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
                Avx2(_mm256_add_ps(_mm512_castps512_ps256(self.0), _mm256_castpd_ps(upper)))
            }
        }
    }

    // SAFETY: AVX-512F; reads 16 bytes.
    unsafe impl Table<2> for Avx512 {
        #[inline(always)]
        unsafe fn table(from: *const f32) -> [Self; 2] {
            unsafe { [Self::load(from), Self::load(from.add(16))] }
        }
        #[inline(always)]
        unsafe fn lookup([low, high]: [Self; 2], places: *const u8) -> Self {
            unsafe {
                let places = _mm512_cvtepu8_epi32(_mm_loadu_si128(places.cast()));
                Self(_mm512_permutex2var_ps(low.0, places, high.0))
            }
        }
    }

    // SAFETY: AVX-512F; reads 16 bytes.
    unsafe impl Table<4> for Avx512 {
        #[inline(always)]
        unsafe fn table(from: *const f32) -> [Self; 4] {
            unsafe {
                let (a, b) = (Self::load(from), Self::load(from.add(16)));
                [a, b, Self::load(from.add(32)), Self::load(from.add(48))]
            }
        }
        #[inline(always)]
        unsafe fn lookup([a, b, c, d]: [Self; 4], places: *const u8) -> Self {
            unsafe {
                let places = _mm512_cvtepu8_epi32(_mm_loadu_si128(places.cast()));
                // A lookup reads the five lowest bits; the next one says which.
                let low = _mm512_permutex2var_ps(a.0, places, b.0);
                let high = _mm512_permutex2var_ps(c.0, places, d.0);
                let in_high = _mm512_test_epi32_mask(places, _mm512_set1_epi32(32));
                Self(_mm512_mask_blend_ps(in_high, low, high))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(clippy::undocumented_unsafe_blocks, reason = "each method is one intrinsic, on the trait's terms")]
pub(super) mod arm {
    use super::Simd;
    use std::arch::aarch64::*;

    /// Two NEON registers, so that all instruction sets but AVX-512 have 8 lanes.
    #[derive(Clone, Copy)]
    pub struct Neon(float32x4_t, float32x4_t);

    // SAFETY: NEON is part of every aarch64 target; loads and stores are unaligned.
    unsafe impl Simd for Neon {
        const LANES: usize = 8;
        const REGISTERS: usize = 16;
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                vst1q_f32(to, self.0);
                vst1q_f32(to.add(4), self.1);
            }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
        }
        #[inline(always)]
        unsafe fn splat_four(from: *const f32) -> [Self; 4] {
            std::array::from_fn(|i| unsafe { Self::splat(*from.add(i)) })
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(vfmaq_f32(self.0, a.0, b.0), vfmaq_f32(self.1, a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(vaddq_f32(self.0, other.0), vaddq_f32(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn total(self) -> f32 {
            unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
        }
        #[inline(always)]
        unsafe fn add_totals(four: [Self; 4], to: *mut f32) {
            unsafe {
                let [a, b, c, d] = four;
                let [a, b] = [vaddq_f32(a.0, a.1), vaddq_f32(b.0, b.1)];
                let [c, d] = [vaddq_f32(c.0, c.1), vaddq_f32(d.0, d.1)];
                let totals = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
                vst1q_f32(to, vaddq_f32(vld1q_f32(to), totals));
            }
        }
    }
}
