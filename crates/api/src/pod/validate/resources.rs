//! The rules of what containers and pods may use.

use serde_json::{Map, Value, json};

use super::{Around, Errors, has, label, quantity, subdomain};
use crate::fielderror::FieldError;
use crate::quantity::Quantity;
use crate::{meta, quota, walk};

/// What the names of memory in large pages begin with.
pub(crate) const HUGE: &str = "hugepages-";

/// Whether a resource may be wanted by a pod as a whole.
pub(crate) fn of_whole_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with(HUGE)
}

/// Whether a resource is Kubernetes' own.
fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether more of a resource may be promised than there is.
pub fn overcommitted(name: &str) -> bool {
    native(name) && !name.starts_with(HUGE)
}

/// Whether a resource is someone's own, and is counted like a quota's.
fn extended(name: &str) -> bool {
    !native(name)
        && !name.starts_with("requests.")
        && meta::qualified_faults(&format!("requests.{name}")).is_empty()
}

/// Whether a resource comes in whole numbers only.
pub fn whole_numbers(name: &str) -> bool {
    quota::WHOLE.contains(&name) || extended(name)
}

/// Whether a name without a domain is one that Kubernetes knows.
fn standard(name: &str) -> bool {
    const OTHERS: [&str; 11] = [
        "cpu",
        "memory",
        "ephemeral-storage",
        "storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "requests.storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
    ];
    OTHERS.contains(&name)
        || (!name.contains('/') && whole_numbers(name))
        || name.starts_with(HUGE)
        || name.starts_with("requests.hugepages-")
}

/// What is wrong with a resource's name at all.
fn name_faults(name: &str) -> Vec<String> {
    let mut faults = meta::qualified_faults(name);
    if faults.is_empty() && !name.contains('/') && !standard(name) {
        faults.push("must be a standard resource type or fully qualified".into());
    }
    faults
}

/// What is wrong with the name of what a container may use.
pub fn container_resource_faults(name: &str) -> Vec<String> {
    let mut faults = name_faults(name);
    if name.matches('/').count() == 0 {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with(HUGE) {
            faults.push("must be a standard resource for containers".into());
        }
    } else if !native(name) && !extended(name) {
        faults.push("doesn't follow extended resource name standard".into());
    }
    faults
}

fn of_container_name(errors: &mut Errors, path: &str, name: &str) {
    errors.extend(meta::findings(path, name, container_resource_faults(name)));
}

const OF_PODS: [&str; 3] = ["cpu", "hugepages-", "memory"];

fn of_pod_name(errors: &mut Errors, path: &str, name: &str) {
    let faults = name_faults(name);
    if !faults.is_empty() {
        errors.extend(meta::findings(path, name, faults));
    } else if !of_whole_pods(name) {
        errors.push(FieldError::not_supported(path, name, &OF_PODS));
    }
}

/// What is wrong with an amount of a resource.
fn amount(errors: &mut Errors, name: &str, value: &Value, path: &str) {
    let quantity = quantity(value);
    if quantity.is_negative() {
        let text = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(path, quantity.to_string(), text));
    }
    if whole_numbers(name) && !quantity.is_whole() {
        errors.push(FieldError::invalid(path, quantity.to_string(), "must be an integer"));
    }
}

/// Whether an amount is made of whole pages; says what is wrong if not.
fn pages(name: &str, value: Quantity) -> Option<String> {
    let size = Quantity::parse(name.strip_prefix(HUGE)?);
    let whole = size.is_some_and(|size| !size.is_zero() && !size.is_negative() && value.is_multiple_of(size));
    (!whole).then(|| format!("{value} is not positive integer multiple of {name}"))
}

type NameRule = fn(&mut Errors, &str, &str);

