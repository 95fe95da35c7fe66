//! The harness that tests and benchmarks share.
