//! Allocation as a pure function: which addresses and ports a Service takes and gives back.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::change::{self, draws_node_ports};
use super::validate::validate_addresses;
use super::{is_headless, needs_cluster_ip, needs_health_port, needs_node_port, type_of};
use crate::fielderror::FieldError;
use crate::{ip, meta, walk};

mod pool;
use pool::Space;

/// What a cluster hands out to Services.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The ranges of ClusterIPs that the cluster was made with, the primary family first; at most one per family.
    pub cidrs: Vec<IpNet>,
    /// The ranges that give addresses now: those of the ServiceCIDRs that are ready.
    pub ready: Vec<IpNet>,
    /// The range of NodePorts, of which health check ports are drawn too.
    pub node_ports: RangeInclusive<u16>,
}

/// What one Service holds and no other may.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// An address.
    ClusterIp(IpAddr),
    /// A port on every node. One number may be shared by the protocols of one Service.
    NodePort {
        /// The number.
        port: u16,
        /// `TCP`, `UDP` or `SCTP`.
        protocol: String,
    },
    /// A port on every node that answers whether it has local endpoints (TCP).
    HealthCheckNodePort(u16),
}

impl Claim {
    /// Two claims of different Services clash exactly if their keys are equal. A NodePort's number is one Service's,
    /// whatever the protocol and the purpose.
    pub fn key(&self) -> String {
        match self {
            Self::ClusterIp(ip) => format!("clusterips/{ip}"),
            Self::NodePort { port, .. } | Self::HealthCheckNodePort(port) => format!("nodeports/{port}"),
        }
    }
}

/// What changes hands with a write: the store applies both with the object in one transaction. No two claims of one list
/// have the same [`Claim::key`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Allocation {
    /// Claims that the Service did not hold before.
    pub take: Vec<Claim>,
    /// Claims that the Service holds no longer.
    pub release: Vec<Claim>,
}

/// Why nothing was allocated.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The client asked for what it cannot have: 422.
    Invalid(Vec<FieldError>),
    /// Nothing is left to give: 500.
    Internal(String),
    /// What Kubernetes' allocator doesn't expect: 500 without a reason.
    Unexpected(String),
}

struct Draw<'a> {
    config: &'a ServiceConfig,
    dry_run: bool,
    taken: &'a dyn Fn(&Claim) -> bool,
    random: &'a mut dyn FnMut(u64) -> u64,
    /// What the stored Service holds: its own, whatever `taken` says.
    held: Vec<Claim>,
    /// The ports that this request has taken already.
    ports: Vec<i64>,
}

/// Fills in the addresses and ports of a Service that is prepared (`prepare_create`, `prepare_update`) and not yet
/// checked, and says which claims change hands. `taken` asks whether another Service holds a claim. `random` draws a number
/// below its argument. A dry run takes nothing.
pub fn allocate(
    new: &mut Value,
    old: Option<&Value>,
    config: &ServiceConfig,
    dry_run: bool,
    taken: &dyn Fn(&Claim) -> bool,
    random: &mut dyn FnMut(u64) -> u64,
) -> Result<Allocation, Refusal> {
    let held = old.map(claims).unwrap_or_default();
    let mut draw = Draw { config, dry_run, taken, random, held, ports: Vec::new() };
    families(new, old, config)?;
    if type_of(new) != "ExternalName" && !is_headless(new) {
        draw.addresses(new, old)?;
    }
    match old {
        _ if !needs_node_port(new) => {}
        None => draw.first_node_ports(new)?,
        Some(old) => draw.next_node_ports(new, old)?,
    }
    if needs_health_port(new) && !old.is_some_and(needs_health_port) {
        draw.health_port(new)?;
    }
    if let Some(old) = old {
        change::wipe(new, old);
    }
    if dry_run {
        return Ok(Allocation::default());
    }
    let now = claims(new);
    let missing = |of: &[Claim], from: &[Claim]| {
        let mut out: Vec<Claim> = Vec::new();
        for claim in of {
            if !from.iter().chain(&out).any(|c| c.key() == claim.key()) {
                out.push(claim.clone());
            }
        }
        out
    };
    Ok(Allocation { take: missing(&now, &draw.held), release: missing(&draw.held, &now) })
}

