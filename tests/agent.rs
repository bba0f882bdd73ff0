//! The agent alone, in kube-proxy's place: with kube-proxy's file, on a machine that has no other.

use std::process::{Child, Stdio};

use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::harness::{Lab, PORTOLAN, block_on, text, until};

/// The machine: the API server's, since it has routes to the pods and forwards nothing by itself.
const MACHINE: &str = "server";

/// What a port answers to `GET path` at the machine.
fn get(lab: &Lab, address: &str, port: u16, path: &str) -> Result<String, String> {
    let script = "exec 3<>/dev/tcp/$0/$1 && printf 'GET %s HTTP/1.0\\r\\n\\r\\n' $2 >&3 && cat <&3";
    let output =
        lab.run_at(MACHINE, &["timeout", "3", "bash", "-c", script, address, &port.to_string(), path]);
    match output.status.success() && !output.stdout.is_empty() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(text(&output)),
    }
}

/// An agent that has begun, and the file with its process id.
fn begin(lab: &Lab, config: &str, pid: &str) -> Child {
    let mut command = lab.at(MACHINE);
    command.args(["sh", "-c", "echo $$ >$0; exec \"$@\"", pid, PORTOLAN, "agent", "--config", config]);
    command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("lab exec")
}

#[test]
fn the_agent_alone_takes_kube_proxys_file_and_its_forwarding_stays_until_cleanup() {
    let promise = "the agent alone takes kube-proxy's file and its forwarding stays until cleanup";
    let Some(lab) = Lab::up(promise, "agent", &["--nodes", "1", "-f", "examples"]) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let (kubeconfig, config, pid) = (path("kubeconfig"), path("config.conf"), path("pid"));
    let mut reach: Value =
        serde_json::from_slice(&std::fs::read(lab.kubeconfig()).expect("a kubeconfig")).expect("JSON");
    reach["clusters"][0]["cluster"]["server"] = json!("https://10.80.0.2:6443");
    std::fs::write(&kubeconfig, reach.to_string()).expect("written");
    let file = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\n\
         hostnameOverride: node-1\nclientConnection: {{kubeconfig: {kubeconfig}}}\nfeatureGates: {{A: true}}\n"
    );
    std::fs::write(&config, file).expect("written");

    block_on(async {
        let client = lab.client().await;
        let services: Api<Service> = Api::default_namespaced(client.clone());
        let service = services.get("hostname-cluster-ip").await.expect("the Service");
        let address = service.spec.and_then(|s| s.cluster_ip).expect("an address");
        let asked = |what| {
            let (lab, address) = (&lab, &address);
            until(what, async move || get(lab, address, 80, "/"))
        };

        let mut agent = begin(&lab, &config, &pid);
        let healthy = until("a healthy agent", async || {
            get(&lab, "127.0.0.1", 10256, "/healthz").and_then(|answer| {
                match answer.starts_with("HTTP/1.0 200 ") {
                    true if answer.contains("\"status\"") => Ok(answer),
                    _ => Err(answer),
                }
            })
        })
        .await;
        assert!(healthy.contains("\"nodeEligible\":true,\"healthy\":true"), "{healthy}");
        assert!(
            get(&lab, "127.0.0.1", 10249, "/proxyMode").expect("an answer").ends_with("\r\n\r\nnftables")
        );
        assert!(asked("an answer of the Service").await.contains("echo-hostname-"));
        let events: Api<Event> = Api::default_namespaced(client);
        until("the event of a start", async || {
            let list = events.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let starts = list.items.iter().filter(|e| e.reason.as_deref() == Some("Starting")).count();
            // The node's own agent has told of its start, and this one.
            if starts >= 2 { Ok(()) } else { Err(format!("{starts} starts")) }
        })
        .await;

        let told = lab.run_at(MACHINE, &["sh", "-c", "kill -TERM $(cat $0)", &pid]);
        assert!(told.status.success(), "{}", text(&told));
        assert!(agent.wait().expect("its end").success(), "a clean end");
        assert!(get(&lab, "127.0.0.1", 10256, "/livez").is_err(), "nobody answers for it");
        assert!(asked("an answer without an agent").await.contains("echo-hostname-"));

        let cleaned = lab.run_at(MACHINE, &[PORTOLAN, "agent", "--cleanup"]);
        assert!(cleaned.status.success(), "{}", text(&cleaned));
        let answer = get(&lab, &address, 80, "/");
        assert!(answer.is_err(), "the tables are gone, but it is answered: {answer:?}");
    });
}
