//! Results that several threads write at the same time, and memory that is asked for before it is needed.

use std::marker::PhantomData;
use std::ops::Range;

/// Planes of which several threads write parts, each its own.
pub(crate) struct SharedPlanes<'a> {
    start: *mut f32,
    planes: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: what is reached through it belongs to one thread each, as callers of `part` promise.
unsafe impl Sync for SharedPlanes<'_> {}

impl<'a> SharedPlanes<'a> {
    /// All of `floats`, in planes of `stride`.
    pub fn new(floats: &'a mut [f32], stride: usize) -> Self {
        let planes = floats.len() / stride.max(1);
        Self { start: floats.as_mut_ptr(), planes, stride, borrowed: PhantomData }
    }

    /// Some positions of a plane.
    ///
    /// # Safety
    /// Nobody else has any of them at the same time.
    ///
    /// # Panics
    /// If there are no such positions.
    #[expect(clippy::mut_from_ref, reason = "each part has one owner, as callers promise")]
    pub unsafe fn part(&self, plane: usize, positions: Range<usize>) -> &mut [f32] {
        assert!(plane < self.planes && positions.start <= positions.end && positions.end <= self.stride);
        // SAFETY: lies in the floats that are borrowed for `'a`; nobody else has it, as the caller promises.
        unsafe {
            let start = self.start.add(plane * self.stride + positions.start);
            std::slice::from_raw_parts_mut(start, positions.len())
        }
    }

    /// Where a position of a plane lies.
    ///
    /// # Panics
    /// If there is none such.
    pub fn at(&self, plane: usize, position: usize) -> *mut f32 {
        assert!(plane < self.planes && position < self.stride);
        self.start.wrapping_add(plane * self.stride + position)
    }

    /// Asks for positions that will be written soon, if there are such.
    pub fn prefetch(&self, plane: usize, positions: Range<usize>) {
        if plane < self.planes {
            prefetch(self.start.wrapping_add(plane * self.stride + positions.start), positions.len());
        }
    }
}

/// Asks for so many numbers, which will be needed soon: the processor does not guess what lies far from what came before.
pub(crate) fn prefetch(start: *const f32, floats: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for line in (0..floats).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has SSE; a prefetch never fails, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (start, floats);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn parts_lie_in_their_planes() {
        let mut floats: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let planes = SharedPlanes::new(&mut floats, 4);
        planes.prefetch(7, 0..4);
        // SAFETY: the parts are apart.
        let [a, b] = unsafe { [planes.part(0, 1..3), planes.part(1, 0..4)] };
        (a[1], b[0]) = (-2.0, -4.0);
        for (plane, positions) in [(2, 0..1), (0, 3..5), (1, 2..usize::MAX)] {
            // SAFETY: it panics.
            let part = std::panic::AssertUnwindSafe(|| unsafe { planes.part(plane, positions).len() });
            assert!(catch_unwind(part).is_err(), "{plane}");
        }
        assert_eq!(floats, [0.0, 1.0, -2.0, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    }
}
