//! Pods die, roll and come back, parts of ours are killed, and connections through the Services go on.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::harness::{Lab, block_on, text, until};
use crate::load::{Load, Outcome};

const APP: &str = "app=echo-hostname";

/// The addresses behind which the same pods answer, by the kind of frontend.
struct Targets {
    cluster_ips: Vec<IpAddr>,
    load_balancers: Vec<IpAddr>,
}

async fn targets(client: &kube::Client) -> Targets {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let cluster = services.get("hostname-cluster-ip").await.expect("the ClusterIP Service");
    let cluster_ips = cluster.spec.and_then(|s| s.cluster_ips).expect("cluster IPs");
    let load_balancers = until("addresses of the load balancer", async || {
        let service = services.get("hostname-load-balancer").await.map_err(|e| e.to_string())?;
        let ingress =
            service.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
        let addresses: Vec<IpAddr> = ingress.iter().filter_map(|i| i.ip.as_deref()?.parse().ok()).collect();
        if addresses.len() == 2 { Ok(addresses) } else { Err(format!("{addresses:?}")) }
    })
    .await;
    let cluster_ips = cluster_ips.iter().map(|ip| ip.parse().expect("an address")).collect();
    Targets { cluster_ips, load_balancers }
}

/// New connections to each type of Service, from where each may be reached, over TCP and UDP and both families.
fn load(lab: &Lab, targets: &Targets) -> Vec<Load> {
    let mut loads = vec![Load::start(lab.at("client"), "tcp", SocketAddr::from(([10, 80, 0, 12], 30163)))];
    for protocol in ["tcp", "udp"] {
        for ip in &targets.cluster_ips {
            loads.push(Load::start(lab.at("node-1"), protocol, SocketAddr::new(*ip, 80)));
        }
        for ip in &targets.load_balancers {
            loads.push(Load::start(lab.at("client"), protocol, SocketAddr::new(*ip, 80)));
        }
    }
    loads
}

async fn all_ready(client: &kube::Client) -> Vec<Pod> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    until("three pods of the newest template, and no others", async || {
        let deployment = deployments.get("echo-hostname").await.map_err(|e| e.to_string())?;
        let status = deployment.status.unwrap_or_default();
        let list = pods.list(&ListParams::default().labels(APP)).await.map_err(|e| e.to_string())?.items;
        let whole = status.observed_generation == deployment.metadata.generation
            && [status.updated_replicas, status.available_replicas, status.replicas] == [Some(3); 3]
            && list.len() == 3;
        if whole { Ok(list) } else { Err(format!("{} pods; {status:?}", list.len())) }
    })
    .await
}

/// Deletes the pods one by one, each when the last is replaced, then rolls them all.
async fn disrupt(client: &kube::Client) {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    for pod in all_ready(client).await {
        let name = pod.metadata.name.expect("a name");
        pods.delete(&name, &DeleteParams::default()).await.expect("deleting a pod");
        until("the pod to be gone", async || match pods.get_opt(&name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{:?}", other.map(|p| p.map(|p| p.metadata.deletion_timestamp)))),
        })
        .await;
        all_ready(client).await;
    }
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let annotation = json!({"spec": {"template": {"metadata": {"annotations": {"rolled": "once"}}}}});
    deployments
        .patch("echo-hostname", &PatchParams::default(), &Patch::Merge(annotation))
        .await
        .expect("changing the template");
    all_ready(client).await;
}

fn report(outcomes: &[Outcome]) -> u64 {
    println!("{:<34} {:>8} {:>8}  BACKENDS", "CONNECTIONS", "OPENED", "FAILED");
    for o in outcomes {
        println!("{:<34} {:>8} {:>8}  {}", o.what, o.attempts, o.failures, o.by_host.len());
        for reason in &o.reasons {
            println!("    {reason}");
        }
    }
    outcomes.iter().map(|o| o.failures).sum()
}

#[test]
fn no_connection_fails_while_pods_that_drain_are_deleted_and_rolled() {
    let promise = "no connection fails while pods that drain are deleted and rolled";
    let Some(lab) = Lab::up_alone(promise, "drain", &["-f", "examples/"]) else { return };
    block_on(async {
        let client = lab.client().await;
        all_ready(&client).await;
        let loads = load(&lab, &targets(&client).await);
        disrupt(&client).await;
        let outcomes: Vec<Outcome> = loads.into_iter().map(Load::stop).collect();
        assert_eq!(report(&outcomes), 0, "connections failed");
        for outcome in outcomes {
            assert!(outcome.attempts > 1000, "{}: hardly any load: {}", outcome.what, outcome.attempts);
            assert!(
                outcome.by_host.len() >= 6,
                "{}: not all pods answered: {:?}",
                outcome.what,
                outcome.by_host
            );
        }
    });
}

