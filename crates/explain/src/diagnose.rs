//! The causes of a situation, the first one first. Pure.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::ResourceExt;
use portolan_plan::finding::{Finding, Object};
use portolan_plan::model::Family;
use portolan_plan::service::{Choice, Rule, choice_of};
use portolan_plan::trace::Outcome;
use portolan_plan::view::{EndpointsView, PortView, ServiceView};

use crate::cause::{Cause, Kind};
use crate::near;
use crate::objects::*;
use crate::probe::{Outcome as Came, Probe};
use crate::question::About;
use crate::situation::{Picture, Situation};

mod balancer; // why a Service has no address, or not this one
mod endpoints; // why nobody is there to answer
mod flow; // why a flow doesn't get to a backend
mod node; // why a node doesn't do what the plan says
mod pods; // why a pod isn't ready

pub(crate) use node::{concerned, no_way, reachable};

/// All that is wrong, and what is worth knowing, in the order of [`Kind`].
pub fn diagnose(s: &Situation<'_>) -> Vec<Cause> {
    let mut causes = Vec::new();
    match s.service {
        None => causes.extend(missing(s)),
        Some(service) => {
            causes.extend(no_address(s, service));
            if causes.is_empty() {
                match &s.path {
                    Some(path) => flow::causes(s, service, path, &mut causes),
                    None => whole(s, service, &mut causes),
                }
                notes(s, service, &mut causes);
            }
        }
    }
    if s.evidence.kernel.is_some() {
        node::kernel(s, &mut causes);
    }
    node::object(s, &mut causes);
    probed(s, &mut causes);
    causes.sort_by_key(|c| c.kind);
    let mut seen = Vec::new();
    causes.retain(|c| {
        let new = !seen.contains(c);
        seen.push(c.clone());
        new
    });
    causes
}

/// There is no Service that the question could mean.
fn missing(s: &Situation<'_>) -> Option<Cause> {
    let objects = &s.evidence.objects;
    if let Some(name) = &s.name {
        let elsewhere = objects.services.iter().find(|o| o.name_any() == *name.name);
        let same_namespace =
            || objects.services.iter().filter(|o| o.namespace().as_deref() == Some(&*name.namespace));
        let names: Vec<String> = same_namespace().map(|o| o.name_any()).collect();
        let near = near::nearest(&name.name, names.iter().map(String::as_str));
        let (text, remedy) = match (elsewhere, near) {
            (Some(other), _) => {
                let namespace = other.namespace().unwrap_or_default();
                (
                    format!("there is no Service of this name; namespace {namespace} has one"),
                    format!(
                        "ask for it there: -n {namespace}; clients use the name {}.{namespace}",
                        name.name
                    ),
                )
            }
            (None, Some(near)) => {
                (format!("there is no Service of this name; there is {near}"), format!("use {near}"))
            }
            _ if (1..=8).contains(&names.len()) => (
                format!("there is no Service of this name; there are {}", names.join(", ")),
                format!("use one of these, or create it in namespace {}", name.namespace),
            ),
            _ => (
                "there is no Service of this name".to_owned(),
                match s.evidence.now {
                    Some(_) => format!(
                        "create it, or see which there are: kubectl get services -n {}",
                        name.namespace
                    ),
                    None => format!("add it to the manifests, in namespace {}", name.namespace),
                },
            ),
        };
        return Some(Cause::new(Kind::NoSuchService, s.object(), "metadata.name", text, remedy));
    }
    let path = s.path.as_ref()?;
    let (address, port) = (path.flow.destination, path.flow.port);
    if objects.pod_at(address).is_some() {
        return None; // straight to a pod: no Service has a part in it
    }
    let in_range = s.evidence.told.service_cidrs.iter().any(|r| r.contains(&address));
    let text = match in_range {
        true => format!("{address} is in the range of cluster IPs, but no Service has it"),
        false if objects.node_at(address).is_some() => {
            format!("{address} is a node's address, but no Service has {port} as its node port")
        }
        false => format!("no Service has {address}"),
    };
    let remedy = where_addresses_are(s);
    Some(Cause::new(Kind::NobodysAddress, format!("address {address}"), "services", text, remedy))
}

