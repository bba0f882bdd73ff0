//! All `unsafe` and every unusual system call; has never heard of Kubernetes.
//!
//! Absent on purpose: policy. A function here does one thing to the kernel and reports what the kernel said.

// Modules in the order in which a newcomer reads them.
pub mod conntrack; // the connection table: list, delete
pub mod datagram; // datagrams with both of their addresses
pub mod link; // links, addresses, routes, neighbours
pub mod mount; // mounts that rustix has no call for
pub mod namespace; // making and entering namespaces
pub mod netlink; // sockets, attributes, acknowledgements
pub mod nft; // nf_tables: expressions, sets, batches, dumps
pub mod packet; // raw packets on a link
pub mod process; // starting, confining and awaiting processes
pub mod seccomp; // a filter over system calls
pub mod trial; // tests that make namespaces, run by ordinary users