fn wants(errors: &mut Errors, value: &Value, names: NameRule, claims: &[&str], at: &str) {
    let (limits, requests) = (walk::map(value, "limits"), walk::map(value, "requests"));
    let check = |errors: &mut Errors, name: &str, value: &Value, path: &str| {
        names(errors, path, name);
        amount(errors, name, value, path);
    };
    let page = |errors: &mut Errors, name: &str, value: &Value, path: &str| {
        if let Some(text) = pages(name, quantity(value)) {
            errors.push(FieldError::invalid(path, quantity(value).to_string(), text));
        }
    };
    for (name, value) in limits {
        let path = format!("{at}.limits[{name}]");
        check(errors, name, value, &path);
        page(errors, name, value, &path);
    }
    for (name, value) in requests {
        let path = format!("{at}.requests[{name}]");
        check(errors, name, value, &path);
        let request = quantity(value);
        match limits.get(name).map(quantity) {
            Some(limit) if request != limit && !overcommitted(name) => errors.push(FieldError::invalid(
                format!("{at}.requests"),
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            )),
            Some(limit) if request > limit => errors.push(FieldError::invalid(
                format!("{at}.requests"),
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            )),
            None if !overcommitted(name) => errors.push(FieldError::required(
                format!("{at}.limits"),
                "Limit must be set for non overcommitable resources",
            )),
            _ => {}
        }
        page(errors, name, value, &path);
    }
    let both = || limits.keys().chain(requests.keys());
    if both().any(|name| name.starts_with(HUGE)) && !both().any(|name| name == "cpu" || name == "memory") {
        errors.push(FieldError::forbidden(at, "HugePages require cpu or memory"));
    }
    claimed(errors, value, claims, &format!("{at}.claims"));
}

/// What a container wants and may use.
pub(super) fn of_container(errors: &mut Errors, value: &Value, claims: &[&str], at: &str) {
    wants(errors, value, of_container_name, claims, at);
}

/// What is wrong with what a pod costs beside its containers.
pub fn overhead(overhead: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    // Kubernetes checks it as limits, and names it so.
    wants(&mut errors, &json!({"limits": overhead}), of_container_name, &[], at);
    errors
}

fn claimed(errors: &mut Errors, value: &Value, claims: &[&str], at: &str) {
    let mut names: Vec<String> = Vec::new();
    for (i, claim) in walk::list(value, "claims").iter().enumerate() {
        let path = format!("{at}[{i}]");
        let (name, request) = (walk::text(claim, "name"), walk::text(claim, "request"));
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        if names.iter().any(|other| other == name) {
            errors.push(FieldError::duplicate(&path, name));
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                label(errors, &format!("{path}.request"), request);
                key = format!("{name}/{request}");
            }
            if names.contains(&key) {
                errors.push(FieldError::duplicate(&path, key.as_str()));
            } else if request.is_empty() {
                let parts =
                    names.iter().filter(|other| other.split_once('/').is_some_and(|(n, _)| n == name));
                parts.for_each(|_| errors.push(FieldError::duplicate(&path, name)));
            }
            names.push(key);
        }
        if !claims.contains(&name) {
            let mut known = claims.to_vec();
            known.sort_unstable();
            let mut error = FieldError::not_found(path, name);
            error.detail = match known.is_empty() {
                true => "must be one of the names in pod.spec.resourceClaims which is empty".into(),
                false => format!("must be one of the names in pod.spec.resourceClaims: {}", known.join(", ")),
            };
            errors.push(error);
        }
    }
}

/// Claims of devices.
pub(super) fn claims(errors: &mut Errors, spec: &Value, at: &str) {
    let mut names: Vec<&str> = Vec::new();
    for (i, claim) in walk::list(spec, "resourceClaims").iter().enumerate() {
        let path = format!("{at}[{i}]");
        let name = walk::text(claim, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        } else {
            label(errors, &format!("{path}.name"), name);
            names.push(name);
        }
        let shown = || {
            json!({"Name": name, "ResourceClaimName": claim.get("resourceClaimName"),
                "ResourceClaimTemplateName": claim.get("resourceClaimTemplateName")})
        };
        match (has(claim, "resourceClaimName"), has(claim, "resourceClaimTemplateName")) {
            (true, true) => {
                let text =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(FieldError::invalid(&path, shown(), text));
            }
            (false, false) => {
                let text = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(FieldError::invalid(&path, shown(), text));
            }
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if has(claim, field) {
                subdomain(errors, &format!("{path}.{field}"), walk::text(claim, field));
            }
        }
    }
}