/// What a Service holds.
pub fn claims(service: &Value) -> Vec<Claim> {
    let mut out = Vec::new();
    if needs_cluster_ip(service) {
        for text in walk::list(service, "spec.clusterIPs").iter().filter_map(Value::as_str) {
            out.extend(ip::parse(text).map(Claim::ClusterIp));
        }
    }
    if needs_node_port(service) {
        for port in walk::list(service, "spec.ports") {
            if let Some(number) = port_number(port, "nodePort") {
                out.push(Claim::NodePort { port: number, protocol: walk::text(port, "protocol").to_owned() });
            }
        }
    }
    if needs_health_port(service)
        && let Some(number) = port_number(service, "spec.healthCheckNodePort")
    {
        out.push(Claim::HealthCheckNodePort(number));
    }
    out
}

/// What a deleted Service gives back: no two with the same key.
pub fn release(old: &Value) -> Vec<Claim> {
    let mut out: Vec<Claim> = Vec::new();
    for claim in claims(old) {
        if !out.iter().any(|c| c.key() == claim.key()) {
            out.push(claim);
        }
    }
    out
}

fn port_number(value: &Value, path: &str) -> Option<u16> {
    walk::int(value, path).and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

fn strings(service: &Value, path: &str) -> Vec<String> {
    walk::list(service, path).iter().filter_map(Value::as_str).map(String::from).collect()
}

/// Settles `ipFamilyPolicy` and `ipFamilies` (registry/core/service/storage, `initIPFamilyFields`).
fn families(new: &mut Value, old: Option<&Value>, config: &ServiceConfig) -> Result<(), Refusal> {
    const POLICY: &str = "spec.ipFamilyPolicy";
    const FAMILIES: &str = "spec.ipFamilies";
    const IPS: &str = "spec.clusterIPs";
    if type_of(new) == "ExternalName" {
        return Ok(());
    }
    // A cluster that becomes dual-stack (or ceases to be) changes no stored Service that only prefers it.
    if let Some(old) = old
        && type_of(old) == type_of(new)
        && [POLICY, FAMILIES, IPS].iter().all(|p| walk::at(old, p) == walk::at(new, p))
        && walk::text(new, POLICY) == "PreferDualStack"
    {
        return Ok(());
    }
    let open = walk::text(new, "spec.clusterIP") == "None" && walk::map(new, "spec.selector").is_empty();
    if walk::at(new, POLICY).is_none() {
        let before = old.map(|o| walk::text(o, POLICY)).filter(|p| !p.is_empty());
        let policy = before.unwrap_or(if open { "RequireDualStack" } else { "SingleStack" });
        walk::set(new, POLICY, policy);
    }
    let errors = validate_addresses(new, old);
    if !errors.is_empty() {
        return Err(Refusal::Invalid(errors));
    }
    let policy = walk::text(new, POLICY).to_owned();
    let single = policy == "SingleStack";
    let mut errors = Vec::new();
    let mut policy_error = |text: &str| errors.push(FieldError::invalid(POLICY, policy.as_str(), text));
    if let Some(old) = old.filter(|o| needs_cluster_ip(o)) {
        let lists = [
            (IPS, "must be 'SingleStack' to release the secondary cluster IP"),
            (FAMILIES, "must be 'SingleStack' to release the secondary IP family"),
        ];
        for (path, text) in lists {
            let (now, before) = (strings(new, path), strings(old, path));
            if single {
                // Asking for one family is enough to lose the second.
                if now.len() == 2 && now == before {
                    walk::set(new, path, json!([now[0]]));
                }
            } else if !now.is_empty() && now.len() < before.len() {
                policy_error(text);
            }
        }
    }
    if single {
        if strings(new, IPS).len() == 2 {
            policy_error(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
            );
        }
        if strings(new, FAMILIES).len() == 2 {
            policy_error(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            );
        }
    }
    let configured = |family: &str| config.cidrs.iter().any(|net| ip::family(net.addr()) == family);
    let mut families = strings(new, FAMILIES);
    for (i, text) in strings(new, IPS).iter().enumerate() {
        let Some(address) = ip::parse(text) else { break };
        let family = ip::family(address);
        if i >= families.len() {
            if configured(family) {
                families.push(family.into());
            } else {
                errors.push(FieldError::invalid(
                    format!("{IPS}[{i}]"),
                    walk::at(new, IPS).cloned().unwrap_or_default(),
                    format!("{family} is not configured on this cluster"),
                ));
            }
        }
    }
    let other = |family: &str| if family == "IPv4" { "IPv6" } else { "IPv4" }.to_owned();
    let primary = || config.cidrs.first().map_or("IPv4", |net| ip::family(net.addr())).to_owned();
    if errors.is_empty() && !open {
        if policy == "RequireDualStack" && config.cidrs.len() < 2 {
            errors.push(FieldError::invalid(
                POLICY,
                policy.as_str(),
                "this cluster is not configured for dual-stack services",
            ));
        }
        for (i, family) in families.iter().enumerate().filter(|(_, f)| !configured(f)) {
            errors.push(FieldError::invalid(
                format!("{FAMILIES}[{i}]"),
                family.as_str(),
                "not configured on this cluster",
            ));
        }
    }
    if !errors.is_empty() {
        return Err(Refusal::Invalid(errors));
    }
    if families.is_empty() {
        families.push(primary());
    }
    // Headless without a selector, the endpoints are somebody else's and may have any family.
    if !single && families.len() == 1 && (open || config.cidrs.len() == 2) {
        families.push(other(&families[0]));
    }
    walk::set(new, FAMILIES, families);
    Ok(())
}

impl Draw<'_> {
    fn held(&self, claim: &Claim) -> bool {
        self.held.iter().any(|c| c.key() == claim.key())
    }

    fn addresses(&mut self, new: &mut Value, old: Option<&Value>) -> Result<(), Refusal> {
        let before = match old {
            Some(old) if needs_cluster_ip(old) => strings(old, "spec.clusterIPs"),
            _ => Vec::new(),
        };
        // Headless stays headless; that it shall not is a finding of the checks.
        if before.first().is_some_and(|ip| ip == "None") {
            return Ok(());
        }
        let families = strings(new, "spec.ipFamilies");
        let mut ips = strings(new, "spec.clusterIPs");
        ips.truncate(families.len().max(1));
        // As Kubernetes shows it when it refuses: what is still to be drawn is empty.
        let mut wanted = ips.clone();
        wanted.resize(families.len().max(ips.len()), String::new());
        for (i, family) in families.iter().enumerate() {
            match ips.get(i) {
                // A changed address is refused by the checks, with a better text.
                Some(_) if i < before.len() => {}
                Some(text) => self.fixed_address(text, &wanted)?,
                None if i > ips.len() => {}
                None => {
                    let ip = self.any_address(family, meta::name(new))?;
                    ips.push(ip.to_string());
                }
            }
        }
        if let Some(first) = ips.first() {
            walk::set(new, "spec.clusterIP", first.as_str());
            walk::set(new, "spec.clusterIPs", ips);
        }
        Ok(())
    }

    fn fixed_address(&self, text: &str, wanted: &[String]) -> Result<(), Refusal> {
        let refuse = |why: String| {
            let detail = format!("failed to allocate IP {text}: {why}");
            Err(Refusal::Invalid(vec![FieldError::invalid("spec.clusterIPs", json!(wanted), detail)]))
        };
        let Some(address) = ip::parse(text) else { return Ok(()) };
        let of_family = self.config.cidrs.iter().find(|net| net.addr().is_ipv4() == address.is_ipv4());
        let Some(net) = of_family else { return refuse("allocator not ready".into()) };
        if self.dry_run && !self.config.ready.iter().any(|net| Space::of_addresses(*net).contains(&address)) {
            return refuse(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {net}"
            ));
        }
        // The network's own address and the broadcast address are in no range (`PrefixContainsIP`).
        if !self.config.ready.iter().any(|net| Space::of_addresses(*net).contains(&address)) {
            return refuse("the provided network does not match the current range".into());
        }
        let claim = Claim::ClusterIp(address);
        if !self.dry_run && !self.held(&claim) && (self.taken)(&claim) {
            return refuse("provided IP is already allocated".into());
        }
        Ok(())
    }

    fn any_address(&mut self, family: &str, name: &str) -> Result<IpAddr, Refusal> {
        let full = |why: &str| {
            Refusal::Internal(format!(
                "failed to allocate a serviceIP for Service {}: {why}",
                crate::fielderror::quote(name)
            ))
        };
        if !self.config.cidrs.iter().any(|net| ip::family(net.addr()) == family) {
            return Err(full("allocator not ready"));
        }
        let ranges = self.config.ready.iter().filter(|net| ip::family(net.addr()) == family);
        let taken = self.taken;
        let held = &self.held;
        let free = |ip: &IpAddr| {
            let claim = Claim::ClusterIp(*ip);
            !held.contains(&claim) && !taken(&claim)
        };
        for net in ranges {
            if self.dry_run {
                // Nothing is taken, so any one is as good; the base of the range belongs to nobody.
                return Ok(net.network());
            }
            if let Some(found) = Space::of_addresses(*net).pick(&free, self.random) {
                return Ok(found);
            }
        }
        Err(full("range is full"))
    }

    /// Takes the number that a client names (registry/core/service/portallocator/operation.go).
    fn take(&mut self, number: i64) -> Result<(), String> {
        let range = &self.config.node_ports;
        let port = u16::try_from(number).ok();
        // A dry run doesn't look at the range.
        if !self.dry_run && !port.is_some_and(|port| range.contains(&port)) {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            ));
        }
        let taken = |port| port_taken(port, &self.held, self.taken);
        if self.ports.contains(&number) || port.is_some_and(taken) {
            return Err("provided port is already allocated".into());
        }
        self.ports.push(number);
        Ok(())
    }

    /// Takes any number.
    fn draw_port(&mut self) -> Result<i64, &'static str> {
        let found = if self.dry_run {
            // Any is as good, since nothing is taken: the one behind the highest of this request, or behind 32768.
            self.ports.iter().max().map_or(32768, |last| *last) + 1
        } else {
            let (ports, held, taken) = (&self.ports, &self.held, self.taken);
            let free = |port: &u16| !ports.contains(&i64::from(*port)) && !port_taken(*port, held, taken);
            let space = Space::of_ports(self.config.node_ports.clone());
            i64::from(space.pick(&free, self.random).ok_or("range is full")?)
        };
        self.ports.push(found);
        Ok(found)
    }

    /// A new Service's ports (`initNodePorts`): one number for all protocols of a port.
    fn first_node_ports(&mut self, new: &mut Value) -> Result<(), Refusal> {
        let draws = draws_node_ports(new);
        let mut ports: Vec<Value> = walk::list(new, "spec.ports").to_vec();
        let mut settled: Vec<(i64, i64)> = Vec::new();
        for i in 0..ports.len() {
            let (port, own) = (port_of(&ports[i]), node_port(&ports[i]));
            if own == 0 && !draws {
                continue;
            }
            let known = settled.iter().find(|(of, _)| *of == port).map(|(_, number)| *number);
            let number = match known {
                Some(number) if own == 0 || own == number => number,
                Some(_) => {
                    self.take(own).map_err(|why| refused_port(i, own, why))?;
                    own
                }
                None => {
                    let wanted = ports.iter().filter(|p| port_of(p) == port).map(node_port).find(|n| *n != 0);
                    let number = match wanted {
                        Some(wanted) => {
                            self.take(wanted).map_err(|why| refused_port(i, wanted, why))?;
                            wanted
                        }
                        None => self.draw_port().map_err(no_port)?,
                    };
                    settled.push((port, number));
                    number
                }
            };
            walk::set(&mut ports[i], "nodePort", number);
        }
        if !ports.is_empty() {
            walk::set(new, "spec.ports", ports);
        }
        Ok(())
    }

    /// A changed Service's ports (`updateNodePorts`): what it has it keeps, also when the cluster's range is another by now.
    fn next_node_ports(&mut self, new: &mut Value, old: &Value) -> Result<(), Refusal> {
        let draws = draws_node_ports(new);
        // What an alias has in its ports it doesn't hold.
        let before: Vec<i64> = match needs_node_port(old) {
            true => walk::list(old, "spec.ports").iter().map(node_port).collect(),
            false => Vec::new(),
        };
        let mut ports: Vec<Value> = walk::list(new, "spec.ports").to_vec();
        let mut settled: Vec<(String, i64)> = Vec::new();
        for (i, port) in ports.iter_mut().enumerate() {
            let mut number = node_port(port);
            if number == 0 && !draws {
                continue;
            }
            if number == 0 {
                number = self.draw_port().map_err(no_port)?;
                walk::set(port, "nodePort", number);
            } else if !before.contains(&number) && !settled.iter().any(|(_, other)| *other == number) {
                self.take(number).map_err(|why| refused_port(i, number, why))?;
            }
            let this = (walk::text(port, "protocol").to_owned(), number);
            if settled.contains(&this) {
                return Err(Refusal::Unexpected(format!("duplicate nodePort: {{{} {}}}", this.0, this.1)));
            }
            settled.push(this);
        }
        if !ports.is_empty() {
            walk::set(new, "spec.ports", ports);
        }
        Ok(())
    }

    fn health_port(&mut self, new: &mut Value) -> Result<(), Refusal> {
        let wanted = walk::int(new, "spec.healthCheckNodePort").unwrap_or(0);
        if wanted != 0 {
            return self.take(wanted).map_err(|why| {
                Refusal::Internal(format!(
                    "failed to allocate requested HealthCheck NodePort {wanted}: {why}"
                ))
            });
        }
        let found = self.draw_port().map_err(|why| {
            Refusal::Internal(format!("failed to allocate a HealthCheck NodePort 0: {why}"))
        })?;
        walk::set(new, "spec.healthCheckNodePort", found);
        Ok(())
    }
}

/// Whether a Service holds this number, under whatever protocol. What this one gives back is free only after the write.
fn port_taken(port: u16, held: &[Claim], taken: &dyn Fn(&Claim) -> bool) -> bool {
    let is = |claim: Claim| held.iter().any(|c| c.key() == claim.key()) || taken(&claim);
    ["TCP", "UDP", "SCTP"].iter().any(|protocol| is(Claim::NodePort { port, protocol: (*protocol).into() }))
        || is(Claim::HealthCheckNodePort(port))
}

fn port_of(port: &Value) -> i64 {
    walk::int(port, "port").unwrap_or(0)
}

fn node_port(port: &Value) -> i64 {
    walk::int(port, "nodePort").unwrap_or(0)
}

fn refused_port(index: usize, number: i64, why: String) -> Refusal {
    let path = format!("spec.ports[{index}].nodePort");
    Refusal::Invalid(vec![FieldError::invalid(path, number, why)])
}

fn no_port(why: &'static str) -> Refusal {
    Refusal::Internal(format!("failed to allocate a nodePort: {why}"))
}
