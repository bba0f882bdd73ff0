//! Starting, confining and awaiting processes.
