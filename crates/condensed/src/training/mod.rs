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

mod layer;
mod layout;
mod pass;

pub use layer::{Layer, Scratch};