/// The sum of what containers want: those that run and those beside them, or the most of one that begins
/// (component-helpers `AggregateContainerRequests`).
pub(crate) fn aggregate(spec: &Value, part: &str) -> Map<String, Value> {
    let mut sum: Vec<(String, Quantity)> = Vec::new();
    let mut beside: Vec<(String, Quantity)> = Vec::new();
    let mut most: Vec<(String, Quantity)> = Vec::new();
    let add = |all: &mut Vec<(String, Quantity)>, name: &str, amount: Quantity| match all
        .iter_mut()
        .find(|(known, _)| known == name)
    {
        Some((_, sum)) => *sum = *sum + amount,
        None => all.push((name.to_owned(), amount)),
    };
    let max = |all: &mut Vec<(String, Quantity)>, name: &str, amount: Quantity| match all
        .iter_mut()
        .find(|(known, _)| known == name)
    {
        Some((_, most)) => *most = (*most).max(amount),
        None => all.push((name.to_owned(), amount)),
    };
    for container in walk::list(spec, "containers") {
        for (name, value) in walk::map(container, part) {
            add(&mut sum, name, quantity(value));
        }
    }
    for container in walk::list(spec, "initContainers") {
        let mut here: Vec<(String, Quantity)> = Vec::new();
        for (name, value) in walk::map(container, part) {
            add(&mut here, name, quantity(value));
        }
        if walk::text(container, "restartPolicy") == "Always" {
            for (name, amount) in &here {
                add(&mut sum, name, *amount);
                add(&mut beside, name, *amount);
            }
            here = beside.clone();
        } else {
            for (name, amount) in &beside {
                add(&mut here, name, *amount);
            }
        }
        for (name, amount) in here {
            max(&mut most, &name, amount);
        }
    }
    for (name, amount) in most {
        max(&mut sum, &name, amount);
    }
    sum.into_iter().map(|(name, amount)| (name, amount.to_string().into())).collect()
}

/// What a pod wants as a whole (KEP-2837).
pub(super) fn of_pod(errors: &mut Errors, spec: &Value, around: &Around<'_>, at: &str) {
    let Some(value) = walk::at(spec, "resources") else { return };
    let at = format!("{at}.resources");
    if around.os == Some("windows") {
        errors.push(FieldError::forbidden(at, "may not be set for a windows pod"));
        return;
    }
    if has(value, "claims") {
        let text = "claims may not be set for Resources at pod-level";
        errors.push(FieldError::forbidden(format!("{at}.claims"), text));
    }
    wants(errors, value, of_pod_name, &around.claims, &at);
    for (name, wanted) in aggregate(spec, "resources.requests") {
        let Some(request) = walk::map(value, "requests").get(&name).map(quantity) else { continue };
        let wanted = quantity(&wanted);
        if wanted > request {
            let text = format!("must be greater than or equal to aggregate container requests of {wanted}");
            errors.push(FieldError::invalid(format!("{at}.requests[{name}]"), request.to_string(), text));
        }
    }
    let limits = walk::map(value, "limits");
    for (name, wanted) in aggregate(spec, "resources.limits") {
        let Some(limit) = limits.get(&name).map(quantity).filter(|_| name.starts_with(HUGE)) else {
            continue;
        };
        let wanted = quantity(&wanted);
        if wanted > limit {
            let text = format!("must be greater than or equal to aggregate container limits of {wanted}");
            errors.push(FieldError::invalid(format!("{at}.limits[{name}]"), limit.to_string(), text));
        }
    }
    for (i, container) in walk::list(spec, "containers").iter().enumerate() {
        for (name, value) in walk::map(container, "resources.limits") {
            let Some(limit) = limits.get(name).map(quantity) else { continue };
            let own = quantity(value);
            if own > limit {
                let path = format!("{at}.containers[{i}][{name}].limits");
                let text = format!("must be less than or equal to pod limits of {limit}");
                errors.push(FieldError::invalid(path, own.to_string(), text));
            }
        }
    }
}
