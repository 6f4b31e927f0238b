//! `x/6 + 1/2`, within 0 and 1.

super::activation!(HardSigmoid, crate::math::hard_sigmoid);
