//! The promises, each in a world of its own.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::doors::*;
use crate::probes::*;
use crate::streams::*;
use crate::world::{NODE, TOKEN, World, client, condition, http, is_ready, pod_links, processes, tcp, udp};
use crate::{As, tls};

macro_rules! tests {
    ($($name:ident as $world:ident),* $(,)?) => {
        /// The tests and the worlds that they run in.
        pub const NAMES: &[(&str, As)] = &[$((stringify!($name), As::$world)),*];

        async fn dispatch(name: &str) {
            match name {
                $(stringify!($name) => $name().await,)*
                _ => panic!("there is no test {name}"),
            }
        }
    };
}

tests! {
    a_pod_answers_over_http_tcp_and_udp_in_both_families as Anybody,
    pods_run_without_root as User,
    a_killed_supervisor_takes_the_pod_with_it_and_the_pod_comes_back as Anybody,
    pods_outlive_the_nodes_process_and_are_taken_over as Anybody,
    a_deleted_pod_serves_until_clients_stop_and_leaves_nothing as Anybody,
    an_abrupt_pod_ends_at_once as Anybody,
    a_crashing_container_backs_off_and_its_logs_can_be_read as Anybody,
    what_left_the_api_while_the_node_was_down_is_removed as Anybody,
    what_is_missing_is_said_in_the_pods_status as Anybody,
    a_container_is_confined as Anybody,
    a_container_is_confined_without_root as User,
    a_failing_liveness_probe_restarts_and_a_failing_readiness_probe_does_not as Anybody,
    a_container_sees_services_its_pod_and_config_maps as Anybody,
    what_a_container_writes_to_its_root_is_its_own_until_it_ends as Anybody,
    what_a_container_writes_to_its_root_is_its_own_until_it_ends_without_root as User,
    routes_to_other_nodes_follow_their_objects as Anybody,
    teardown_leaves_no_process_link_or_file as Anybody,
    a_host_network_pod_answers_on_the_nodes_address as Anybody,
    what_a_manifest_wants_done_after_a_start_is_done as Anybody,
    a_program_run_in_a_container_has_streams_of_its_own as Anybody,
    a_program_run_in_a_container_has_streams_of_its_own_without_root as User,
    a_program_runs_over_spdy_as_well as Anybody,
    a_program_ends_with_the_client_that_wanted_it as Anybody,
    a_terminal_has_the_clients_size as Anybody,
    what_can_not_be_run_is_said as Anybody,
    who_attaches_sees_and_types_what_the_container_says_and_hears as Anybody,
    a_pods_ports_are_forwarded_with_their_ends_and_errors as Anybody,
    a_nodes_port_leads_to_the_pod_that_has_it as Anybody,
    a_nodes_port_leads_to_the_pod_that_has_it as User,
    a_nodes_port_outlives_the_nodes_process_and_ends_with_the_pod as Anybody,
    one_port_of_two_addresses_leads_to_two_pods as Anybody,
    a_probe_by_https_takes_the_pods_own_certificate as Anybody,
    a_probe_by_grpc_asks_for_its_service as Anybody,
    what_a_container_says_of_its_end_is_in_its_status as Anybody,
    a_volume_is_its_pods_group_and_terminals_can_be_made as Anybody,
    a_volume_is_its_pods_group_and_terminals_can_be_made as User,
}

/// Runs one test; process 1 of its namespaces.
pub fn run(name: &str) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let limit = tokio::time::timeout(Duration::from_secs(60), dispatch(name));
            limit.await.expect("the test ends within a minute");
        });
    }));
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub fn echo(image: &str) -> Value {
    json!({
        "terminationGracePeriodSeconds": 10,
        "containers": [{
            "name": "echo", "image": image, "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 80}}
        }]
    })
}

/// A container of the machine's programs.
pub fn shell(script: &str) -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "sh", "image": "host", "command": ["/bin/sh", "-c", script]}]
    })
}

async fn answers(addresses: &[IpAddr], hostname: &str) {
    assert_eq!(addresses.len(), 2, "one address of each family");
    for address in addresses {
        let body = http(*address, 80, "/some/path").await.expect("HTTP answers");
        let lines: Vec<&str> = body.lines().collect();
        assert_eq!(lines[0], format!("hostname: {hostname}"));
        assert!(lines[1].starts_with("peer: "), "{body}");
        assert!(lines[2].starts_with("local: ") && lines[2].ends_with(":80"), "{body}");
        assert_eq!(lines[3..], ["path: /some/path", "protocol: HTTP/1.1"]);
        let line = tcp(*address, 80, "hello").await.expect("TCP answers");
        assert!(line.starts_with(&format!("{hostname} ")), "{line}");
        let line = udp(*address, 80).await.expect("UDP answers");
        assert!(line.starts_with(&format!("{hostname} ")), "{line}");
    }
}

