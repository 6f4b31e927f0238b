//! `max(x, 0)`.

super::activation!(Relu, math::relu);
