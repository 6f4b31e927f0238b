//! `x · Φ(x)`.

super::activation!(Gelu, crate::math::gelu);
