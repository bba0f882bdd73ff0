//! `explain` and `trace` name the cause: a corpus of faults as users make them, on one lab, of which they are told nothing.

use std::process::{Command, Output};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::harness::{Lab, PORTOLAN, block_on, text, until};
use crate::map::root;

mod faults; // the corpus

/// Something that a user does.
#[derive(Clone, Debug)]
pub enum Step {
    /// `kubectl create -f`.
    Create(Value),
    /// `kubectl patch KIND NAME --type=merge -p`.
    Patch(&'static str, &'static str, Value),
    /// `kubectl patch … --subresource=status`.
    PatchStatus(&'static str, &'static str, Value),
    /// `kubectl delete KIND NAME`.
    Delete(&'static str, &'static str),
    /// A command on a machine of the lab.
    Run(&'static str, String),
    /// Signals what `portolan node` runs there.
    Signal(&'static str, &'static str),
}

/// A question to explain.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The machine to ask on; with the kubeconfig from outside of the lab if none.
    pub on: Option<&'static str>,
    /// What is asked; `{…}` stands for what the Service was given.
    pub of: String,
}

/// A fault, how it is made, and how it is healed.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What it is, and the name of its namespace.
    pub name: &'static str,
    /// The cause to be named first.
    pub reason: &'static str,
    /// Words that the cause's text must have.
    pub says: &'static str,
    /// What is there before.
    pub given: Vec<Value>,
    pub inject: Vec<Step>,
    pub ask: Ask,
    pub heal: Vec<Step>,
    /// What is asked after healing, if the question itself was the fault.
    pub then: Option<Ask>,
}

fn resource(kind: &str) -> ApiResource {
    match kind {
        "Deployment" => ApiResource::erase::<Deployment>(&()),
        "Service" => ApiResource::erase::<Service>(&()),
        "Pod" => ApiResource::erase::<Pod>(&()),
        "EndpointSlice" => ApiResource::erase::<EndpointSlice>(&()),
        other => panic!("no such kind in the corpus: {other}"),
    }
}

struct World<'l> {
    lab: &'l Lab,
    client: kube::Client,
    kubeconfig: String,
}