#[test]
fn failures_of_pods_that_exit_at_once_are_reported() {
    let promise = "failures of pods that exit at once are reported";
    let Some(lab) = Lab::up_alone(promise, "abrupt", &["-f", "examples/"]) else { return };
    block_on(async {
        let client = lab.client().await;
        let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
        let abrupt = json!({"spec": {"template": {"spec": {"containers": [{"name": "echo", "image": "echo-abrupt"}]}}}});
        deployments
            .patch("echo-hostname", &PatchParams::default(), &Patch::Strategic(abrupt))
            .await
            .expect("changing the image");
        all_ready(&client).await;
        let loads = load(&lab, &targets(&client).await);
        disrupt(&client).await;
        let outcomes: Vec<Outcome> = loads.into_iter().map(Load::stop).collect();
        // How many fail is chance; that most don't, and that all are counted, is the promise.
        let failed = report(&outcomes);
        let opened: u64 = outcomes.iter().map(|o| o.attempts).sum();
        assert!(failed < opened / 10, "{failed} of {opened} failed");
        for outcome in outcomes {
            let answered: u64 = outcome.by_host.values().sum();
            assert_eq!(
                answered + outcome.failures,
                outcome.attempts,
                "{}: some are unaccounted for",
                outcome.what
            );
        }
    });
}

#[test]
fn forwarding_goes_on_when_the_agent_or_the_server_is_killed_and_what_was_acknowledged_is_there() {
    let promise = "forwarding goes on when the agent or the server is killed";
    let Some(lab) = Lab::up_alone(promise, "killed", &["-f", "examples/"]) else { return };
    block_on(async {
        let client = lab.client().await;
        all_ready(&client).await;
        let targets = targets(&client).await;
        let loads = load(&lab, &targets);
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let made = |name: &str| -> ConfigMap {
            serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v"}}))
                .expect("a ConfigMap")
        };
        for (n, victim) in ["node-1", "server", "node-2", "server"].into_iter().enumerate() {
            let name = format!("acknowledged-{n}");
            maps.create(&PostParams::default(), &made(&name)).await.expect("creating");
            let before = pid(&lab, victim);
            kill(&lab, before);
            until("the killed part to be started again", async || match pid_of(&lab, victim) {
                Some(pid) if pid != before => Ok(()),
                other => Err(format!("{victim}: {other:?}")),
            })
            .await;
            until("what was acknowledged", async || {
                maps.get(&name).await.map(drop).map_err(|e| e.to_string())
            })
            .await;
        }
        // All converges: what changes now still reaches the kernel, on every node.
        let pods = all_ready(&client).await;
        let gone = pods[0].metadata.name.clone().expect("a name");
        let api: Api<Pod> = Api::default_namespaced(client.clone());
        api.delete(&gone, &DeleteParams::default()).await.expect("deleting a pod");
        until("the deleted pod to be replaced", async || match api.get_opt(&gone).await {
            Ok(None) => Ok(()),
            _ => Err("still there".to_owned()),
        })
        .await;
        all_ready(&client).await;
        // An address moves to another node when its announcer is killed, which takes part of a second; the other
        // frontends are the kernel's alone and don't notice.
        let outcomes: Vec<Outcome> = loads.into_iter().map(Load::stop).collect();
        report(&outcomes);
        for outcome in outcomes {
            let announced = targets.load_balancers.iter().any(|ip| outcome.what.contains(&ip.to_string()));
            if announced {
                assert!(outcome.failures < outcome.attempts / 10, "{outcome:?}");
            } else {
                assert_eq!(outcome.failures, 0, "{outcome:?}");
            }
        }
    });
}

/// The process id, as the lab's own processes see it, of the verb that runs at a place.
fn pid_of(lab: &Lab, place: &str) -> Option<u32> {
    let verb = if place == "server" { "server" } else { "node" };
    let output = lab.run_at(place, &["sh", "-c", PROCESSES]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = lines.lines().filter_map(|line| {
        let (pid, command) = line.split_once(' ')?;
        let mut words = command.split(' ');
        words.next()?;
        let right =
            words.next() == Some(verb) && (verb == "server" || command.contains(&format!("--name {place} ")));
        right.then(|| pid.parse().ok()).flatten()
    });
    found.next()
}

/// Every process with its arguments: what `ps` prints, without needing `ps`.
const PROCESSES: &str = r#"for p in /proc/[0-9]*; do printf '%s ' "${p#/proc/}"; tr '\0' ' ' <$p/cmdline; echo; done 2>/dev/null"#;

fn pid(lab: &Lab, place: &str) -> u32 {
    pid_of(lab, place).unwrap_or_else(|| panic!("{place}: its process isn't there"))
}

fn kill(lab: &Lab, pid: u32) {
    let output = lab.run_at("client", &["sh", "-c", &format!("kill -9 {pid}")]);
    assert!(output.status.success(), "{}", text(&output));
}
