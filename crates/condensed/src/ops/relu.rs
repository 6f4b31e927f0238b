//! `max(x, 0)`.

super::activation!(Relu, crate::math::relu);