impl World<'_> {
    fn api(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(kind))
    }

    async fn step(&self, namespace: &str, step: &Step) {
        let failed = |error: kube::Error| panic!("{namespace}: {step:?}: {error}");
        match step {
            Step::Create(value) => self.create(namespace, value).await,
            Step::Patch(kind, name, patch) => {
                let api = self.api(kind, namespace);
                let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
                drop(patched.unwrap_or_else(failed));
            }
            Step::PatchStatus(kind, name, patch) => {
                let api = self.api(kind, namespace);
                let patched = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
                drop(patched.unwrap_or_else(failed));
            }
            Step::Delete(kind, name) => {
                drop(
                    self.api(kind, namespace)
                        .delete(name, &DeleteParams::default())
                        .await
                        .unwrap_or_else(|e| panic!("{e}")),
                );
            }
            Step::Run(place, command) => {
                let command = self.filled(namespace, command).await;
                let output = self.lab.run_at(place, &["sh", "-c", &command]);
                assert!(output.status.success(), "{namespace}: {command}: {}", text(&output));
            }
            Step::Signal(node, signal) => {
                let find = format!(
                    "for p in /proc/[0-9]*; do if tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q 'nod[e] --server .* --name {node} '; \
                     then kill -{signal} ${{p#/proc/}}; exit; fi; done; exit 1"
                );
                let output = self.lab.run_at("client", &["sh", "-c", &find]);
                assert!(output.status.success(), "{namespace}: kill -{signal} {node}: {}", text(&output));
            }
        }
    }

    async fn create(&self, namespace: &str, value: &Value) {
        let kind = value["kind"].as_str().expect("a kind");
        let object: DynamicObject = serde_json::from_value(value.clone()).expect("an object");
        let created = self.api(kind, namespace).create(&PostParams::default(), &object).await;
        drop(created.unwrap_or_else(|e| panic!("{namespace}: {value}: {e}")));
    }

    /// A text with what the Service `web` and its pods were given in the place of `{…}`.
    async fn filled(&self, namespace: &str, text: &str) -> String {
        let mut filled = text.replace("{ns}", namespace);
        if filled.contains('{') {
            let web = until("an address for web", async || {
                let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
                let web = serde_json::to_value(services.get("web").await.map_err(|e| e.to_string())?)
                    .expect("JSON");
                for (mark, pointer) in [
                    ("{clusterip}", "/spec/clusterIPs/0"),
                    ("{nodeport}", "/spec/ports/0/nodePort"),
                    ("{lb4}", "/status/loadBalancer/ingress/0/ip"),
                    ("{lb6}", "/status/loadBalancer/ingress/1/ip"),
                ] {
                    if text.contains(mark) && web.pointer(pointer).is_none() {
                        return Err(format!("{mark} of {web}"));
                    }
                }
                Ok(web)
            })
            .await;
            for (mark, pointer) in [
                ("{clusterip}", "/spec/clusterIPs/0"),
                ("{nodeport}", "/spec/ports/0/nodePort"),
                ("{lb4}", "/status/loadBalancer/ingress/0/ip"),
                ("{lb6}", "/status/loadBalancer/ingress/1/ip"),
            ] {
                let value =
                    web.pointer(pointer).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
                filled = filled.replace(mark, &value.unwrap_or_default());
            }
        }
        filled
    }

    /// Asks, and gives the answer as JSON with the exit status.
    async fn ask(&self, namespace: &str, ask: &Ask) -> (Value, i32) {
        let of = self.filled(namespace, &ask.of).await;
        let mut command = match ask.on {
            Some(place) => {
                let mut command = self.lab.at(place);
                command.arg(PORTOLAN);
                command
            }
            None => Command::new(PORTOLAN),
        };
        command.arg("explain").args(["-o", "json", "-n", namespace]);
        if ask.on.is_none() {
            command.args(["--kubeconfig", &self.kubeconfig]);
        }
        command.args(of.split_whitespace());
        let output = tokio::task::spawn_blocking(move || command.output().expect("running portolan explain"))
            .await
            .expect("a thread");
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (answer, output.status.code().unwrap_or(-1))
    }

    async fn answers(&self, namespace: &str, ask: &Ask, when: &str) {
        until(&format!("{namespace}: {when}: `{}` answers", ask.of), async || {
            let (answer, code) = self.ask(namespace, ask).await;
            if code == 0 { Ok(()) } else { Err(format!("{code}: {}", causes(&answer))) }
        })
        .await;
    }

    async fn try_fault(&self, fault: &Fault) -> Result<(), String> {
        let namespace = fault.name;
        let object: Namespace =
            serde_json::from_value(json!({"metadata": {"name": namespace}})).expect("JSON");
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.create(&PostParams::default(), &object).await.expect("a namespace");
        for value in &fault.given {
            self.create(namespace, value).await;
        }
        let after = fault.then.as_ref().unwrap_or(&fault.ask);
        // What was given must answer before, or the fault proves nothing; some are born with it.
        if !fault.inject.is_empty() {
            self.answers(namespace, after, "before the fault").await;
        }
        for step in &fault.inject {
            self.step(namespace, step).await;
        }
        let began = std::time::Instant::now();
        let mut before = std::collections::BTreeSet::new();
        let named = loop {
            let (answer, code) = self.ask(namespace, &fault.ask).await;
            let first = &answer["causes"][0];
            let right = code == 1
                && first["reason"] == fault.reason
                && first["text"].as_str().is_some_and(|t| t.contains(fault.says))
                && ["object", "field"].iter().all(|k| first[k].as_str().is_some_and(|t| !t.is_empty()));
            if right {
                // While what was done has not taken effect yet, something else may be the first cause.
                if !before.is_empty() {
                    println!("{namespace}: {} after {before:?}", fault.reason);
                }
                break Ok(());
            }
            if code == 1 {
                before.insert(first["reason"].as_str().unwrap_or_default().to_owned());
            }
            if began.elapsed() > std::time::Duration::from_secs(25) {
                let said =
                    format!("expected {} ({}), got {code}: {}", fault.reason, fault.says, causes(&answer));
                break Err(format!("{namespace}: {said}"));
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        };
        for step in &fault.heal {
            self.step(namespace, step).await;
        }
        if named.is_ok() {
            self.answers(namespace, after, "after healing").await;
        }
        namespaces.delete(namespace, &DeleteParams::default()).await.expect("deleting the namespace");
        named
    }
}

fn causes(answer: &Value) -> String {
    let all = answer["causes"].as_array().cloned().unwrap_or_default();
    let all: Vec<String> = all.iter().map(|c| format!("{}: {}", c["reason"], c["text"])).collect();
    all.join(" | ")
}

