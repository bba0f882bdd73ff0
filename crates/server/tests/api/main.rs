//! The server as its clients see it: in process, over TLS, and with the real kubectl.

mod support; // a server over a store in memory

mod access; // who asks, who may
mod connect; // what becomes a connection: exec and its like, and proxies
mod differential; // the real kube-apiserver beside ours
mod faults; // a store that fails
mod kinds; // one object of each kind
mod logs; // pods' logs, from a node that is faked and from one over TLS
mod reads; // lists, pages, tables
mod socket; // TLS, tokens, draining, kubectl
mod watches; // order, resuming, selectors, bookmarks
mod writes; // conflicts, names, patches, allocation, deletion