async fn a_pod_answers_over_http_tcp_and_udp_in_both_families() {
    let world = World::new().await;
    world
        .api
        .until("the node is ready", 10, |api| {
            api.get("nodes//node-1").filter(|node| condition(node, "Ready") == Some(true))
        })
        .await;
    let begun = Instant::now();
    let key = world.create("web", echo("echo"));
    let addresses = world.ready(&key).await;
    let took = begun.elapsed();
    answers(&addresses, "web").await;
    assert!(took < Duration::from_secs(5), "ready after {took:?}");
    println!("ready after {took:?}");

    let pod = world.api.get(&key).expect("the pod");
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.244.1.1");
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    let container = &pod["status"]["containerStatuses"][0];
    assert!(container["containerID"].as_str().is_some_and(|id| id.starts_with("portolan://")));
    assert_eq!((&container["restartCount"], &container["ready"]), (&json!(0), &json!(true)));
    for reason in ["Pulled", "Created", "Started"] {
        world.api.until(reason, 5, |_| (world.events(reason).len() == 1).then_some(())).await;
    }
    let node = world.api.get("nodes//node-1").expect("the node");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
    assert_eq!(node["status"]["addresses"][0], json!({"address": "192.0.2.1", "type": "InternalIP"}));
    assert_eq!(
        node["metadata"]["annotations"]["portolan.dev/serving-cert-sha256"].as_str().map(str::len),
        Some(64)
    );
    world.api.until("the lease", 5, |api| api.get("leases/kube-node-lease/node-1")).await;

    // Two pods of one node reach each other, and neither gets the other's address.
    let second = world.create("second", echo("echo"));
    let others = world.ready(&second).await;
    answers(&others, "second").await;
    assert!(others.iter().all(|address| !addresses.contains(address)));
}

async fn pods_run_without_root() {
    let world = World::new().await;
    let key = world.create("web", echo("echo"));
    let addresses = world.ready(&key).await;
    answers(&addresses, "web").await;
    let script = world.create("script", shell("id -u; touch /tmp/x && echo written; exec sleep 1000"));
    world.ready(&script).await;
    let pid = world.pid(&key);
    assert!(std::fs::read_dir(format!("/proc/{pid}")).is_ok());
    world.api.delete(&key, Some(0));
    world.api.delete(&script, Some(1));
    world.api.until("both are gone", 10, |api| api.all("pods/").is_empty().then_some(())).await;
    until_gone(&world).await;
}

/// Waits until no pod has left a process, a link or a file.
async fn until_gone(world: &World) {
    let begun = Instant::now();
    loop {
        let left =
            processes().into_iter().filter(|name| ["portolan-pod", "echo", "sh", "sleep"].contains(&&**name));
        let left: Vec<String> = left.collect();
        let files = std::fs::read_dir(world.data.join("pods")).map(|entries| entries.count()).unwrap_or(0);
        if left.is_empty() && pod_links().is_empty() && files == 0 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{left:?} {:?} {files}", pod_links());
        // Processes and links tell nobody when they go: look again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_killed_supervisor_takes_the_pod_with_it_and_the_pod_comes_back() {
    let world = World::new().await;
    let key = world.create("web", echo("echo"));
    let addresses = world.ready(&key).await;
    let pid = world.pid(&key);
    let children = || -> usize { processes().iter().filter(|name| *name == "echo").count() };
    assert_eq!(children(), 1);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("a pid"),
        rustix::process::Signal::KILL,
    )
    .expect("it is killed");
    let restarted = |api: &crate::api::Api| {
        api.get(&key)
            .filter(|pod| is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    };
    let pod = world.api.until("the pod is back", 20, restarted).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 137);
    assert_ne!(world.pid(&key), pid);
    assert_eq!(children(), 1, "the old server is gone");
    assert_eq!(pod_links().len(), 1, "and so is its link");
    assert_eq!(world.ready(&key).await, addresses, "the pod keeps its addresses");
    answers(&addresses, "web").await;
}