#[test]
fn the_first_cause_that_is_named_is_the_fault_and_none_is_named_after_healing() {
    let promise = "the first cause that is named is the fault";
    // Four addresses of each family: few enough to be used up.
    let more = ["--allow-host-image", "--pool", "10.80.0.200-10.80.0.203,fd00:80::200-fd00:80::203"];
    let Some(lab) = Lab::up_alone(promise, "explain", &more) else { return };
    block_on(async {
        let kubeconfig = lab.kubeconfig().display().to_string();
        let world = World { lab: &lab, client: lab.client().await, kubeconfig };
        let only = std::env::var("FAULT").ok();
        let wanted = |fault: &Fault| only.as_ref().is_none_or(|only| fault.name.contains(only.as_str()));
        let began = std::time::Instant::now();
        let mut failed = Vec::new();
        let mut tried = 0;
        // Each has a namespace of its own; those that change what all share are tried one by one.
        let apart: Vec<Fault> = faults::of_objects().into_iter().filter(&wanted).collect();
        for some in apart.chunks(6) {
            let all = some.iter().map(|fault| world.try_fault(fault));
            for result in futures_util::future::join_all(all).await {
                tried += 1;
                failed.extend(result.inspect_err(|e| println!("{e}")).err());
            }
        }
        let tools = ["nft", "ip", "conntrack"].iter().find(|t| {
            world.lab.run_at("node-1", &["sh", "-c", &format!("command -v {t}")]).status.code() != Some(0)
        });
        let mut together = faults::of_the_pool();
        match tools {
            None => together.extend(faults::of_the_kernel()),
            Some(missing) => portolan_sys::trial::skipped(
                "faults in the kernel are named",
                &format!("no program {missing}"),
            ),
        }
        for fault in together.iter().filter(|f| wanted(f)) {
            tried += 1;
            failed.extend(world.try_fault(fault).await.inspect_err(|e| println!("{e}")).err());
        }
        println!(
            "{} of {tried} faults named first, in {:.1} s",
            tried - failed.len(),
            began.elapsed().as_secs_f64()
        );
        assert!(failed.is_empty(), "\n{}", failed.join("\n"));
        assert!(only.is_some() || tools.is_some() || tried >= 40, "only {tried} faults");
    });
}

fn trace(arguments: &[&str]) -> Output {
    Command::new(PORTOLAN)
        .arg("trace")
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("running portolan trace")
}

#[test]
fn manifests_are_traced_without_a_cluster() {
    let of = |more: &[&str]| trace(&[&["-f", "examples/"], more].concat());
    let outside = of(&["--from", "outside", "--to", "service/hostname-service", "--port", "8080"]);
    let said = text(&outside);
    assert_eq!(outside.status.code(), Some(0), "{said}");
    for expected in [
        "192.0.2.11:30163",
        "spec.externalTrafficPolicy",
        "one of 3 backends",
        "pod default/echo-hostname-0",
        "stand in",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    for service in ["hostname-service", "hostname-cluster-ip", "service/hostname-load-balancer"] {
        assert_eq!(of(&[service]).status.code(), Some(0), "{}", text(&of(&[service])));
    }
    let refused =
        of(&["--from", "outside", "--to", "service/hostname-cluster-ip", "--port", "80", "-o", "json"]);
    let answer: Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    assert_eq!(
        (refused.status.code(), &answer["causes"][0]["reason"]),
        (Some(1), &json!("ClusterIpFromOutside"))
    );
}

#[test]
fn a_question_that_can_not_be_answered_names_what_is_missing() {
    for (arguments, says) in [
        (&["-f", "examples/", "--from", "moon", "--to", "service/x"][..], "pod:NAMESPACE/NAME"),
        (
            &["-f", "examples/", "--from", "node:nix", "--to", "service/hostname-service"][..],
            "there is no node nix; there are node-1, node-2",
        ),
        (&["-f", "examples/", "--from", "outside", "--to", "10.96.0.1"][..], "--port"),
        (&["-f", "nowhere/", "--from", "outside", "--to", "10.96.0.1:80"][..], "-f nowhere/"),
        (&["-f", "examples/", "pod/foo"][..], "not a Service"),
        (
            &["-f", "examples/", "--from", "node:node-1", "--node", "node-2", "--to", "10.96.0.1:80"][..],
            "is on node node-1",
        ),
        (&["-f", "examples/"][..], "name a Service, or a connection by --from and --to"),
    ] {
        let output = trace(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{arguments:?}: {}", text(&output));
    }
}
