//! Memory that starts on a cache line.

/// Floats, zero at first, aligned to 64 bytes so that no vector load crosses a cache line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer(Vec<Line>);

#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Buffer {
    /// At least `floats` floats from now on; what was there stays.
    pub fn grow(&mut self, floats: usize) {
        let lines = floats.div_ceil(16);
        if lines > self.0.len() {
            self.0.resize(lines, Line::default());
        }
    }
}

impl From<&[f32]> for Buffer {
    fn from(floats: &[f32]) -> Self {
        let mut buffer = Self::default();
        buffer.grow(floats.len());
        buffer[..floats.len()].copy_from_slice(floats);
        buffer
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
