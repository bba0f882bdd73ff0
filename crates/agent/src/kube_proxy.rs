//! kube-proxy's configuration file, accepted as it is: its text to what an agent is told, warnings and errors.
//!
//! The format is `kubeproxy.config.k8s.io/v1alpha1` of Kubernetes 1.36 (k8s.io/kube-proxy/config/v1alpha1/types.go).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use portolan_plan::view::{ExternalIps, NodePortAddresses};
use serde_json::{Map, Value, json};

use crate::agent::Config;
use crate::servers::{HEALTHZ_PORT, METRICS_PORT, Servers, bind_address};
use crate::sysctl::Conntrack;

pub mod fields; // every field, and what becomes of it
pub mod node_ports; // `nodePortAddresses`
pub mod period; // Go's way to write a time

use fields::{FIELDS, Field, Taken};

/// What a file says, as far as an agent goes by it. `None`, and what is empty: the file leaves it open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// `hostnameOverride`.
    pub node_name: Option<String>,
    /// `clientConnection.kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `healthzBindAddress`, `metricsBindAddress` and `bindAddressHardFail`; the addresses have kube-proxy's defaults.
    pub servers: Servers,
    /// `clusterCIDR`, where `detectLocalMode` is ClusterCIDR.
    pub cluster_cidrs: Vec<IpNet>,
    /// `nodePortAddresses`, and `iptables.localhostNodePorts`.
    pub node_ports: Option<NodePortAddresses>,
    /// `featureGates.AllowServiceExternalIPs`.
    pub external_ips: Option<ExternalIps>,
    /// `nftables.masqueradeAll`, or `iptables.masqueradeAll`.
    pub masquerade_all: bool,
    /// `nftables.syncPeriod`, or that of the mode.
    pub sync_period: Option<Duration>,
    /// `conntrack`.
    pub conntrack: Conntrack,
    /// All fields that the file gives.
    pub given: Map<String, Value>,
}

/// Something wrong with a field, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the field, such as `conntrack.min`; empty for the file itself.
    pub field: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.text),
            field => write!(f, "{field}: {}", self.text),
        }
    }
}

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// The tables are looked after no more often than this.
const LEAST_PERIOD: Duration = Duration::from_secs(1);

/// Reads a file, YAML or JSON. Gives what it says, and warnings.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn read(text: &str) -> Result<(File, Vec<Problem>), Vec<Problem>> {
    let mut reader = Reader::default();
    let object = reader.object(text).map_err(|problem| vec![problem])?;
    reader.walk("", &object);
    reader.given = object;
    let file = reader.file();
    match reader.errors.is_empty() {
        true => Ok((file, reader.warnings)),
        false => Err(reader.errors),
    }
}

#[derive(Default)]
struct Reader {
    given: Map<String, Value>,
    warnings: Vec<Problem>,
    errors: Vec<Problem>,
}

impl Reader {
    fn warn(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.warnings.push(Problem { field: field.into(), text: text.into() });
    }

    fn fail(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.errors.push(Problem { field: field.into(), text: text.into() });
    }

    fn object(&mut self, text: &str) -> Result<Map<String, Value>, Problem> {
        let problem = |text: String| Problem { field: String::new(), text };
        let strict = serde_saphyr::options! { legacy_octal_numbers: true };
        let documents: Vec<Value> = match serde_saphyr::from_multiple_with_options(text, strict) {
            Ok(documents) => documents,
            Err(error) => {
                // kube-proxy reads strictly first, and leniently with a warning where that fails.
                let lenient = serde_saphyr::options! {
                    legacy_octal_numbers: true,
                    duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
                };
                let Ok(documents) = serde_saphyr::from_multiple_with_options(text, lenient) else {
                    return Err(problem(format!("neither YAML nor JSON: {error}")));
                };
                let error = error.to_string();
                let first = error.lines().next().unwrap_or_default();
                self.warn("", format!("a field is given twice, and the last one counts: {first}"));
                documents
            }
        };
        let mut documents = documents.into_iter().filter(|d| !d.is_null());
        let (Some(Value::Object(mut object)), None) = (documents.next(), documents.next()) else {
            return Err(problem(format!("the file has to hold one {KIND}, and nothing else")));
        };
        for (field, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = object.shift_remove(field).unwrap_or_default();
            if found != wanted {
                let text = format!("{found} is not understood; write {wanted}");
                return Err(Problem { field: field.to_owned(), text });
            }
        }
        Ok(object)
    }

