//! Every field of a KubeProxyConfiguration, and what becomes of it here. A test compares `docs/reference/agent.md`.

use serde_json::Value;

use super::period;

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its path.
    pub path: &'static str,
    /// What it may hold.
    pub shape: Shape,
    /// What becomes of it.
    pub taken: Taken,
}

/// What a field may hold, beside null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// True or false.
    Flag,
    /// A number within these bounds.
    Number(i64, i64),
    /// Any number.
    Real,
    /// A time as Go writes it.
    Period,
    /// A list of strings.
    Texts,
    /// An object with any fields.
    Any,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It does what it does in kube-proxy.
    Yes,
    /// It does part of that: this.
    Partly(&'static str),
    /// It does nothing, and why.
    No(&'static str),
}

use Shape::{Any, Flag, Number, Period, Real, Text, Texts};
use Taken::{No, Partly, Yes};

const COUNT: Shape = Number(0, i32::MAX as i64);
const BIT: Shape = Number(0, 31);
const NO_MARK: &str = "no packet is marked";
const NO_IPVS: &str = "there is no IPVS here";
const NO_WINDOWS: &str = "Linux only";
const AT_ONCE: &str = "a change is programmed at once, a burst together";

const fn field(path: &'static str, shape: Shape, taken: Taken) -> Field {
    Field { path, shape, taken }
}

/// All fields of Kubernetes 1.36.
pub const FIELDS: &[Field] = &[
    field(
        "featureGates",
        Any,
        No("but for `AllowServiceExternalIPs: false`, which is `--external-ips none`"),
    ),
    field("clientConnection.kubeconfig", Text, Yes),
    field("clientConnection.acceptContentTypes", Text, No("JSON is spoken")),
    field("clientConnection.contentType", Text, No("JSON is spoken")),
    field("clientConnection.qps", Real, No("there is next to nothing to limit: watches, and a few events")),
    field("clientConnection.burst", COUNT, No("likewise")),
    field("logging", Any, No("`PORTOLAN_LOG` filters the log")),
    field("hostnameOverride", Text, Yes),
    field("bindAddress", Text, Partly("its family decides the defaults of the two below")),
    field("healthzBindAddress", Text, Yes),
    field("metricsBindAddress", Text, Yes),
    field("bindAddressHardFail", Flag, Yes),
    field("enableProfiling", Flag, No("there is no profile to show")),
    field("showHiddenMetricsForVersion", Text, No("no metric is hidden")),
    field("mode", Text, Partly("nftables, whatever is asked for; with a warning")),
    field("iptables.masqueradeBit", BIT, No(NO_MARK)),
    field("iptables.masqueradeAll", Flag, Yes),
    field(
        "iptables.localhostNodePorts",
        Flag,
        Partly("`true` is read as `localhost` in `nodePortAddresses`; see there"),
    ),
    field("iptables.syncPeriod", Period, Partly("where `nftables.syncPeriod` isn't given; see there")),
    field("iptables.minSyncPeriod", Period, No(AT_ONCE)),
    field("ipvs.syncPeriod", Period, Partly("the same in mode ipvs")),
    field("ipvs.minSyncPeriod", Period, No(AT_ONCE)),
    field("ipvs.scheduler", Text, No(NO_IPVS)),
    field("ipvs.excludeCIDRs", Texts, No(NO_IPVS)),
    field("ipvs.strictARP", Flag, No(NO_IPVS)),
    field("ipvs.tcpTimeout", Period, No(NO_IPVS)),
    field("ipvs.tcpFinTimeout", Period, No(NO_IPVS)),
    field("ipvs.udpTimeout", Period, No(NO_IPVS)),
    field("nftables.masqueradeBit", BIT, No(NO_MARK)),
    field("nftables.masqueradeAll", Flag, Yes),
    field(
        "nftables.syncPeriod",
        Period,
        Partly(
            "how often the tables are looked after; a change waits for twice as long at most before the node is unhealthy",
        ),
    ),
    field("nftables.minSyncPeriod", Period, No(AT_ONCE)),
    field("winkernel.networkName", Text, No(NO_WINDOWS)),
    field("winkernel.sourceVip", Text, No(NO_WINDOWS)),
    field("winkernel.enableDSR", Flag, No(NO_WINDOWS)),
    field("winkernel.rootHnsEndpointName", Text, No(NO_WINDOWS)),
    field("winkernel.forwardHealthCheckVip", Flag, No(NO_WINDOWS)),
    field("detectLocalMode", Text, Partly("ClusterCIDR and NodeCIDR; another is a warning, and NodeCIDR")),
    field("detectLocal.bridgeInterface", Text, No("pods are known by their ranges")),
    field("detectLocal.interfaceNamePrefix", Text, No("likewise")),
    field(
        "clusterCIDR",
        Text,
        Partly(
            "in mode ClusterCIDR; if it is empty, the ranges of the Node object count, as in mode NodeCIDR",
        ),
    ),
    field(
        "nodePortAddresses",
        Texts,
        Partly("ranges, `primary`, and of 1.37 `localhost`, `all` and any of them together"),
    ),
    field("oomScoreAdj", Number(-1000, 1000), No("it is for whoever starts the agent to set")),
    field("conntrack.maxPerCore", COUNT, Partly("only if given")),
    field("conntrack.min", COUNT, Partly("only if given")),
    field("conntrack.tcpEstablishedTimeout", Period, Partly("only if given")),
    field("conntrack.tcpCloseWaitTimeout", Period, Partly("only if given")),
    field("conntrack.tcpBeLiberal", Flag, Yes),
    field("conntrack.udpTimeout", Period, Yes),
    field("conntrack.udpStreamTimeout", Period, Yes),
    field("configSyncPeriod", Period, No("watches don't need it")),
    field("portRange", Text, No("nor has it in kube-proxy")),
    field("windowsRunAsService", Flag, No(NO_WINDOWS)),
];

impl Shape {
    /// Whether it may hold the value; if not, the remedy.
    pub fn accepts(self, value: &Value) -> Result<(), String> {
        let good = match self {
            Text => value.is_string(),
            Flag => value.is_boolean(),
            Number(least, most) => value.as_i64().is_some_and(|n| (least..=most).contains(&n)),
            Real => value.is_number(),
            Period => match value.as_str() {
                Some("") => true,
                Some(text) => period::parse(text).is_ok(),
                None => false,
            },
            Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            Any => value.is_object(),
        };
        match good {
            true => Ok(()),
            false => Err(match self {
                Text => "is not text; put it in quotes".to_owned(),
                Flag => "is not a flag; write true or false".to_owned(),
                Number(least, most) => format!("is not understood; write a number from {least} to {most}"),
                Real => "is not a number".to_owned(),
                Period => "is not a time; write one such as 30s, 1h or 1h30m".to_owned(),
                Texts => "is not a list of texts; write one such as [192.0.2.0/24]".to_owned(),
                Any => "is not an object; write its fields below it".to_owned(),
            }),
        }
    }
}

/// Whether a value is as good as none: what kubeadm writes for every field that nobody set.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}
