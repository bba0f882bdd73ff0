//! Draws requests: about half are such as the real server refuses.

use std::collections::{BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::aim;
use super::dice::Dice;
use super::kinds::{Fields, ODD_NAMES, Spec, meta_fields};
use super::pointer;
use super::step::{Doing, Edit, Outcome, Step, Version};
use super::world::Shape;

/// What is drawn from, and what is there by now.
pub struct Drawer {
    pub dice: Dice,
    shape: Shape,
    here: BTreeSet<String>,
    drawn: usize,
    /// Requests that belong together and are still to come, and how many such groups there were.
    aimed: VecDeque<Step>,
    aims: usize,
}

/// In so many of a hundred cases requests that belong together begin: each does what the dice alone seldom do.
const AIMED: usize = 5;

/// So many names of each kind in each namespace: requests are to meet objects that are there.
const NAMES: usize = 5;

impl Drawer {
    pub fn new(seed: u64, shape: Shape) -> Drawer {
        Drawer { dice: Dice(seed), shape, here: BTreeSet::new(), drawn: 0, aimed: VecDeque::new(), aims: 0 }
    }

    /// Takes note of what the real server answered.
    pub fn note(&mut self, step: &Step, real: &Outcome) {
        let dry = step.query.iter().any(|(key, _)| *key == "dryRun");
        if dry || !step.subresource.is_empty() {
            return;
        }
        match (&step.doing, real.code) {
            (Doing::Create(_) | Doing::Update { .. }, 201) => {
                self.here.insert(step.key());
            }
            (Doing::Delete(_), 200) if real.body["metadata"]["deletionTimestamp"].is_null() => {
                self.here.remove(&step.key());
            }
            (Doing::DeleteAll, 200) => self.here.clear(),
            (Doing::Get, 404) => {
                self.here.remove(&step.key());
            }
            _ => {}
        }
    }

    /// Takes note that an object is gone.
    pub fn forget(&mut self, step: &Step) {
        self.here.remove(&step.key());
    }

    /// The next request for a kind.
    pub fn step(&mut self, kind: &'static Spec) -> Step {
        self.drawn += 1;
        if kind.plural == "services" {
            if self.aimed.is_empty() && self.dice.percent(AIMED) {
                self.aimed = aim::steps(self.aims, kind, self.shape, &mut self.dice).into();
                self.aims += 1;
            }
            if let Some(step) = self.aimed.pop_front() {
                return step;
            }
        }
        let dice = &mut self.dice;
        let namespace = kind.namespace(dice.weigh(&[(60, "one"), (37, "two"), (2, "nowhere")]));
        // A namespace that is being deleted stays, since nothing empties it: others take its place.
        let era = if kind.plural == "namespaces" { self.drawn / 40 } else { 0 };
        let mut name = kind.name(dice.below(NAMES) + era * NAMES);
        if dice.percent(3) {
            name = dice.pick(&ODD_NAMES).to_owned();
        }
        let mut step = Step {
            kind,
            namespace,
            name,
            subresource: "",
            doing: Doing::Get,
            query: Vec::new(),
            table: false,
        };
        let here = self.here.contains(&step.key());
        let dice = &mut self.dice;
        let verb = if here {
            dice.weigh(&[
                (6, "create"),
                (30, "update"),
                (30, "patch"),
                (12, "status"),
                (9, "delete"),
                (3, "get"),
                (7, "list"),
                (1, "clear"),
            ])
        } else {
            dice.weigh(&[
                (74, "create"),
                (8, "update"),
                (3, "patch"),
                (1, "status"),
                (3, "delete"),
                (4, "get"),
                (7, "list"),
            ])
        };
        // A path without a name is another request.
        let verb = if step.name.is_empty() && !matches!(verb, "create" | "list" | "clear") {
            "create"
        } else {
            verb
        };
        match verb {
            "create" => step.doing = self.create(&mut step),
            "update" => step.doing = self.update(&step, (kind.fields)()),
            "patch" => step.doing = self.patch((kind.fields)()),
            "status" if kind.status => {
                step.subresource = "status";
                let fields = (kind.status_fields)();
                step.doing =
                    if self.dice.percent(50) { self.update(&step, fields) } else { self.patch(fields) };
            }
            "delete" => step.doing = self.delete(),
            "list" => {
                step.doing = Doing::List;
                step.query = self.selection(kind);
            }
            // The accounts of pods stay.
            "clear" if kind.plural != "serviceaccounts" && kind.namespaced => {
                step.doing = Doing::DeleteAll;
                if self.dice.percent(50) {
                    step.query = vec![("labelSelector", "app=web".into())];
                }
            }
            _ => {}
        }
        if !matches!(step.doing, Doing::List | Doing::Get | Doing::DeleteAll) {
            self.options(&mut step);
        }
        // Where the dice soon draw the same again, what a write has drawn must be seen.
        let rows = if self.shape.by_name { 3 } else { 0 };
        step.table =
            self.dice.percent(if matches!(step.doing, Doing::List | Doing::Get) { 40 } else { rows });
        step
    }

    fn options(&mut self, step: &mut Step) {
        let dice = &mut self.dice;
        if dice.percent(8) {
            step.query.push(("dryRun", if dice.percent(85) { "All" } else { "Some" }.into()));
        }
        if matches!(step.doing, Doing::Delete(_)) {
            return;
        }
        if dice.percent(20) {
            step.query.push((
                "fieldValidation",
                dice.weigh(&[(9, "Strict"), (5, "Warn"), (5, "Ignore"), (1, "Bogus")]).into(),
            ));
        }
        if dice.percent(12) {
            let long = "m".repeat(129);
            let manager = if dice.percent(90) { "tester" } else { dice.pick(&[long.as_str(), "bad\u{1}"]) };
            step.query.push(("fieldManager", manager.into()));
        }
    }

    /// Changes of the given fields and of metadata.
    fn edits(&mut self, fields: &Fields, most: usize) -> Vec<Edit> {
        let meta = meta_fields();
        let count = 1 + self.dice.below(most);
        let mut edits = Vec::new();
        while edits.len() < count {
            let from = if self.dice.percent(80) && !fields.is_empty() { fields } else { &meta };
            let mut left = self.dice.below(from.iter().map(|field| field.weight).sum());
            let mut chosen = &from[0];
            for field in from {
                chosen = field;
                if left < field.weight {
                    break;
                }
                left -= field.weight;
            }
            let value = self.dice.pick(&chosen.values);
            if !self.shape.by_name && names_something(&chosen.place, &value) {
                continue;
            }
            if self.dice.percent(12) {
                edits.push(Edit::Remove(chosen.place.clone()));
            } else {
                edits.push(Edit::Set(chosen.place.clone(), value));
            }
        }
        edits
    }

    fn fresh(&mut self, step: &Step) -> Value {
        let mut body = (step.kind.draw)(&mut self.dice, &step.name);
        if !self.shape.by_name && body["spec"]["clusterIP"] != "None" {
            pointer::remove(&mut body, "/spec/clusterIP");
        }
        body
    }

    fn create(&mut self, step: &mut Step) -> Doing {
        let mut body = self.fresh(step);
        let often = if step.kind.plural == "services" { 45 } else { 30 };
        if self.dice.percent(often) {
            let edits = self.edits(&(step.kind.fields)(), 2);
            edits.iter().for_each(|edit| edit.apply(&mut body));
        }
        // Addresses aren't made up, and namespaces stay.
        let named = matches!(step.kind.plural, "ipaddresses" | "namespaces");
        if !named && self.dice.percent(4) {
            pointer::remove(&mut body, "/metadata/name");
            let base = self.dice.pick(&["made-", "x", "Bad_", ""]);
            pointer::set(&mut body, "/metadata/generateName", base.into());
            step.name = String::new();
        }
        Doing::Create(body)
    }

    fn update(&mut self, step: &Step, fields: Fields) -> Doing {
        let fallback = self.fresh(step);
        let version = self.dice.weigh(&[(60, Version::Current), (35, Version::None), (5, Version::Stale)]);
        let edits = if self.dice.percent(65) { self.edits(&fields, 2) } else { Vec::new() };
        Doing::Update { edits, fallback, version }
    }

    fn patch(&mut self, fields: Fields) -> Doing {
        if self.dice.percent(3) {
            let body = self.dice.pick(&[json!("x"), json!([]), json!({}), json!(7)]);
            let way = self.dice.pick(&["merge-patch", "json-patch", "strategic-merge-patch", "bogus-patch"]);
            return Doing::Patch { way, body };
        }
        let edits = self.edits(&fields, 2);
        match self.dice.below(3) {
            0 => Doing::Patch { way: "merge-patch", body: merged(&edits) },
            1 => {
                let mut body = merged(&edits);
                if self.dice.percent(15) {
                    let (place, value) = self.dice.pick(&directives());
                    pointer::set(&mut body, place, value);
                }
                Doing::Patch { way: "strategic-merge-patch", body }
            }
            _ => {
                let mut body: Vec<Value> = edits.iter().map(|edit| self.operation(edit)).collect();
                if self.dice.percent(10) {
                    body.push(self.dice.pick(&[
                        json!({"op": "bogus", "path": "/metadata/labels"}),
                        json!({"op": "add", "value": 1}),
                        json!({"op": "add", "path": "metadata", "value": 1}),
                        json!({"op": "copy", "from": "/metadata/name", "path": "/metadata/labels"}),
                        json!({"op": "move", "from": "/bogus", "path": "/metadata/labels"}),
                        json!({"op": "test", "path": "/metadata/name", "value": "a1"}),
                        json!({"op": "remove", "path": ""}),
                        json!({"op": "replace", "path": "", "value": {}}),
                    ]));
                }
                Doing::Patch { way: "json-patch", body: body.into() }
            }
        }
    }

    fn operation(&mut self, edit: &Edit) -> Value {
        match edit {
            Edit::Remove(place) => json!({"op": "remove", "path": place}),
            Edit::Set(place, value) => {
                let op = self.dice.weigh(&[(60, "add"), (30, "replace"), (10, "test")]);
                json!({"op": op, "path": place, "value": value})
            }
        }
    }

    fn delete(&mut self) -> Doing {
        let dice = &mut self.dice;
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        let set = dice.weigh(&[
            (30, ("", 0)),
            (15, ("gracePeriodSeconds", 0)),
            (5, ("gracePeriodSeconds", 5)),
            (3, ("gracePeriodSeconds", -1)),
            (6, ("propagationPolicy", 0)),
            (6, ("propagationPolicy", 1)),
            (6, ("propagationPolicy", 2)),
            (2, ("propagationPolicy", 3)),
            (2, ("orphanDependents", 0)),
            (2, ("both", 0)),
            (3, ("uid", 0)),
            (3, ("version", 0)),
            (2, ("dryRun", 0)),
            (1, ("dryRun", 1)),
            (1, ("bogus", 0)),
        ]);
        match set {
            ("propagationPolicy", which) => {
                options["propagationPolicy"] =
                    ["Foreground", "Background", "Orphan", "Bogus"][which as usize].into();
            }
            ("orphanDependents", _) => options["orphanDependents"] = true.into(),
            ("both", _) => {
                options["orphanDependents"] = true.into();
                options["propagationPolicy"] = "Orphan".into();
            }
            ("uid", _) => options["preconditions"] = json!({"uid": "00000000-0000-0000-0000-000000000009"}),
            ("version", _) => options["preconditions"] = json!({"resourceVersion": "1"}),
            ("dryRun", which) => options["dryRun"] = json!([if which == 0 { "All" } else { "Bogus" }]),
            ("", _) => {}
            (key, value) => options[key] = value.into(),
        }
        Doing::Delete(options)
    }

    fn selection(&mut self, kind: &Spec) -> Vec<(&'static str, String)> {
        let dice = &mut self.dice;
        let mut query = Vec::new();
        if dice.percent(35) {
            query.push(("labelSelector", dice.pick(&LABELS).to_owned()));
        }
        if dice.percent(35) {
            let own = kind.selectors;
            let text = if dice.percent(50) && !own.is_empty() { dice.pick(own) } else { dice.pick(&FIELDS) };
            query.push(("fieldSelector", text.to_owned()));
        }
        if dice.percent(15) {
            query.push(("limit", dice.pick(&["1", "2", "500", "0", "-1", "x"]).to_owned()));
        }
        if dice.percent(12) {
            query.push(("resourceVersion", dice.pick(&["0", "", "x", "-1", "1"]).to_owned()));
        }
        if dice.percent(6) {
            query.push(("resourceVersionMatch", dice.pick(&["Exact", "NotOlderThan", "Bogus"]).to_owned()));
        }
        if dice.percent(2) {
            query.push(("continue", "bogus".to_owned()));
        }
        query
    }
}

/// Whether a value names an address or a port of the cluster's.
fn names_something(place: &str, value: &Value) -> bool {
    let address = matches!(place, "/spec/clusterIP" | "/spec/clusterIPs")
        && value != "None"
        && *value != json!(["None"]);
    address
        || place.contains("odePort") && !place.contains("allocate")
        || value.to_string().contains("nodePort")
}

fn merged(edits: &[Edit]) -> Value {
    let mut body = json!({});
    for edit in edits {
        match edit {
            Edit::Set(place, value) => pointer::set(&mut body, place, value.clone()),
            Edit::Remove(place) => pointer::set(&mut body, place, Value::Null),
        }
    }
    body
}

fn directives() -> Vec<(&'static str, Value)> {
    vec![
        ("/metadata/labels/$patch", json!("replace")),
        ("/metadata/labels/$patch", json!("delete")),
        ("/spec/$patch", json!("replace")),
        ("/spec/$retainKeys", json!(["type", "ports"])),
        ("/metadata/$deleteFromPrimitiveList~1finalizers", json!(["example.com/hold"])),
        ("/metadata/$setElementOrder~1finalizers", json!(["example.com/hold"])),
        ("/spec/$setElementOrder~1ports", json!([{"port": 80}, {"port": 53}])),
        ("/spec/ports", json!([{"port": 53, "$patch": "delete"}])),
        ("/spec/ports", json!([{"port": 80, "name": "web", "targetPort": 81}])),
        ("/spec/ports", json!([{"$patch": "replace"}, {"port": 90}])),
        ("/spec/ports", json!([{"name": "x"}])),
        ("/spec/ports", json!(["x"])),
        ("/spec/template/spec/containers", json!([{"name": "web", "image": "other"}])),
        ("/spec/containers", json!([{"name": "web", "image": "other"}])),
    ]
}

const LABELS: [&str; 17] = [
    "app=web",
    "app!=web",
    "app in (web,db)",
    "app notin (web)",
    "!app",
    "app",
    "app=web,tier=front",
    "app==web",
    "bad key!=1",
    "app in ()",
    "app in (web",
    "a>1",
    "a>x",
    "app=bad value!",
    "=",
    "app,,tier",
    "kubernetes.io/service-name=web",
];
const FIELDS: [&str; 9] = [
    "metadata.name=a1",
    "metadata.name!=a1",
    "metadata.namespace=one",
    "metadata.bogus=1",
    "metadata.name",
    "metadata.name==a1,metadata.namespace!=two",
    "=",
    "spec.bogus=1",
    "metadata.name=a\\,1",
];
