//! Two servers that are to answer alike: the real one and ours.

use std::sync::Arc;

use portolan_server::{Config, Identity, NodePorts, Server};
use portolan_store::embedded::Embedded;
use serde_json::{Value, json};

use super::kinds::Spec;
use super::normal::{Memory, normal};
use super::peer::{Peer, Programs};
use super::step::{Doing, Outcome, Step, call};

/// What a cluster has to give to Services.
#[derive(Clone, Copy)]
pub struct Shape {
    pub cidrs: &'static [&'static str],
    pub ports: (u16, u16),
    /// Whether requests may name addresses and ports. Where few are left, the dice of the servers decide whether such a one is
    /// taken.
    pub by_name: bool,
}

/// Both families and plenty of everything.
pub const PLENTY: Shape =
    Shape { cidrs: &["10.96.0.0/16", "fd00:96::/112"], ports: (30000, 32767), by_name: true };
/// One family, and little of it.
pub const SCARCE: Shape = Shape { cidrs: &["10.96.0.0/28"], ports: (30000, 30004), by_name: false };

/// Namespaces that requests are sent to, beside one that isn't there.
pub const NAMESPACES: [&str; 2] = ["one", "two"];
/// One more, for what bounds others.
const BOUNDS: &str = "bounds";

pub struct World {
    pub shape: Shape,
    pub real: kube::Client,
    pub ours: kube::Client,
    _peer: Peer,
    _server: Arc<Server>,
    memories: (Memory, Memory),
}

/// What the servers answered, comparably.
pub struct Answers {
    pub real: Outcome,
    pub ours: Outcome,
}

impl World {
    pub async fn start(programs: &Programs, shape: Shape) -> World {
        let peer = Peer::start(programs, shape.cidrs, shape.ports).await;
        let cidrs = shape.cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect();
        let mut config = Config::new(cidrs);
        config.node_ports = NodePorts { first: shape.ports.0, last: shape.ports.1 };
        config.accounts_of_pods = true;
        config.advertise_addresses = vec!["192.0.2.10".parse().expect("an address")];
        let server = Server::open(config, Embedded::in_memory()).await.expect("the server opens");
        let ours = kube::Client::new(server.service(Identity::admin()), "default");
        let memories = (Memory::new(shape), Memory::new(shape));
        let world = World { shape, real: peer.client.clone(), ours, _peer: peer, _server: server, memories };
        for name in NAMESPACES.into_iter().chain([BOUNDS]) {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            // What a controller would make.
            let account =
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
            for client in [&world.real, &world.ours] {
                let accounts = format!("/api/v1/namespaces/{name}/serviceaccounts");
                for (path, object) in [("/api/v1/namespaces", &namespace), (&accounts, &account)] {
                    let media = "application/json";
                    let made = call(client, http::Method::POST, path, media, media, object).await;
                    assert_eq!(made.code, 201, "{}", made.body);
                }
            }
        }
        world
    }

    /// Asks both.
    pub async fn ask(&mut self, step: &Step) -> Answers {
        let (mut real, mut ours) = tokio::join!(step.send(&self.real), step.send(&self.ours));
        normal(step, &mut real, &mut self.memories.0);
        normal(step, &mut ours, &mut self.memories.1);
        Answers { real, ours }
    }

    /// Removes what a request was about, from both; `made` are the names that they have made up.
    pub async fn remove(&mut self, step: &Step, made: [&str; 2]) {
        for (client, made) in [self.real.clone(), self.ours.clone()].into_iter().zip(made) {
            let name = if step.name.is_empty() { made } else { step.name.as_str() };
            if name.is_empty() || step.kind.is_given(name) {
                continue;
            }
            let step = Step { name: name.to_owned(), ..step.clone() };
            let freed = json!({"metadata": {"finalizers": null}});
            let grace = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "propagationPolicy": "Background"});
            let free = Doing::Patch { way: "merge-patch", body: freed };
            // What can't be changed as it is, for lack of an address, lets go of its finalizers with its status.
            let parts = [("", free.clone()), ("status", free), ("", Doing::Delete(grace))];
            for (subresource, doing) in parts {
                if subresource.is_empty() || step.kind.status {
                    let step = Step { subresource, doing, query: Vec::new(), table: false, ..step.clone() };
                    step.send(&client).await;
                }
            }
        }
        self.memories.0.forget(&step.key());
        self.memories.1.forget(&step.key());
    }

    /// Removes every object of a kind that requests may have made.
    pub async fn clear(&mut self, kind: &'static Spec) {
        for client in [self.real.clone(), self.ours.clone()] {
            let namespaces = NAMESPACES.iter().map(|usual| kind.namespace(usual));
            let namespaces: std::collections::BTreeSet<&'static str> = namespaces.collect();
            for namespace in namespaces {
                let step = |name: &str, doing| Step {
                    kind,
                    namespace,
                    name: name.to_owned(),
                    subresource: "",
                    doing,
                    query: Vec::new(),
                    table: false,
                };
                let listed = step("", Doing::List).send(&client).await;
                let names = listed.body["items"].as_array().cloned().unwrap_or_default();
                for name in names.iter().filter_map(|item| item["metadata"]["name"].as_str()) {
                    if kind.is_given(name) {
                        continue;
                    }
                    let freed = json!({"metadata": {"finalizers": null}});
                    let grace = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "propagationPolicy": "Background"});
                    step(name, Doing::Patch { way: "merge-patch", body: freed }).send(&client).await;
                    let gone = step(name, Doing::Delete(grace)).send(&client).await;
                    assert!(matches!(gone.code, 200 | 404), "{} {name}: {}", kind.plural, gone.body);
                }
            }
        }
        self.memories = (Memory::new(self.shape), Memory::new(self.shape));
    }
}

/// One place where two answers differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub place: String,
    pub real: Value,
    pub ours: Value,
}

impl Answers {
    /// Where they differ.
    pub fn differences(&self) -> Vec<Difference> {
        let whole = |outcome: &Outcome| json!({"code": outcome.code, "media": outcome.media, "warnings": outcome.warnings, "body": outcome.body});
        let mut out = Vec::new();
        compare("", &whole(&self.real), &whole(&self.ours), &mut out);
        out
    }
}

/// Adds the places where two values differ.
pub fn compare(place: &str, real: &Value, ours: &Value, out: &mut Vec<Difference>) {
    match (real, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let null = Value::Null;
                let at = format!("{place}.{key}");
                compare(&at, a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{place}[{index}]"), a, b, out);
            }
        }
        (a, b) if a == b => {}
        _ => out.push(Difference { place: place.to_owned(), real: real.clone(), ours: ours.clone() }),
    }
}
