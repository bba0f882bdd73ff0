//! Raw packets on a link.