/// Where to see which addresses there are. Manifests have no time, and no cluster to ask.
fn where_addresses_are(s: &Situation<'_>) -> &'static str {
    match s.evidence.now {
        Some(_) => "see the addresses and ports that there are: kubectl get services -A",
        None => "use an address and port of a Service of the manifests",
    }
}

/// The Service has no address of its own, or none that is Portolan's.
fn no_address(s: &Situation<'_>, service: &Service) -> Option<Cause> {
    let spec = spec(service);
    let cause = |kind, field: &str, text: String, remedy: &str| {
        Some(Cause::new(kind, s.object(), field, text, remedy))
    };
    if let Some(proxy) = service.labels().get(PROXY_NAME) {
        return cause(
            Kind::OtherProxy,
            &format!("metadata.labels[{PROXY_NAME}]"),
            format!("the label gives this Service to the proxy {proxy:?}; Portolan leaves it alone"),
            "remove the label, or see to that proxy",
        );
    }
    if type_of(service) == "ExternalName" {
        let name = spec.external_name.as_deref().unwrap_or_default();
        return cause(
            Kind::ExternalName,
            "spec.type",
            format!(
                "ExternalName: an alias for {name} in the cluster's DNS; it has no address to connect to"
            ),
            "connect to that name, or use type ClusterIP",
        );
    }
    // Asked for as a whole, it is as good as its pods.
    if is_headless(service) && !is_whole(s) {
        return cause(
            Kind::Headless,
            "spec.clusterIP",
            HEADLESS.into(),
            "connect to the pods, or make the Service anew without clusterIP: None",
        );
    }
    if let Some(family) = s.lacks {
        let have: Vec<String> = cluster_ips(service).iter().map(|a| Family::of(*a).to_string()).collect();
        return cause(
            Kind::WrongFamily,
            "spec.ipFamilies",
            format!("the client asks for {family}; the Service has {}", have.join(" and ")),
            "set spec.ipFamilyPolicy: PreferDualStack, or connect by a family that it has",
        );
    }
    None
}

const HEADLESS: &str =
    "None: a headless Service has no address; its DNS name gives the addresses of the pods";

/// The causes for a headless Service: its pods and slices are all that there is of it.
fn headless(s: &Situation<'_>, service: &Service, causes: &mut Vec<Cause>) {
    let slices: Vec<_> = s.evidence.objects.slices_of(&name_of(service)).collect();
    // It may have no ports; its pods have addresses all the same.
    let none = [ServicePort::default()];
    let all = if ports(service).is_empty() { &none } else { ports(service) };
    for port in all {
        for family in families(service) {
            let named = port.name.as_deref().unwrap_or_default();
            let of_port = |p: &k8s_openapi::api::discovery::v1::EndpointPort| {
                p.name.as_deref().unwrap_or_default() == named
                    && p.protocol.as_deref().unwrap_or("TCP") == protocol(port)
            };
            let fitting = slices.iter().filter(|slice| slice.address_type == family.to_string());
            let fitting = fitting
                .filter(|slice| ports(service).is_empty() || slice.ports.iter().flatten().any(of_port));
            let mut endpoints = fitting.flat_map(|slice| slice.endpoints.iter().flatten());
            if !endpoints.any(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)) {
                causes.extend(endpoints::none(s, service, port, family));
            }
        }
    }
    causes.push(Cause::new(Kind::Finding, s.object(), "spec.clusterIP", HEADLESS, ""));
}

