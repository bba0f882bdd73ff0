# Kubernetes' own end-to-end tests: what .ci/e2e and .ci/rig share (sourced). `bin` is the folder that `.ci/peers DIR e2e` fills.

say() { printf '== %s (%(%H:%M:%S)T)\n' "$1" -1; }

# lend ROOT PROGRAM...: programs of this machine, with the libraries that they need, into a root.
lend() {
    local root=$1 name path
    shift
    for name; do
        path=$(command -v "$name") || { echo "$name is not on this machine: left out of the images"; continue; }
        cp -L "$path" "$root/usr/bin/$name"
        { ldd "$path" 2>/dev/null | grep -o '/[^ ]*' || true; } | while read -r library; do
            mkdir -p "$root$(dirname "$library")"
            [ -e "$root$library" ] || cp -L "$library" "$root$library"
        done
    done
}

# image_root ROOT: the root of the images that the tests ask for, but for what .ci/peers built: a static busybox, and programs of
# this machine.
image_root() {
    local root=$1 applet
    mkdir -p "$root"/{bin,usr/bin,etc,tmp,root,var/run,uploads,proc,sys,dev}
    chmod 1777 "$root/tmp"
    cp -L "$(command -v busybox)" "$root/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
    done
    lend "$root" bash curl dig nslookup host nc ip ss getent conntrack timeout env xargs wget
    # busybox's own shell would take its applets before the programs of the same name.
    ln -sf /usr/bin/bash "$root/bin/sh"
    echo 'tries = 1' >"$root/etc/wgetrc"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$root/localhost.key" -out "$root/localhost.crt" -days 3650 \
        -subj /CN=localhost 2>/dev/null
}

# image_names IMAGE: the names that the tests have for it, with their versions, one a line.
image_names() {
    "$bin/e2e.test" --list-images 2>/dev/null | grep -E "(^|/)$1:" | sort -V
}

# expression FILE...: what matches the names of tests in files of them.
expression() {
    grep -hv '^#' "$@" | sed 's/[][().*+?^${}|\\/]/\\&/g' | paste -sd'|'
}

# run_tests OUT NODES PROCS KUBECTL FOCUS SKIP COMMAND...: runs the tests whose names match FOCUS and not SKIP, PROCS at a time, by
# COMMAND, which runs a program where KUBECONFIG leads to the cluster; prints each by name, and how many passed.
run_tests() {
    local out=$1 nodes=$2 procs=$3 kubectl=$4 focus=$5 skip=$6 started=$SECONDS status=0
    shift 6
    mkdir -p "$out"
    say "tests: $out"
    "$@" sh -c 'exec "$0" "$@" --kubeconfig "$KUBECONFIG"' \
        "$bin/ginkgo" --focus "$focus" ${skip:+--skip "$skip"} --procs "$procs" --no-color --timeout 2h --output-dir "$out" \
        --json-report report.json \
        "$bin/e2e.test" -- --provider=skeleton --kubectl-path "$kubectl" --num-nodes "$nodes" --node-os-distro=debian \
        --allowed-not-ready-nodes=0 --minStartupPods=0 --dump-logs-on-failure=false --report-dir "$out" >"$out/log" 2>&1 || status=$?
    [ -f "$out/report.json" ] || { tail -20 "$out/log"; return 1; }
    jq -r '.[].SpecReports[]? | select(.LeafNodeType == "It")
        | select(.State != "pending" and (.State != "skipped" or (.Failure.Message // "") != ""))
        | [.State, ((.RunTime / 1e9 * 10 | floor) / 10 | tostring) + "s", ((.ContainerHierarchyTexts // []) + [.LeafNodeText] | join(" ")),
           ((.Failure.Message // "") | split("\n") | join(" | ") | .[0:400])] | @tsv' "$out/report.json" | sort >"$out/table.tsv"
    cat "$out/table.tsv"
    count() { grep -cE "^($1)" "$out/table.tsv" || true; }
    echo "$(count passed) passed, $(count 'failed|timedout|panicked|interrupted|aborted') failed, $(count skipped) skipped, $((SECONDS - started)) s"
    return "$status"
}
