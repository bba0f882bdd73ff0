# The menu. CI calls the same recipes' commands through .ci/run.

# the main job: a cluster on this machine, all examples, every path checked, nothing left
lab:
    cargo run --release -- lab up -f examples/ --check

# all tests
test:
    cargo test --workspace

# what else must hold
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# everything that CI runs
ci:
    bash .ci/run

# the program as an image that containerd imports, without docker
image:
    cargo xtask image

# the agent on a real Kubernetes of this machine, and Kubernetes' own tests there; as root
rig:
    .ci/rig -n 6 try agent

# what docs/performance.md quotes
bench:
    cargo bench --bench programming
    cargo bench --bench churn
    cargo bench --bench peers
    cargo bench --bench udp