/// The causes for a Service as a whole: for a client that is let in, on any node.
fn whole(s: &Situation<'_>, service: &Service, causes: &mut Vec<Cause>) {
    if is_headless(service) {
        headless(s, service, causes);
        return;
    }
    let families = families(service);
    let mut silent = Vec::new();
    for port in ports(service).iter().filter(|p| u16::try_from(p.port).is_ok_and(|p| p != 0)) {
        for family in &families {
            let used = s
                .pictures
                .values()
                .any(|p| !choice(p, service, port, *family).is_none_or(|c| c.cluster.is_empty()));
            if !used && !s.pictures.is_empty() {
                silent.push((port, *family));
            }
        }
    }
    for (port, family) in silent {
        causes.extend(endpoints::none(s, service, port, family));
    }
    balancer::missing_address(s, service, causes);
    balancer::proxied(s, service, causes);
    for finding in s.pictures.values().flat_map(|p| &p.findings) {
        if finding.object == Object::Service(name_of(service)) {
            causes.push(of_finding(finding));
        }
    }
    let planned =
        |p: &Picture| p.plan.services.get(&name_of(service)).is_some_and(|s| !s.frontends.is_empty());
    if causes.iter().all(|c| c.kind.is_note()) && !s.pictures.is_empty() && !s.pictures.values().any(planned)
    {
        causes.push(match ports(service) {
            [] => Cause::new(
                Kind::UndefinedPort,
                s.object(),
                "spec.ports",
                "the Service has no ports, so there is nothing to connect to",
                "add a port to spec.ports",
            ),
            _ => Cause::new(
                Kind::WrongFamily,
                s.object(),
                "spec.clusterIPs",
                "the Service has no cluster IP to connect to",
                "set spec.clusterIP, or spec.ipFamilies to a family that the ranges of cluster IPs have",
            ),
        });
    }
    // A policy that leaves no node at all is a fault; one that leaves some is a choice.
    let mut without = Vec::new();
    for port in ports(service) {
        for (name, picture) in &s.pictures {
            for family in &families {
                if choice(picture, service, port, *family)
                    .is_some_and(|c| c.local.is_empty() && !c.cluster.is_empty())
                    && !without.contains(name)
                {
                    without.push(name.clone());
                }
            }
        }
    }
    let policies = [
        (
            Kind::InternalPolicyLocal,
            "spec.internalTrafficPolicy",
            spec(service).internal_traffic_policy.as_deref(),
        ),
        (
            Kind::ExternalPolicyLocal,
            "spec.externalTrafficPolicy",
            spec(service).external_traffic_policy.as_deref(),
        ),
    ];
    for (kind, field, _) in policies.into_iter().filter(|(.., policy)| *policy == Some("Local")) {
        if without.is_empty() {
            continue;
        }
        let who = if kind == Kind::InternalPolicyLocal {
            "clients on"
        } else {
            "clients from outside that come in by"
        };
        let all = without.len() == s.pictures.len();
        let nodes = shown(&without);
        causes.push(Cause::new(
            if all { kind } else { Kind::LocalOnSomeNodes },
            s.object(),
            field,
            format!("Local: {who} {nodes} are dropped, since no endpoint is ready there"),
            format!("run endpoints on these nodes, or set {}: Cluster", field.trim_start_matches("spec.")),
        ));
    }
}

/// Names, the first few of many.
fn shown(names: &[String]) -> String {
    const MOST: usize = 6;
    match names.len().checked_sub(MOST) {
        Some(more) if more > 0 => format!("{} and {more} more", names[..MOST].join(", ")),
        _ => names.join(", "),
    }
}

/// What a node chooses of a port's endpoints.
pub(crate) fn choice(
    picture: &Picture,
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> Option<Choice> {
    let name = name_of(service);
    let view = picture.views.services.get(&name)?;
    let port = view_of(view, port)?;
    let none = EndpointsView::default();
    let endpoints = picture.views.endpoints.get(&name).unwrap_or(&none);
    Some(choice_of(port, family, endpoints, &picture.views.node))
}

fn view_of<'v>(view: &'v ServiceView, port: &ServicePort) -> Option<&'v PortView> {
    let name = port.name.as_deref().unwrap_or_default();
    view.ports.iter().find(|p| *p.name == *name && p.protocol.to_string() == protocol(port))
}

