//! Layers that train in condensed form: forward and backward passes that touch active weights alone.
//!
//! A layer is a [`Pattern`](crate::Pattern), which changes when the topology does, and the values of its weights, which change
//! with every step and belong to whoever trains. For a layer `y = x · Wᵀ + b` and the gradient `dy` of a loss by its result,
//! each layer here computes
//!
//! - the result `y`;
//! - the gradient by its input, `dx = dy · W`;
//! - the gradient by the values, `dyᵀ · x` at active positions only;
//! - the gradient by the bias;
//! - and, for topology updates, all of `dyᵀ · x` for some neurons ([`Layer::add_dense_gradient`]).
//!
//! Neither a dense weight nor a dense gradient exists at any time but the last, for as many neurons as one asks for. All passes
//! run on the current rayon pool, and give the same bits on any number of threads. After the first call with a batch of a size,
//! none allocates.
//!
//! [`LabelLayer`] is an output layer of hundreds of thousands of labels whose logits never exist together.
//!
//! What is not sparse must not eat the gain: [`BatchNorm`], [`LayerNorm`], [`MaxPool`], [`Attention`], [`relu`], [`gelu`] and
//! [`dropout`] pass over memory as few times as they can, forward and backward.

mod activation;
mod adam;
mod attention;
mod dropout;
mod label_kernels;
mod labels;
mod layer;
mod layout;
mod norm;
mod pass;
mod pool;

pub use activation::{gelu, gelu_gradient, hard_swish, hard_swish_gradient, relu, relu_gradient};
pub use adam::AdamStep;
pub use attention::Attention;
pub use dropout::dropout;
pub use labels::{LabelLayer, LabelLoss, LabelMoments, LabelScratch, LabelSizes, SeenGradients};
pub use layer::{LaidOut, Layer, Scratch};
pub use norm::{BatchNorm, LayerNorm, Moments};
pub use pool::MaxPool;

/// Asks the C library to keep the memory of tensors that are freed, up to 1 GiB, for those that are made next. By default it
/// gives large ones back to the system, and training, which frees and makes tensors of the same sizes step after step, waits
/// for new pages: a step of the MNIST CNN takes 1.7 times as long.
///
/// For programs, at their start; it does nothing where the C library is not glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    // SAFETY: sets two numbers of the allocator, under its lock.
    unsafe {
        // The most that glibc takes; larger tensors are still given back.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}
