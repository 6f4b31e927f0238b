//! The output layer of extreme classification behind a network of Burn's.

use burn::tensor::{FloatDType, Tensor, TensorData};
use condensed::Error;
use condensed::training::{AdamStep, LabelLayer, LabelLoss, LabelMoments, LabelScratch};

/// An output layer of so many labels that their logits `[batch, labels]` must not exist: [`LabelLayer`] with its Adam, on the CPU's
/// kernels, behind a network on any device.
///
/// Logits, loss, gradients and the layer's step are one pass. The loss that it returns brings the gradient by the features to the
/// network in front, which has an optimizer of its own.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::optim::{AdamConfig, GradientsParams, Optimizer};
/// use burn::tensor::{Device, Tensor};
/// use srigl_burn::LabelOutput;
/// use srigl_burn::condensed::training::{LabelLayer, LabelLoss, LabelSizes};
/// use sparsity_core::{Stream, random_row};
///
/// let device = Device::flex().autodiff();
/// let mut hidden = LinearConfig::new(5, 64).init(&device);
/// let mut adam = AdamConfig::new().init();
/// // 1000 labels that read 8 of 64 features.
/// let sizes = LabelSizes { inputs: 64, labels: 1000, fan_in: 8, group: 1 };
/// let inputs = |label: usize, row: &mut [u16]| random_row(row, 64, Stream { seed: 0, layer: 0, step: 0 }, label);
/// let layer = LabelLayer::new(sizes, inputs, |label, values| {
///     values.iter_mut().zip(0..).for_each(|(value, k)| *value = ((label * 7 + k * 3) % 11) as f32 / 30.0 - 0.16);
///     -5.0
/// })?;
/// let mut output = LabelOutput::new(layer, LabelLoss::BinaryCrossEntropy)?;
///
/// let x = Tensor::<2>::from_data([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0]], &device);
/// for _ in 0..30 {
///     let loss = output.step(hidden.forward(x.clone()), &[&[17], &[3, 999]], 0.05)?;
///     let gradients = GradientsParams::from_grads(loss.backward(), &hidden);
///     hidden = adam.step(0.05, hidden, gradients);
/// }
/// let best = output.top(1, hidden.forward(x))?;
/// assert_eq!(best[0][0].0, 17);
/// # Ok::<(), srigl_burn::condensed::Error>(())
/// ```
#[derive(Debug)]
pub struct LabelOutput {
    layer: LabelLayer,
    moments: LabelMoments,
    loss: LabelLoss,
    steps: u64,
    scratch: LabelScratch,
}

impl LabelOutput {
    /// A layer that has not been trained.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if its moments take more memory than there may be.
    pub fn new(layer: LabelLayer, loss: LabelLoss) -> Result<Self, Error> {
        let moments = LabelMoments::new(&layer)?;
        Ok(Self::going_on(layer, moments, loss, 0))
    }

    /// A layer after so many steps, with its moments.
    pub fn going_on(layer: LabelLayer, moments: LabelMoments, loss: LabelLoss, steps: u64) -> Self {
        Self { layer, moments, loss, steps, scratch: LabelScratch::default() }
    }

    /// Steps that it has taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The layer as it is now.
    pub fn layer(&self) -> &LabelLayer {
        &self.layer
    }

    /// Layer and moments, for [`LabelLayer::rewire`].
    pub fn parts(&mut self) -> (&mut LabelLayer, &mut LabelMoments) {
        (&mut self.layer, &mut self.moments)
    }

    /// Takes a step of Adam on features `[batch, inputs]` and the labels that each sample has, and returns the loss `[1]`, the sum over
    /// labels, the mean over samples. Its backward pass is that of the loss by the features before the step.
    ///
    /// # Errors
    /// As [`LabelLayer::step`].
    ///
    /// # Panics
    /// As [`LabelLayer::step`].
    pub fn step(&mut self, features: Tensor<2>, labels: &[&[u32]], lr: f64) -> Result<Tensor<1>, Error> {
        let x = numbers(&features);
        let mut dx = vec![0.0; x.len()];
        let adam = AdamStep::new(lr, self.steps + 1);
        let (moments, scratch) = (&mut self.moments, &mut self.scratch);
        let loss = self.layer.step(moments, adam, self.loss, &x, labels, &mut dx, scratch)?;
        self.steps += 1;
        let gradient = TensorData::new(dx, features.dims());
        let gradient = Tensor::from_data(gradient, (&features.device(), features.dtype()));
        // Its value cancels, its gradient does not.
        let product = (features * gradient).sum();
        Ok(product.clone() - product.detach() + loss)
    }

    /// The `k` labels with the largest logits of each sample, largest first, and these.
    ///
    /// # Errors
    /// As [`LabelLayer::top`].
    pub fn top(&mut self, k: usize, features: Tensor<2>) -> Result<Vec<Vec<(u32, f32)>>, Error> {
        self.layer.top(k, &numbers(&features), &mut self.scratch)
    }
}

/// The numbers of a tensor on the host.
fn numbers(tensor: &Tensor<2>) -> Vec<f32> {
    let data = tensor.clone().detach().cast(FloatDType::F32).into_data();
    data.try_into_vec().expect("they are f32")
}
