//! A pod's processes, addresses and files are gone when the pod is.
