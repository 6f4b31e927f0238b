use crate::math::vectorised;

/// One step of Adam (Kingma & Ba 2015), as PyTorch's: β = (0.9, 0.999), ε = 10⁻⁸.
///
/// ```
/// use condensed::training::AdamStep;
///
/// let (mut values, mut first, mut second) = ([1.0], [0.0], [0.0]);
/// AdamStep::new(0.1, 1).apply(&mut values, &[5.0], &mut first, &mut second);
/// // The first step is as long as the learning rate.
/// assert!((values[0] - 0.9).abs() < 1e-6);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Learning rate over the first moment's correction.
    rate: f32,
    /// One over the root of the second moment's correction.
    second: f32,
}

const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

impl AdamStep {
    /// The step of this number, from 1 on, with this learning rate.
    pub fn new(rate: f64, step: u64) -> Self {
        let [first, second] = BETAS.map(|beta| 1.0 - f64::from(beta).powf(step as f64));
        Self { rate: (rate / first) as f32, second: (1.0 / second.sqrt()) as f32 }
    }

    /// Moves values by their gradient; both moments go with them.
    ///
    /// # Panics
    /// If the slices have different lengths.
    pub fn apply(&self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        assert!([gradient.len(), first.len(), second.len()] == [values.len(); 3], "lengths");
        apply(values, gradient, first, second, self.rate, self.second);
    }
}

vectorised! {
    fn apply(values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], rate: f32, correction: f32) {
        let moments = first.iter_mut().zip(second);
        for ((value, g), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first = BETAS[0] * *first + (1.0 - BETAS[0]) * g;
            *second = BETAS[1] * *second + (1.0 - BETAS[1]) * g * g;
            *value -= rate * *first / (second.sqrt() * correction + EPSILON);
        }
    }
}