async fn pods_outlive_the_nodes_process_and_are_taken_over() {
    let mut world = World::new().await;
    let key = world.create("web", echo("echo"));
    let addresses = world.ready(&key).await;
    let pid = world.pid(&key);
    world.kill_agent();
    answers(&addresses, "web").await;
    let before = world.api.history(&key).len();
    world.start_agent();
    let second = world.create("second", echo("echo"));
    let others = world.ready(&second).await;
    assert!(
        others.iter().all(|address| !addresses.contains(address)),
        "addresses in use are not given again"
    );
    assert_eq!(world.pid(&key), pid, "the same pod goes on");
    answers(&addresses, "web").await;
    let after = world.api.history(&key).split_off(before);
    assert!(after.iter().all(is_ready), "it was ready all the time: {after:#?}");

    // What ends while nobody looks is known afterwards.
    let job = shell("sleep 0.3; exit 5");
    let mut job = job;
    job["restartPolicy"] = json!("Never");
    let job = world.create("job", job);
    world
        .api
        .until("the job runs", 10, |api| api.get(&job).filter(|pod| pod["status"]["phase"] == "Running"))
        .await;
    world.kill_agent();
    let dir = world.dir(&job);
    let begun = Instant::now();
    while !std::fs::read_to_string(dir.join("containers/sh.json")).is_ok_and(|text| text.contains("Exited")) {
        assert!(begun.elapsed() < Duration::from_secs(10), "the job ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.start_agent();
    let failed = |api: &crate::api::Api| api.get(&job).filter(|pod| pod["status"]["phase"] == "Failed");
    let pod = world.api.until("the job's end is reported", 10, failed).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 5);
}

async fn a_deleted_pod_serves_until_clients_stop_and_leaves_nothing() {
    let world = World::new().await;
    let key = world.create("web", echo("echo"));
    let addresses = world.ready(&key).await;
    world.api.delete(&key, None);
    let begun = Instant::now();
    // Clients keep coming for longer than the quiet time: each is served.
    while begun.elapsed() < Duration::from_secs(3) {
        for address in &addresses {
            http(*address, 80, "/").await.expect("a terminating pod still answers");
            udp(*address, 80).await.expect("over UDP, too");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let stopped = Instant::now();
    world.api.until("the pod is gone", 10, |api| api.get(&key).is_none().then_some(())).await;
    let took = stopped.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(4), "gone after {took:?}");
    until_gone(&world).await;
    let last = world.api.history(&key);
    let last =
        last.iter().rev().find(|pod| pod["status"]["phase"] == "Succeeded").expect("its end was reported");
    assert_eq!(last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
}

async fn an_abrupt_pod_ends_at_once() {
    let world = World::new().await;
    let key = world.create("web", echo("echo-abrupt"));
    world.ready(&key).await;
    let begun = Instant::now();
    world.api.delete(&key, None);
    world.api.until("the pod is gone", 10, |api| api.get(&key).is_none().then_some(())).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "gone after {:?}", begun.elapsed());
    until_gone(&world).await;
}

/// What the log endpoint answers.
pub async fn logs(world: &World, path: &str, token: &str) -> (u16, String) {
    let node = world.api.get("nodes//node-1").expect("the node");
    let fingerprint = node["metadata"]["annotations"]["portolan.dev/serving-cert-sha256"].as_str();
    let address = "192.0.2.1:10250".parse().expect("an address");
    let answer =
        tls::get(address, fingerprint.expect("a fingerprint"), &format!("/containerLogs/{path}"), token)
            .await;
    answer.expect("the log endpoint answers")
}

async fn a_crashing_container_backs_off_and_its_logs_can_be_read() {
    let world = World::new().await;
    let key = world.create("crash", shell("echo out; echo err >&2; exit 3"));
    let waits = |api: &crate::api::Api| {
        let pod = api.get(&key)?;
        let container = &pod["status"]["containerStatuses"][0];
        (container["state"]["waiting"]["reason"] == "CrashLoopBackOff").then_some(container.clone())
    };
    let container = world.api.until("it backs off", 10, waits).await;
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(container["restartCount"], 1, "the first restart comes at once, the second waits");
    let begun = Instant::now();
    let again = |api: &crate::api::Api| {
        api.get(&key).filter(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 2)
    };
    world.api.until("it is started again", 15, again).await;
    let ended = |api: &crate::api::Api| waits(api).filter(|container| container["restartCount"] == 2);
    world.api.until("it backs off again", 10, ended).await;
    assert!(begun.elapsed() > Duration::from_secs(8), "after {:?}", begun.elapsed());

    let log = std::fs::read_to_string(world.dir(&key).join("logs/sh/1.log")).expect("the log");
    let line = log.lines().find(|line| line.contains("stdout")).expect("a line of stdout");
    let (time, rest) = line.split_once(' ').expect("a time");
    assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == 30, "{time}");
    assert_eq!(rest, "stdout F out");
    assert_eq!(logs(&world, "default/crash/sh", "wrong").await.0, 401);
    let (code, text) = logs(&world, "default/crash/sh?previous=true", TOKEN).await;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!((code, lines), (200, vec!["err", "out"]));
    let (code, text) = logs(&world, "default/crash/sh?follow=true&tailLines=1", TOKEN).await;
    assert_eq!((code, text.lines().count()), (200, 1), "following ends with the container: {text}");
    assert_eq!(logs(&world, "default/none/sh", TOKEN).await.0, 404);
}

async fn what_left_the_api_while_the_node_was_down_is_removed() {
    let mut world = World::new().await;
    let key = world.create("web", echo("echo"));
    world.ready(&key).await;
    world.kill_agent();
    world.api.forget(&key);
    world.start_agent();
    until_gone(&world).await;
}

async fn what_is_missing_is_said_in_the_pods_status() {
    let world = World::new().await;
    let key = world.create("pull", echo("nginx:1.29"));
    let waits = |api: &crate::api::Api| {
        let pod = api.get(&key)?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"].as_str().filter(|reason| reason.contains("Pull"))?;
        waiting["message"].as_str().map(str::to_owned)
    };
    let message = world.api.until("it says that there is no image", 10, waits).await;
    assert!(message.contains("--image nginx:1.29=DIR"), "{message}");
    let (code, text) = logs(&world, "default/pull/echo", TOKEN).await;
    assert_eq!(code, 400);
    assert!(text.starts_with("container \"echo\" in pod \"pull\" is waiting to start: "), "{text}");
    assert!(text.contains("pull"), "{text}");
    let bad = world.create(
        "bad",
        json!({"containers": [{"name": "c", "image": "host", "command": ["/no/such/program"]}]}),
    );
    let failed = |api: &crate::api::Api| {
        let pod = api.get(&bad)?;
        let container = &pod["status"]["containerStatuses"][0];
        let terminated = [&container["state"]["terminated"], &container["lastState"]["terminated"]];
        terminated.iter().find_map(|state| state["message"].as_str().map(str::to_owned))
    };
    let message = world.api.until("it says what could not be started", 10, failed).await;
    assert!(message.contains("/no/such/program"), "{message}");
    world.api.delete(&key, Some(1));
    world.api.delete(&bad, Some(1));
    world.api.until("both can be deleted", 10, |api| api.all("pods/").is_empty().then_some(())).await;
}

/// The lines that a container has written.
async fn output(world: &World, key: &str, last: &str) -> Vec<String> {
    let path = world.dir(key).join("logs/sh/0.log");
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned);
        let lines: Vec<String> = lines.collect();
        if lines.iter().any(|line| line == last) {
            return lines;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_container_is_confined_without_root() {
    a_container_is_confined().await;
}

async fn a_container_is_confined() {
    let world = World::new().await;
    let script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; echo pid $$$$; hostname; \
                  touch /x 2>/dev/null || echo read-only; ls /proc | grep -cE '^[0-9]+$'; \
                  mount -t tmpfs none /mnt 2>/dev/null || echo no-mounts; \
                  echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward || echo no-sysctls; \
                  unshare -U true 2>/dev/null || echo no-namespaces; cat /etc/hostname; \
                  grep -c '^nameserver' /etc/resolv.conf; echo done; exec sleep 1000";
    let key = world.create("jail", shell(script));
    let lines = output(&world, &key, "done").await;
    let has =
        |wanted: &str| assert!(lines.iter().any(|line| line == wanted), "{wanted:?} is not in {lines:#?}");
    for wanted in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t00000000000005fb",
        "CapBnd:\t00000000000005fb",
        "pid 1",
        "jail",
        "read-only",
        "no-mounts",
        "no-sysctls",
        "no-namespaces",
        "0",
    ] {
        has(wanted);
    }
    assert_eq!(lines.iter().filter(|line| *line == "jail").count(), 2, "hostname and /etc/hostname agree");
}

async fn a_failing_liveness_probe_restarts_and_a_failing_readiness_probe_does_not() {
    let world = World::new().await;
    let mut spec = shell("echo started; exec sleep 1000");
    let probe = |file: &str| {
        json!({"exec": {"command": ["/bin/sh", "-c", format!("test ! -e /tmp/{file}")]},
            "periodSeconds": 1, "failureThreshold": 1})
    };
    spec["containers"][0]["livenessProbe"] = probe("dead");
    spec["containers"][0]["readinessProbe"] = probe("busy");
    let key = world.create("probed", spec);
    world.ready(&key).await;
    let touch = |file: &str| {
        // The container's files, by way of its process.
        let sleep = std::fs::read_dir("/proc").expect("/proc").flatten().find(|entry| {
            std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm == "sleep\n")
        });
        let root = sleep.expect("the container's process").path().join("root/tmp").join(file);
        std::fs::write(root, b"").expect("the file is made");
    };
    touch("busy");
    world.api.until("it is not ready", 10, |api| api.get(&key).filter(|pod| !is_ready(pod))).await;
    assert_eq!(world.api.get(&key).expect("the pod")["status"]["containerStatuses"][0]["restartCount"], 0);
    touch("dead");
    let restarted = |api: &crate::api::Api| {
        api.get(&key)
            .filter(|pod| is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    };
    world.api.until("it is restarted, with fresh files, and ready", 15, restarted).await;
    world
        .api
        .until("the events", 5, |_| {
            let said = world.events("Unhealthy");
            let has = |kind: &str| said.iter().any(|message| message.starts_with(kind));
            (has("Liveness") && has("Readiness") && !world.events("Killing").is_empty()).then_some(())
        })
        .await;
}

async fn a_container_sees_services_its_pod_and_config_maps() {
    let world = World::new().await;
    world.api.put(
        "services/default/web",
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}
        }),
    );
    world.api.put(
        "configmaps/default/conf",
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf", "namespace": "default"},
            "data": {"key": "value", "file": "content"}
        }),
    );
    let mut spec = shell(
        "echo $WEB_SERVICE_HOST $NAME $IP $KEY; cat /tmp/conf/file; echo; echo x >/tmp/scratch/x && \
                          cat /tmp/scratch/x; grep $IP /etc/hosts; echo done; exec sleep 1000",
    );
    let container = &mut spec["containers"][0];
    container["image"] = json!("docker.io/library/machine:latest");
    container["env"] = json!([
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "key"}}}
    ]);
    container["volumeMounts"] = json!([
        {"name": "conf", "mountPath": "/tmp/conf"}, {"name": "scratch", "mountPath": "/tmp/scratch"}
    ]);
    spec["volumes"] =
        json!([{"name": "conf", "configMap": {"name": "conf"}}, {"name": "scratch", "emptyDir": {}}]);
    let key = world.create("env", spec);
    let lines = output(&world, &key, "done").await;
    assert_eq!(lines[..4], ["10.96.0.7 env 10.244.1.1 value", "content", "x", "10.244.1.1\tenv"]);
}

