//! The engine against the kernel, in network namespaces that the tests make.

mod adopt; // what is there before
mod plans; // plans to test with
