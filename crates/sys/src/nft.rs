//! nf_tables over netlink: expressions, sets, batches, dumps.
