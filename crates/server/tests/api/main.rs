//! The server as its clients see it: in process, over TLS, and with the real kubectl.

mod support; // a server over a store in memory

mod access; // who asks, who may
mod apply; // server-side apply, and owners of fields
mod connect; // what becomes a connection: exec and its like, and proxies
mod definitions; // kinds that clients define
mod differential; // the real kube-apiserver beside ours
mod etcd; // two servers on one etcd
mod faults; // a store that fails
mod forms; // strictness, compression, hashes, OpenAPI
mod kinds; // one object of each kind
mod logs;
mod metrics; // pods' logs, from a node that is faked and from one over TLS
mod reads; // lists, pages, tables
mod socket; // TLS, tokens, draining, kubectl
mod watches; // order, resuming, selectors, bookmarks
mod writes; // conflicts, names, patches, allocation, deletion