/// The families of a Service.
pub(crate) fn families(service: &Service) -> Vec<Family> {
    let mut families: Vec<Family> = cluster_ips(service).into_iter().map(Family::of).collect();
    if is_headless(service) {
        let said = spec(service).ip_families.iter().flatten();
        families = said.map(|f| if f == "IPv6" { Family::V6 } else { Family::V4 }).collect();
        if families.is_empty() {
            families.push(Family::V4);
        }
    }
    families.dedup();
    families
}

/// A finding of planning as a cause: planning says what is wrong and the remedy in one text.
fn of_finding(finding: &Finding) -> Cause {
    let (text, remedy) = finding.text.rsplit_once("; ").unwrap_or((&finding.text, ""));
    let kind = match () {
        () if finding.text.contains("belongs to service")
            || finding.text.contains("node port of service") =>
        {
            Kind::FrontendClash
        }
        () if finding.field.starts_with("spec.ports")
            && (finding.text.contains("is not a port") || finding.text.contains("is not carried")) =>
        {
            Kind::UndefinedPort
        }
        () if finding.field.starts_with("spec.clusterIP") && finding.text.contains("is not an IP") => {
            Kind::AddressRefused
        }
        // An external address that is the node's own is captured, and worth knowing.
        () if finding.text.contains("now go to the Service") => Kind::Finding,
        () if ["spec.externalIPs", "status.loadBalancer"].iter().any(|f| finding.field.starts_with(f)) => {
            Kind::AddressRefused
        }
        () => Kind::Finding,
    };
    Cause::new(kind, finding.object.to_string(), finding.field.to_string(), text, remedy)
}

/// Worth knowing.
fn notes(s: &Situation<'_>, service: &Service, causes: &mut Vec<Cause>) {
    let object = s.object();
    let concerned: Vec<(&ServicePort, Family)> = match &s.path {
        Some(path) => flow::port_of(service, path).into_iter().collect(),
        None => {
            ports(service).iter().flat_map(|p| families(service).into_iter().map(move |f| (p, f))).collect()
        }
    };
    endpoints::notes(s, service, &concerned, causes);
    for (node, picture) in &s.pictures {
        for (port, family) in &concerned {
            let Some(choice) = choice(picture, service, port, *family) else { continue };
            // A flow that got the node's own endpoints is under that choice.
            let got = s.path.as_ref().map(|path| &path.verdict.outcome);
            let local = matches!(got, Some(Outcome::Forward { set, .. }) if *set != choice.cluster);
            let why = match if local { &choice.local_rule } else { &choice.cluster_rule } {
                Rule::ThisZone(zone) => format!("zone {zone}"),
                Rule::ThisNode => format!("node {node}"),
                Rule::Terminating => {
                    causes.push(Cause::new(
                        Kind::OnlyTerminating,
                        format!("endpointslices of {}", name_of(service)),
                        "endpoints[].conditions",
                        format!(
                            "no endpoint of port {} is ready; those that terminate still serve",
                            port.port
                        ),
                        "",
                    ));
                    continue;
                }
                _ => continue,
            };
            let ready = ready_count(picture, service, port, *family);
            if ready > choice.cluster.len() {
                causes.push(Cause::new(
                    Kind::HintsLeaveOut,
                    format!("endpointslices of {}", name_of(service)),
                    "endpoints[].hints",
                    format!(
                        "hints keep clients on {node} to {} of {ready} endpoints: those of {why}",
                        choice.cluster.len()
                    ),
                    "see spec.trafficDistribution of the Service",
                ));
            }
        }
    }
    if s.path.is_some() && spec(service).session_affinity.as_deref() == Some("ClientIP") {
        let text = "ClientIP: a client that has connected before stays at the endpoint it had then";
        causes.push(Cause::new(Kind::Affinity, object, "spec.sessionAffinity", text, ""));
    }
    let selecting = s.evidence.objects.policies.len();
    if selecting > 0 {
        causes.push(Cause::new(
            Kind::NetworkPolicies,
            format!("namespace {}", service.namespace().unwrap_or_default()),
            "networkpolicies",
            format!("there are {selecting} NetworkPolicies; who enforces them may drop this, which isn't examined here"),
            "kubectl describe networkpolicies",
        ));
    }
}