async fn what_a_container_writes_to_its_root_is_its_own_until_it_ends_without_root() {
    what_a_container_writes_to_its_root_is_its_own_until_it_ends().await;
}

async fn what_a_container_writes_to_its_root_is_its_own_until_it_ends() {
    let world = World::new().await;
    let file = format!("/written-by-{}", std::process::id());
    let script = format!(
        "test -e {file} && echo old; test -s /bin/env && rm /bin/env && mkdir -p /lib/deep/er; \
         echo x >{file} && cat {file}; ls -d /lib/deep/er; test -e /bin/env || echo removed; echo done; \
         test -e /tmp/again && exec sleep 1000; sleep 0.1"
    );
    let mut spec = shell(&script);
    // /usr is a root of its own, where /bin and /lib are links into it.
    spec["containers"][0]["image"] = json!("programs");
    let key = world.create("writer", spec.clone());
    let expected = ["x", "/lib/deep/er", "removed", "done"];
    assert_eq!(output(&world, &key, "done").await, expected);
    // The next run begins with the image as it is.
    let again = world.dir(&key).join("logs/sh/1.log");
    let text = world
        .api
        .until("it runs again", 20, |_| {
            std::fs::read_to_string(&again).ok().filter(|text| text.contains("done"))
        })
        .await;
    assert!(!text.contains("old"), "{text}");
    assert!(
        !std::path::Path::new("/usr").join(&file[1..]).exists()
            && std::path::Path::new("/usr/bin/env").exists()
    );
    let container = &mut spec["containers"][0];
    container["securityContext"] = json!({"readOnlyRootFilesystem": true});
    container["command"] =
        json!(["/bin/sh", "-c", format!("touch {file} || echo read-only; echo done; sleep 1000")]);
    let key = world.create("reader", spec);
    assert!(output(&world, &key, "done").await.contains(&"read-only".to_owned()));
}

