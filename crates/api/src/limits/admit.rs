//! What a LimitRange gives to a pod that says nothing, and what it refuses (plugin/pkg/admission/limitranger).

use serde_json::Value;

use crate::quantity::Quantity;
use crate::{quota, walk};

const NOTE: &str = "kubernetes.io/limit-ranger";

/// Fills in the requests and limits that containers leave out, and notes in an annotation what was set.
pub fn apply(range: &Value, pod: &mut Value) {
    let mut notes = Vec::new();
    for item in walk::list(range, "spec.limits").iter().filter(|item| walk::text(item, "type") == "Container")
    {
        for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
            for container in walk::list_mut(pod, &format!("spec.{list}")) {
                let name = walk::text(container, "name").to_owned();
                for (from, part, what) in
                    [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
                {
                    let mut set: Vec<String> = Vec::new();
                    for (resource, amount) in walk::map(item, from) {
                        let path = format!("resources.{part}");
                        if walk::map(container, &path).contains_key(resource) {
                            continue;
                        }
                        if let Some(map) = walk::map_mut(container, &path) {
                            map.insert(resource.clone(), amount.clone());
                            set.push(resource.clone());
                        }
                    }
                    if !set.is_empty() {
                        set.sort();
                        notes.push(format!("{} {what} for {word} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !notes.is_empty()
        && let Some(annotations) = walk::map_mut(pod, "metadata.annotations")
    {
        annotations.insert(NOTE.into(), format!("LimitRanger plugin set: {}", notes.join("; ")).into());
    }
}

/// Why a LimitRange refuses a new pod or claim: nothing, one text, or several in brackets.
pub fn refusal(range: &Value, plural: &str, object: &Value) -> Option<String> {
    let mut why = Vec::new();
    for item in walk::list(range, "spec.limits") {
        match (walk::text(item, "type"), plural) {
            ("Container", "pods") => {
                for list in ["containers", "initContainers"] {
                    for container in walk::list(object, &format!("spec.{list}")) {
                        let of = |part: &str, name: &str| {
                            walk::map(container, &format!("resources.{part}"))
                                .get(name)
                                .and_then(quota::amount)
                        };
                        check(&mut why, item, "Container", &of);
                    }
                }
            }
            ("Pod", "pods") => {
                let used = quota::usage("", "pods", object);
                check(&mut why, item, "Pod", &|part, name| used.get(&format!("{part}.{name}")).copied());
            }
            ("PersistentVolumeClaim", "persistentvolumeclaims") => {
                let of = |part: &str, name: &str| match part {
                    "requests" => {
                        walk::map(object, "spec.resources.requests").get(name).and_then(quota::amount)
                    }
                    _ => None,
                };
                for (name, least) in sorted(item, "min") {
                    least_of(&mut why, "PersistentVolumeClaim", name, least, of("requests", name), None);
                }
                for (name, most) in sorted(item, "max") {
                    let head = format!("maximum {name} usage per PersistentVolumeClaim is {most}");
                    match of("requests", name) {
                        None => why.push(format!("{head}.  No request is specified")),
                        Some(asked) if asked > most => why.push(format!("{head}, but request is {asked}")),
                        Some(_) => {}
                    }
                }
            }
            _ => {}
        }
    }
    match why.len() {
        0 => None,
        1 => why.pop(),
        _ => Some(format!("[{}]", why.join(", "))),
    }
}

/// Kubernetes goes through a map in any order; sorted, the same pod gets the same answer.
fn sorted<'a>(item: &'a Value, part: &str) -> Vec<(&'a str, Quantity)> {
    let all = walk::map(item, part).iter();
    let mut all: Vec<_> = all.filter_map(|(name, v)| Some((name.as_str(), quota::amount(v)?))).collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

fn least_of(
    why: &mut Vec<String>,
    kind: &str,
    name: &str,
    least: Quantity,
    request: Option<Quantity>,
    limit: Option<Quantity>,
) {
    let head = format!("minimum {name} usage per {kind} is {least}");
    match (request, limit) {
        (None, _) => why.push(format!("{head}.  No request is specified")),
        (Some(request), _) if request < least => why.push(format!("{head}, but request is {request}")),
        (_, Some(limit)) if limit < least => why.push(format!("{head}, but limit is {limit}")),
        _ => {}
    }
}

fn check(why: &mut Vec<String>, item: &Value, kind: &str, of: &dyn Fn(&str, &str) -> Option<Quantity>) {
    for (name, least) in sorted(item, "min") {
        least_of(why, kind, name, least, of("requests", name), of("limits", name));
    }
    for (name, most) in sorted(item, "max") {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match (of("limits", name), of("requests", name)) {
            (None, _) => why.push(format!("{head}.  No limit is specified")),
            (Some(limit), _) if limit > most => why.push(format!("{head}, but limit is {limit}")),
            (_, Some(request)) if request > most => why.push(format!("{head}, but request is {request}")),
            _ => {}
        }
    }
    for (name, most) in sorted(item, "maxLimitRequestRatio") {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        let some = |amount: Option<Quantity>| amount.filter(|amount| !amount.is_zero());
        match (some(of("requests", name)), some(of("limits", name))) {
            (None, _) => why.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => why.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.ratio(request);
                if ratio > most.ratio(Quantity::whole(1)) {
                    why.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(item: Value) -> Value {
        json!({"metadata": {"name": "r"}, "spec": {"limits": [item]}})
    }

    #[test]
    fn a_container_that_says_nothing_gets_the_defaults_and_a_note() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "1", "memory": "1Gi"}}),
        );
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "500m"}}}]}});
        apply(&range, &mut pod);
        let of = |i: usize| pod["spec"]["containers"][i]["resources"].clone();
        assert_eq!(of(0), json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}));
        assert_eq!(of(1), json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "2"}}));
        assert_eq!(
            crate::meta::annotation(&pod, NOTE),
            Some(
                "LimitRanger plugin set: cpu, memory request for container a; cpu limit for container a; memory request \
                  for container b; cpu limit for container b"
            )
        );
    }

    #[test]
    fn what_is_too_little_or_too_much_is_refused() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "3"}}}]}});
        let refused = |item: Value| refusal(&range(item), "pods", &pod);
        assert_eq!(
            refused(json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "2", "memory": "1Gi"}})),
            Some("[minimum cpu usage per Container is 100m, but request is 50m, maximum cpu usage per Container is 2, but \
                  limit is 3, maximum memory usage per Container is 1Gi.  No limit is specified]"
                .into())
        );
        assert_eq!(
            refused(json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "4"}})),
            Some("cpu max limit to request ratio per Pod is 4, but provided ratio is 60.000000".into())
        );
        assert_eq!(refused(json!({"type": "Container", "max": {"cpu": "4"}})), None);
    }
}
