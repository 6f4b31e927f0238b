//! Only tests: see `tests/kernels`.
