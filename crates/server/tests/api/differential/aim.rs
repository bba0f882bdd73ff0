//! Requests about Services that belong together, each group aimed at a rule that the dice alone seldom try.

use serde_json::{Value, json};

use super::dice::Dice;
use super::kinds::Spec;
use super::pointer;
use super::step::{Doing, Edit, Step, Version};
use super::world::Shape;

const NAME: &str = "aim";
/// So many addresses a scarce cluster has at most.
const FEW: usize = 16;

/// Makes requests about Services of names that no other requests have.
struct Aim<'a> {
    kind: &'static Spec,
    dice: &'a mut Dice,
    steps: Vec<Step>,
}

impl Aim<'_> {
    fn about(&mut self, name: &str, subresource: &'static str, doing: Doing) {
        self.steps.push(Step {
            kind: self.kind,
            namespace: "one",
            name: name.to_owned(),
            subresource,
            doing,
            query: Vec::new(),
            table: false,
        });
    }

    /// The last of them writes nothing.
    fn dry(&mut self) {
        self.steps.last_mut().expect("a request").query.push(("dryRun", "All".to_owned()));
    }

    fn gone(&mut self, name: &str) {
        self.about(name, "", Doing::Delete(json!({"kind": "DeleteOptions", "apiVersion": "v1"})));
    }

    /// A Service of this spec, and nothing of what was there.
    fn made(&mut self, mut spec: Value) {
        // Who names several names the first of them, too.
        if let Some(first) = spec["clusterIPs"].get(0).cloned() {
            spec["clusterIP"] = first;
        }
        self.gone(NAME);
        let body = service(NAME, spec);
        self.about(NAME, "", Doing::Create(body));
    }

    /// Some of its fields are changed, in one of the ways that there are.
    fn changed(&mut self, subresource: &'static str, fields: &[(&str, Value)]) {
        let doing = match self.dice.below(4) {
            0 => {
                let set = |(place, value): &(&str, Value)| Edit::Set((*place).to_owned(), value.clone());
                Doing::Update {
                    edits: fields.iter().map(set).collect(),
                    fallback: service(NAME, json!({"ports": [{"port": 80}]})),
                    version: Version::None,
                }
            }
            1 => Doing::Patch {
                way: "json-patch",
                body: fields
                    .iter()
                    .map(|(place, value)| match value {
                        Value::Null => json!({"op": "remove", "path": place}),
                        value => json!({"op": "add", "path": place, "value": value}),
                    })
                    .collect(),
            },
            other => {
                let mut body = json!({});
                for (place, value) in fields {
                    pointer::set(&mut body, place, value.clone());
                }
                Doing::Patch { way: ["merge-patch", "strategic-merge-patch"][other - 2], body }
            }
        };
        self.about(NAME, subresource, doing);
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// The requests of a group; they come in turns.
pub fn steps(turn: usize, kind: &'static Spec, shape: Shape, dice: &mut Dice) -> Vec<Step> {
    let mut aim = Aim { kind, dice, steps: Vec::new() };
    if shape.by_name {
        plenty(turn, &mut aim)
    } else {
        scarce(turn, &mut aim)
    }
    aim.gone(NAME);
    aim.steps
}

/// Where there is enough of everything.
fn plenty(turn: usize, aim: &mut Aim<'_>) {
    let ports = json!([{"port": 80}]);
    let balanced = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports});
    let ingress = "/status/loadBalancer/ingress";
    let both = json!(["10.96.0.60", "fd00:96::60"]);
    match turn % 22 {
        0 => {
            let address = aim.dice.pick(&["192.0.2.1", "bogus", "010.0.0.1"]);
            aim.made(json!({"type": "LoadBalancer", "loadBalancerIP": address, "ports": ports}));
        }
        1 => {
            let name = aim.dice.pick(&["Bad_Name", "EXAMPLE.com", "a..b", "-a.example.com", "."]);
            aim.made(json!({"type": "ExternalName", "externalName": name}));
        }
        2 => {
            aim.made(balanced);
            let error = aim.dice.pick(&["bad error", "example.com/Reason", "Reason", ""]);
            let port = json!({"port": 80, "protocol": "TCP", "error": error});
            aim.changed("status", &[(ingress, json!([{"ip": "203.0.113.7", "ports": [port]}]))]);
        }
        3 => {
            aim.made(balanced);
            let reason = aim.dice.pick(&["LoadBalancerMixedProtocolNotSupported", "bad reason", ""]);
            let condition = json!({"type": "LoadBalancerPortsError", "status": "True", "reason": reason, "message": "",
                "lastTransitionTime": "2024-01-01T00:00:00Z"});
            aim.changed("status", &[("/status/conditions", json!([condition]))]);
        }
        4 => {
            aim.made(balanced);
            aim.changed("", &[("/spec/healthCheckNodePort", json!(30021))]);
        }
        5 => {
            aim.made(json!({"ipFamilyPolicy": "RequireDualStack", "clusterIPs": both, "ports": ports}));
            aim.changed("", &[("/spec/clusterIPs", json!(["10.96.0.60"]))]);
        }
        6 => {
            aim.made(json!({"ipFamilyPolicy": "PreferDualStack", "clusterIPs": both, "ports": ports}));
            let now = [("/spec/clusterIPs", json!(["10.96.0.60"])), ("/spec/ipFamilies", json!(["IPv4"]))];
            aim.changed("", &now);
        }
        7 => {
            let policy = if aim.dice.percent(50) { json!("SingleStack") } else { Value::Null };
            aim.made(json!({"ipFamilyPolicy": policy, "clusterIPs": both, "ports": ports}));
        }
        8 => {
            aim.made(balanced);
            aim.changed("status", &[(ingress, json!([{"hostname": "1.2.3.4"}]))]);
            aim.changed("status", &[(ingress, json!([{"hostname": "lb.example.com", "ipMode": "VIP"}]))]);
            aim.changed("status", &[(ingress, json!([{"ip": "203.0.113.7", "ipMode": "Bogus"}]))]);
        }
        9 => {
            aim.made(balanced);
            aim.changed("status", &[(ingress, json!([{"ip": "203.0.113.7"}]))]);
            // What leaves the type loses it.
            let kind = aim.dice.pick(&["ClusterIP", "NodePort"]);
            aim.changed("", &[("/spec/type", json!(kind))]);
        }
        10 => {
            let address = aim.dice.pick(&["10.97.0.1", "10.96.255.255", "10.96.0.0", "fd00:97::1"]);
            aim.made(json!({"clusterIP": address, "ports": ports}));
            // Said in other words where nothing is taken.
            aim.made(json!({"clusterIP": address, "ports": ports}));
            aim.dry();
        }
        11 => {
            let kind = aim.dice.pick(&["LoadBalancer", "NodePort"]);
            aim.made(json!({"type": kind, "clusterIP": "None", "ports": ports}));
        }
        12 => {
            let seconds = aim.dice.pick(&[0, -1, 86401]);
            let config = json!({"clientIP": {"timeoutSeconds": seconds}});
            aim.made(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config, "ports": ports}));
        }
        13 => {
            aim.made(json!({"clusterIP": "None", "ports": ports}));
            // Put where nothing is, made with a status, and not made at all.
            aim.gone(NAME);
            let fallback = service(NAME, json!({"ports": ports, "sessionAffinity": "ClientIP"}));
            aim.about(NAME, "", Doing::Update { edits: Vec::new(), fallback, version: Version::None });
            aim.gone(NAME);
            let mut body = service(NAME, json!({"ports": ports, "sessionAffinity": "ClientIP"}));
            body["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
            aim.about(NAME, "", Doing::Create(body));
            aim.made(json!({"type": "NodePort", "ports": ports}));
            aim.dry();
        }
        14 => {
            aim.made(json!({"ports": ports}));
            let policy = aim.dice.pick(&["PreferDualStack", "RequireDualStack"]);
            aim.changed("", &[("/spec/ipFamilyPolicy", json!(policy))]);
            aim.changed("", &[("/spec/ipFamilyPolicy", json!("SingleStack"))]);
        }
        15 => {
            // The number is this Service's own, or another's.
            let mut with = balanced.clone();
            with["ports"][0]["nodePort"] = json!(30022);
            with["healthCheckNodePort"] = json!(30022);
            aim.made(with);
        }
        16 => {
            aim.made(json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/x", "ports": ports}));
            let class = aim.dice.pick(&[json!("example.com/y"), Value::Null]);
            aim.changed("", &[("/spec/loadBalancerClass", class)]);
        }
        17 => {
            for ips in [
                json!(["10.96.0.60", "fd00:96::60", "10.96.0.63"]),
                json!(["10.96.0.60", "10.96.0.63"]),
                json!(["None", "10.96.0.60"]),
            ] {
                aim.made(json!({"clusterIPs": ips, "ports": ports}));
            }
        }
        18 => {
            let ips = json!(["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1"]);
            aim.made(json!({"externalTrafficPolicy": "Bogus", "externalIPs": ips, "ports": ports}));
        }
        19 => {
            // An alias has no port of the nodes, whatever its ports say.
            let with = json!([{"port": 80, "nodePort": 30023}]);
            aim.made(json!({"type": "ExternalName", "externalName": "db.example.com", "ports": with}));
            let fields = [("/spec/type", json!("NodePort")), ("/spec/externalName", json!(""))];
            aim.changed("", &fields);
        }
        20 => {
            const OTHER: &str = "aim-other";
            let with = json!([{"port": 80, "nodePort": 30024}]);
            let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.64", "ports": with});
            aim.about(OTHER, "", Doing::Create(service(OTHER, spec)));
            aim.made(json!({"type": "NodePort", "ports": with}));
            aim.made(json!({"clusterIP": "10.96.0.64", "ports": ports}));
            aim.gone(OTHER);
        }
        _ => {
            aim.made(json!({"type": "ClusterIP", "clusterIP": "10.96.0.61", "ports": ports}));
            aim.changed("", &[("/spec/clusterIP", json!("")), ("/spec/clusterIPs", json!([]))]);
            aim.changed(
                "",
                &[("/spec/clusterIP", json!("10.96.0.62")), ("/spec/clusterIPs", json!(["10.96.0.62"]))],
            );
        }
    }
}

/// Where there is one family and little of it.
fn scarce(turn: usize, aim: &mut Aim<'_>) {
    let ports = json!([{"port": 80}]);
    match turn % 3 {
        0 => {
            let names: Vec<String> = (0..FEW).map(|at| format!("many-{at}")).collect();
            for name in &names {
                aim.about(name, "", Doing::Create(service(name, json!({"ports": ports}))));
            }
            names.iter().for_each(|name| aim.gone(name));
        }
        1 => {
            let families =
                aim.dice.pick(&[json!(["IPv6"]), json!(["IPv4", "IPv6"]), json!(["IPv6", "IPv4"])]);
            let policy = aim.dice.pick(&["SingleStack", "PreferDualStack"]);
            aim.made(json!({"ipFamilies": families, "ipFamilyPolicy": policy, "ports": ports}));
            aim.made(json!({"ipFamilies": ["IPv6"], "ports": ports}));
        }
        _ => aim.made(json!({"clusterIP": "fd00:96::20", "ports": ports})),
    }
}
