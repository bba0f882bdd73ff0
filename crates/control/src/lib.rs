//! Sees the cluster through `kube::Client` alone; each reconcile is `desired(observed)`, pure, then apply.