async fn what_a_manifest_wants_done_after_a_start_is_done() {
    let world = World::new().await;
    let with_hook = |script: &str| {
        let mut spec = shell("exec tail -f /dev/null");
        let command = json!(["/bin/sh", "-c", script]);
        spec["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": command}}});
        spec
    };
    let key = world.create("hooked", with_hook("echo hooked >/proc/1/fd/1"));
    assert_eq!(output(&world, &key, "hooked").await, ["hooked"]);
    let key = world.create("broken", with_hook("echo no; exit 3"));
    let restarted = |api: &crate::api::Api| {
        let pod = api.get(&key)?;
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64().filter(|count| *count > 0)
    };
    world.api.until("a container whose hook fails is started again", 20, restarted).await;
    let said = world.events("FailedPostStartHook");
    assert!(said.iter().any(|message| message.contains("status 3: no")), "{said:?}");
}

async fn routes_to_other_nodes_follow_their_objects() {
    let world = World::new().await;
    world.api.put("nodes//node-2", json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"},
        "spec": {"podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "InternalIP", "address": "2001:db8::2"}
        ]}
    }));
    let routes = || {
        let mut links = portolan_sys::link::Links::open().expect("a netlink socket");
        let routes = links.routes().expect("routes");
        let mut via: Vec<String> = routes
            .into_iter()
            .filter_map(|route| Some(format!("{}/{} via {}", route.destination, route.prefix, route.via?)))
            .collect();
        via.sort();
        via
    };
    let until = async |wanted: &[&str]| {
        let begun = Instant::now();
        while routes() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?} instead of {wanted:?}", routes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let both = ["10.244.2.0/24 via 192.0.2.2", "fd00:10:244:2::/64 via 2001:db8::2"];
    until(&both).await;
    // A link that is cut loses its routes; they come back with it.
    let mut links = portolan_sys::link::Links::open().expect("a netlink socket");
    let lan = links.index("lan").expect("the link");
    links.set_up(lan, false).expect("the link is cut");
    until(&[]).await;
    links.set_up(lan, true).expect("the link is joined");
    links.add_address(lan, "2001:db8::1".parse().expect("an address"), 64).expect("IPv6 forgot its address");
    until(&both).await;
    world.api.forget("nodes//node-2");
    until(&[]).await;
}