    /// Looks at every field that is given: whether it is one, of the right kind, and does anything.
    fn walk(&mut self, above: &str, object: &Map<String, Value>) {
        let mut idle = Vec::new();
        self.walk_into(above, object, &mut idle);
        if !idle.is_empty() {
            let (verb, names) = (if idle.len() == 1 { "has" } else { "have" }, idle.join(", "));
            self.warn("", format!("{names} {verb} no effect here"));
        }
    }

    fn walk_into(&mut self, above: &str, object: &Map<String, Value>, idle: &mut Vec<String>) {
        for (name, value) in object {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            if let Some(field) = FIELDS.iter().find(|f| f.path == path) {
                self.look(field, value, idle);
            } else if FIELDS
                .iter()
                .any(|f| f.path.strip_prefix(&*path).is_some_and(|rest| rest.starts_with('.')))
            {
                match value {
                    Value::Object(below) => self.walk_into(&path, below, idle),
                    Value::Null => {}
                    other => self.fail(path, format!("{other} is not an object; write its fields below it")),
                }
            } else {
                self.warn(path, format!("there is no such field in {API_VERSION}; it is ignored"));
            }
        }
    }

    fn look(&mut self, field: &Field, value: &Value, idle: &mut Vec<String>) {
        if value.is_null() {
            return;
        }
        if let Err(remedy) = field.shape.accepts(value) {
            self.fail(field.path, format!("{value} {remedy}"));
        } else if matches!(field.taken, Taken::No(_)) && !fields::is_empty(value) {
            idle.push(field.path.to_owned());
        }
    }

    /// A field that is given. One of the wrong kind is told of already.
    fn get(&self, path: &str) -> Option<&Value> {
        let (last, above) =
            path.split('.').collect::<Vec<_>>().split_last().map(|(l, a)| (*l, a.to_vec()))?;
        let mut object = &self.given;
        for name in above {
            object = object.get(name)?.as_object()?;
        }
        object.get(last)
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str().filter(|text| !text.is_empty())
    }

    fn flag(&self, path: &str) -> Option<bool> {
        self.get(path)?.as_bool()
    }

    /// A time; zero is the default, as in kube-proxy.
    fn period(&self, path: &str) -> Option<Duration> {
        period::parse(self.text(path)?).ok().filter(|time| !time.is_zero())
    }

    fn number(&self, path: &str) -> Option<u32> {
        self.get(path)?.as_u64().and_then(|n| u32::try_from(n).ok())
    }

    fn file(&mut self) -> File {
        let mode = self.mode();
        let bind = self.bind_address();
        let healthz = SocketAddr::new(any(bind), HEALTHZ_PORT);
        let metrics = SocketAddr::new(loopback(bind), METRICS_PORT);
        let servers = Servers {
            healthz: Some(self.address("healthzBindAddress", healthz)),
            metrics: Some(self.address("metricsBindAddress", metrics)),
            hard_fail: self.flag("bindAddressHardFail").unwrap_or(false),
        };
        let cluster_cidrs = self.cluster_cidrs();
        let node_ports = self.node_ports();
        let external_ips = match self.get("featureGates.AllowServiceExternalIPs").and_then(Value::as_bool) {
            Some(false) => Some(ExternalIps::None),
            _ => None,
        };
        let of_mode = if mode == "ipvs" { "ipvs.syncPeriod" } else { "iptables.syncPeriod" };
        let given =
            ["nftables.syncPeriod", of_mode].into_iter().find_map(|path| Some((path, self.period(path)?)));
        let sync_period = given.map(|(path, period)| {
            if period < LEAST_PERIOD {
                self.warn(path, "less than a second is a second here: nothing waits for it");
            }
            period.max(LEAST_PERIOD)
        });
        File {
            // As kube-proxy and kubelet do it (component-helpers/node/util).
            node_name: self
                .text("hostnameOverride")
                .map(|n| n.trim().to_lowercase())
                .filter(|n| !n.is_empty()),
            kubeconfig: self.text("clientConnection.kubeconfig").map(PathBuf::from),
            servers,
            cluster_cidrs,
            node_ports,
            external_ips,
            masquerade_all: ["nftables", "iptables"]
                .iter()
                .any(|section| self.flag(&format!("{section}.masqueradeAll")).unwrap_or(false)),
            sync_period,
            conntrack: Conntrack {
                max_per_core: self.number("conntrack.maxPerCore"),
                min: self.number("conntrack.min"),
                tcp_established: self.period("conntrack.tcpEstablishedTimeout"),
                tcp_close_wait: self.period("conntrack.tcpCloseWaitTimeout"),
                tcp_be_liberal: self.flag("conntrack.tcpBeLiberal").unwrap_or(false),
                udp: self.period("conntrack.udpTimeout"),
                udp_stream: self.period("conntrack.udpStreamTimeout"),
            },
            given: self.given.clone(),
        }
    }

