//! `x` times its hard sigmoid.

super::activation!(HardSwish, math::hard_swish);
