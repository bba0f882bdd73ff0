//! Netlink sockets, attributes and acknowledgements.