    fn mode(&mut self) -> String {
        let mode = self.text("mode").unwrap_or_default().to_owned();
        match mode.as_str() {
            "nftables" => {}
            "" | "iptables" | "ipvs" => {
                let said = if mode.is_empty() { "no mode means iptables to kube-proxy" } else { &mode };
                let mut text =
                    format!("{said}; the agent's own dataplane is nftables, whatever is asked for");
                if self.get("nodePortAddresses").is_none_or(fields::is_empty) {
                    text += "; so NodePorts answer on the node's primary addresses (nodePortAddresses: [all] for all)";
                }
                self.warn("mode", text);
            }
            other => self
                .fail("mode", format!("{other:?} is not a mode on Linux; write nftables, or leave it out")),
        }
        mode
    }

    /// The address whose family counts.
    fn bind_address(&mut self) -> IpAddr {
        let default = IpAddr::from([0, 0, 0, 0]);
        let Some(text) = self.text("bindAddress").map(str::to_owned) else { return default };
        match text.parse::<IpAddr>() {
            Ok(ip) => {
                if !ip.is_unspecified() {
                    let text = format!(
                        "of {ip} only the family counts; the node's addresses are those of its Node object"
                    );
                    self.warn("bindAddress", text);
                }
                ip
            }
            Err(_) => {
                self.fail("bindAddress", format!("{text:?} is not an IP address; write 0.0.0.0 or ::"));
                default
            }
        }
    }

    fn address(&mut self, field: &'static str, default: SocketAddr) -> SocketAddr {
        let Some(text) = self.text(field).map(str::to_owned) else { return default };
        match bind_address(&text, default.port()) {
            Ok(address) if address.port() != 0 => address,
            Ok(_) => {
                self.fail(
                    field,
                    format!("{text:?} has port 0; write a port of 1 to 65535, such as {default}"),
                );
                default
            }
            Err(problem) => {
                self.fail(field, problem);
                default
            }
        }
    }

