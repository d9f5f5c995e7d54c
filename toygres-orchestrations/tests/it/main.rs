//! The crate's tests from outside, in one program.

mod workflows;
