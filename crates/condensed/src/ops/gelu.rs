//! `x · Φ(x)`.

super::activation!(Gelu, math::gelu);
