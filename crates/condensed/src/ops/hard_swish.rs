//! `x` times its hard sigmoid.

super::activation!(HardSwish, crate::math::hard_swish);