fn ready_count(picture: &Picture, service: &Service, port: &ServicePort, family: Family) -> usize {
    let Some(endpoints) = picture.views.endpoints.get(&name_of(service)) else { return 0 };
    let named = port.name.as_deref().unwrap_or_default();
    let slices = endpoints.slices.values().filter(|s| s.family == family);
    let slices = slices.filter(|s| s.ports.iter().any(|p| *p.name == *named));
    slices.flat_map(|s| &s.endpoints).filter(|e| e.ready).count()
}

/// What came of connecting to the backends, and to the Service itself.
fn probed(s: &Situation<'_>, causes: &mut Vec<Cause>) {
    let Some(probes) = &s.evidence.probes else { return };
    let undeclared = causes.iter().find(|c| c.kind == Kind::TargetPortUndeclared).map(|c| c.text.clone());
    let (through, direct): (Vec<&Probe>, Vec<&Probe>) = probes.iter().partition(|p| p.through);
    let seconds = crate::probe::PATIENCE.as_secs();
    for (kind, bad) in [
        (Kind::BackendRefuses, Came::Refused),
        (Kind::BackendSilent, Came::Unreachable),
        (Kind::BackendSilent, Came::Silent),
    ] {
        let failed: Vec<&&Probe> = direct.iter().filter(|p| p.outcome == bad).collect();
        let Some(first) = failed.first() else { continue };
        let to = first.to;
        let owner = s.evidence.objects.pod_at(to.ip()).map_or_else(
            || format!("endpoint {to}"),
            |pod| format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        );
        let of = format!("{} of {} backends", failed.len(), direct.len());
        let (text, remedy) = match kind {
            Kind::BackendRefuses => (
                format!("{of} refuse connections: nobody listens on {to}"),
                format!(
                    "set spec.ports[].targetPort to the port that the program listens on, or have it listen on {} (on all addresses, not only on 127.0.0.1)",
                    to.port()
                ),
            ),
            _ if bad == Came::Unreachable => (
                format!("{of} are unreachable from here, {to} first"),
                format!("see the way there: ip route get {}", to.ip()),
            ),
            _ => (
                format!("{of} don't answer at {to} within {seconds} s"),
                "see what drops it on the way: routes, other tables, the pod's own rules".to_owned(),
            ),
        };
        let text = match &undeclared {
            Some(hint) => format!("{text} ({hint})"),
            None => text,
        };
        causes.push(Cause::new(kind, owner, "spec.containers[].ports", text, remedy));
    }
    // A connection to the Service may be led to a backend that is bad: only if none is, it says something of the way.
    let all_well = direct.iter().all(|p| p.outcome == Came::Accepted);
    if let Some(lost) = through.iter().find(|p| all_well && p.outcome != Came::Accepted) {
        let how = match lost.outcome {
            Came::Refused => "is refused",
            Came::Unreachable => "finds no way there",
            _ => "isn't answered",
        };
        causes.push(Cause::new(
            Kind::Unexplained,
            s.object(),
            "spec.ports",
            format!("every backend answers here, and a connection to {} {how}; nothing that is looked at explains it", lost.to),
            "follow the packet: nft monitor trace, tcpdump",
        ));
    }
}

/// Whether a question is about a whole Service.
pub(crate) fn is_whole(s: &Situation<'_>) -> bool {
    matches!(s.evidence.question.about, About::Service(_))
}

#[cfg(test)]
mod tests;
