//! The engine against the kernel, in network namespaces that the tests make.

mod adopt; // what is there before
mod carrier; // what the tables borrow they give back, and what they guard
mod flip; // backends come and go under a flood
mod ordinary; // small batches, users who are not root
mod packets; // connections from everywhere to each kind of frontend
mod plans; // plans to test with
mod repair; // what somebody did to the tables
mod world; // a node, its pods, a client, another node