    fn cluster_cidrs(&mut self) -> Vec<IpNet> {
        let text = self.text("clusterCIDR").unwrap_or_default().to_owned();
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.parse::<IpNet>() {
                Ok(range) => ranges.push(range.trunc()),
                Err(_) => self
                    .fail("clusterCIDR", format!("{part:?} is not a range; write one such as 10.244.0.0/16")),
            }
        }
        let of = |ip: fn(&IpNet) -> bool| ranges.iter().filter(|r| ip(r)).count();
        if of(|r| r.addr().is_ipv4()) > 1 || of(|r| r.addr().is_ipv6()) > 1 {
            self.fail(
                "clusterCIDR",
                format!("{text:?} has two ranges of one family; write at most one of each"),
            );
        }
        match self.text("detectLocalMode").unwrap_or_default() {
            "" | "ClusterCIDR" => ranges,
            "NodeCIDR" => Vec::new(),
            mode @ ("BridgeInterface" | "InterfaceNamePrefix") => {
                let text = format!(
                    "{mode} is not supported: pods are known by the ranges of the Node object (spec.podCIDRs), as in mode NodeCIDR"
                );
                self.warn("detectLocalMode", text);
                Vec::new()
            }
            other => {
                let text = format!("{other:?} is not a mode; write ClusterCIDR or NodeCIDR");
                self.fail("detectLocalMode", text);
                Vec::new()
            }
        }
    }

    fn node_ports(&mut self) -> Option<NodePortAddresses> {
        let listed = self.get("nodePortAddresses").and_then(Value::as_array).cloned().unwrap_or_default();
        let texts: Vec<&str> = listed.iter().filter_map(Value::as_str).collect();
        let (ports, problems) = node_ports::named(&texts);
        for (i, problem) in problems {
            self.fail(format!("nodePortAddresses[{i}]"), problem);
        }
        let mut ports = (!texts.is_empty()).then_some(ports);
        if self.flag("iptables.localhostNodePorts") == Some(true) {
            ports.get_or_insert_with(NodePortAddresses::primary).localhost = true;
        }
        ports
    }
}

/// The unspecified address of the same family.
fn any(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { IpAddr::from([0u16; 8]) }
}

/// The loopback address of the same family.
fn loopback(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]) }
}

impl File {
    /// Tells an agent what the file says.
    pub fn apply(&self, config: &mut Config) {
        config.servers = self.servers.clone();
        config.pod_cidrs.clone_from(&self.cluster_cidrs);
        if let Some(ports) = &self.node_ports {
            config.node_port_addresses = ports.clone();
        }
        if let Some(external_ips) = &self.external_ips {
            config.external_ips = external_ips.clone();
        }
        config.masquerade_all |= self.masquerade_all;
        if let Some(period) = self.sync_period {
            config.check_every = period;
        }
        config.conntrack = self.conntrack.clone();
        config.from_file.clone_from(&self.given);
    }
}

/// The configuration in effect, as a file would say it: what the file gave and what counts in the end.
pub fn in_effect(config: &Config) -> Value {
    let mut all = Map::new();
    all.insert("apiVersion".to_owned(), API_VERSION.into());
    all.insert("kind".to_owned(), KIND.into());
    all.extend(config.from_file.clone());
    let mut root = Value::Object(all);
    let mut set = |path: &str, value: Value| {
        let mut at = &mut root;
        for name in path.split('.') {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[name];
        }
        *at = value;
    };
    let address = |at: Option<SocketAddr>| at.map(|a| a.to_string()).unwrap_or_default();
    let time = |time: Option<Duration>| time.map_or(Value::Null, |t| period::print(t).into());
    set("hostnameOverride", config.node_name.clone().into());
    set("healthzBindAddress", address(config.servers.healthz).into());
    set("metricsBindAddress", address(config.servers.metrics).into());
    set("bindAddressHardFail", config.servers.hard_fail.into());
    set("mode", "nftables".into());
    set("nftables.masqueradeAll", config.masquerade_all.into());
    set("nftables.syncPeriod", period::print(config.check_every).into());
    set("detectLocalMode", if config.pod_cidrs.is_empty() { "NodeCIDR" } else { "ClusterCIDR" }.into());
    let ranges: Vec<_> = config.pod_cidrs.iter().map(ToString::to_string).collect();
    set("clusterCIDR", ranges.join(",").into());
    set("nodePortAddresses", node_ports::list(&config.node_port_addresses).into());
    set("conntrack.maxPerCore", config.conntrack.max_per_core.into());
    set("conntrack.min", config.conntrack.min.into());
    set("conntrack.tcpEstablishedTimeout", time(config.conntrack.tcp_established));
    set("conntrack.tcpCloseWaitTimeout", time(config.conntrack.tcp_close_wait));
    set("conntrack.tcpBeLiberal", config.conntrack.tcp_be_liberal.into());
    set("conntrack.udpTimeout", time(config.conntrack.udp));
    set("conntrack.udpStreamTimeout", time(config.conntrack.udp_stream));
    root
}

#[cfg(test)]
mod tests;