async fn teardown_leaves_no_process_link_or_file() {
    let mut world = World::new().await;
    let keys = [world.create("one", echo("echo")), world.create("two", echo("echo"))];
    for key in &keys {
        world.ready(key).await;
    }
    world.kill_agent();
    let data = world.data.clone();
    client(move || portolan_pods::teardown(&data)).await.expect("teardown");
    assert_eq!(pod_links(), [""; 0]);
    until_gone(&world).await;
}

async fn a_host_network_pod_answers_on_the_nodes_address() {
    let world = World::new().await;
    let mut spec = echo("echo");
    spec["hostNetwork"] = json!(true);
    spec["containers"][0]["ports"] = json!([{"containerPort": 8080}]);
    spec["containers"][0]["readinessProbe"]["httpGet"]["port"] = json!(8080);
    let key = world.create("host", spec);
    let addresses = world.ready(&key).await;
    assert_eq!(addresses[0].to_string(), "192.0.2.1");
    for address in addresses {
        assert!(http(address, 8080, "/").await.expect("it answers").starts_with("hostname: "));
        udp(address, 8080).await.expect("over UDP, too");
    }
    assert!(pod_links().is_empty());
    world.api.delete(&key, Some(1));
    world.api.until("it is gone", 10, |api| api.get(&key).is_none().then_some(())).await;
    until_gone(&world).await;
}
