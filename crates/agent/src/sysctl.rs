//! The kernel settings that forwarding needs, in the network namespace of the calling thread.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name, as `sysctl` prints it.
    pub name: &'static str,
    /// The value.
    pub value: Cow<'static, str>,
    /// What doesn't work without it.
    pub without: &'static str,
}

/// All settings that the agent makes in any case. A test compares them with `docs/reference/sysctls.md`.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "net.ipv4.ip_forward",
        value: Cow::Borrowed("1"),
        without: "connections of pods and from outside to IPv4 endpoints on other nodes and in pods are not forwarded",
    },
    Setting {
        name: "net.ipv6.conf.all.forwarding",
        value: Cow::Borrowed("1"),
        without: "connections of pods and from outside to IPv6 endpoints on other nodes and in pods are not forwarded",
    },
];

/// Those that it makes where NodePorts are to answer on localhost.
pub const LOCALHOST: &[Setting] = &[Setting {
    name: "net.ipv4.conf.all.route_localnet",
    value: Cow::Borrowed("1"),
    without: "NodePorts do not answer on 127.0.0.1",
}];
/// How the kernel is to track connections; what isn't given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// The size of the connection table for each processor; 0 leaves the size as it is.
    pub max_per_core: Option<u32>,
    /// The least size of the table, if it is set at all.
    pub min: Option<u32>,
    /// The time after which an idle TCP connection is forgotten.
    pub tcp_established: Option<Duration>,
    /// The same once the far side has closed it.
    pub tcp_close_wait: Option<Duration>,
    /// Packets outside of a TCP connection's window count as part of it.
    pub tcp_be_liberal: bool,
    /// The time after which a UDP flow is forgotten that had no answer.
    pub udp: Option<Duration>,
    /// The same for one that had.
    pub udp_stream: Option<Duration>,
}

/// The names that [`Conntrack::settings`] sets, and the field of a KubeProxyConfiguration that asks for each. A test compares
/// them with `docs/reference/sysctls.md`.
pub const CONNTRACK: [(&str, &str); 6] = [
    ("net.netfilter.nf_conntrack_max", "conntrack.maxPerCore"),
    ("net.netfilter.nf_conntrack_tcp_timeout_established", "conntrack.tcpEstablishedTimeout"),
    ("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "conntrack.tcpCloseWaitTimeout"),
    ("net.netfilter.nf_conntrack_tcp_be_liberal", "conntrack.tcpBeLiberal"),
    ("net.netfilter.nf_conntrack_udp_timeout", "conntrack.udpTimeout"),
    ("net.netfilter.nf_conntrack_udp_timeout_stream", "conntrack.udpStreamTimeout"),
];

impl Conntrack {
    /// The settings on a machine with so many processors, as kube-proxy computes them (pkg/proxy/conntrack/sysctls.go).
    pub fn settings(&self, cores: u32) -> Vec<Setting> {
        let seconds =
            |time: Option<Duration>| Some(time?.as_secs()).filter(|s| *s > 0).map(|s| s.to_string());
        let values = [
            self.max(cores).map(|max| max.to_string()),
            seconds(self.tcp_established),
            seconds(self.tcp_close_wait),
            self.tcp_be_liberal.then(|| "1".to_owned()),
            seconds(self.udp),
            seconds(self.udp_stream),
        ];
        let without = "connections are tracked as the machine is set, not as the configuration asks";
        let named = CONNTRACK.iter().zip(values);
        named.filter_map(|((name, _), value)| Some(Setting { name, value: value?.into(), without })).collect()
    }

    fn max(&self, cores: u32) -> Option<u32> {
        const PER_CORE: u32 = 32 * 1024;
        const LEAST: u32 = 128 * 1024;
        const MOST: u32 = 1024 * 1024; // more would be memory that machines of many processors never use
        if self.max_per_core.is_none() && self.min.is_none() {
            return None;
        }
        let per_core = self.max_per_core.unwrap_or(PER_CORE);
        let scaled = per_core.saturating_mul(cores);
        (per_core > 0).then(|| if scaled > MOST { MOST } else { scaled.max(self.min.unwrap_or(LEAST)) })
    }
}

/// How many processors the machine has: all of them, not only those that this process may use, since the connection table is
/// the machine's.
pub fn cores() -> u32 {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    in_list(&online).unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u32))
}

/// How many numbers a list such as `0-3,8` has.
fn in_list(list: &str) -> Option<u32> {
    let mut count = 0;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

/// A setting that could not be made, and the remedy.
#[derive(Debug)]
pub struct NotSet {
    /// The setting.
    pub setting: Setting,
    /// Why.
    pub error: io::Error,
}

impl fmt::Display for NotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { name, value, without } = &self.setting;
        write!(
            f,
            "{name} can't be set ({}): {without}; run `sysctl -w {name}={value}` on the node",
            self.error
        )
    }
}

/// Makes these settings, those that aren't made already; gives those that could not be made.
pub fn set_all(settings: Vec<Setting>) -> Vec<NotSet> {
    settings.into_iter().filter_map(|setting| set(Path::new("/proc/sys"), setting).err()).collect()
}

fn set(root: &Path, setting: Setting) -> Result<(), NotSet> {
    let path = root.join(setting.name.replace('.', "/"));
    // Compared first: /proc/sys is often read-only in a container whose settings were made from outside.
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == setting.value) {
        return Ok(());
    }
    std::fs::write(&path, setting.value.as_bytes()).map_err(|error| NotSet { setting, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_listed_in_the_docs() {
        let docs = include_str!("../../../docs/reference/sysctls.md");
        // The first part is the agent's; pods and the lab have theirs below.
        let docs = docs.split("\n## ").next().expect("the beginning");
        for Setting { name, value, .. } in [SETTINGS, LOCALHOST].concat() {
            assert!(
                docs.contains(&format!("| `{name}` | `{value}` |")),
                "docs/reference/sysctls.md lacks a row for {name} = {value}: add it with its reason"
            );
        }
        let rows = docs.lines().filter(|l| l.starts_with("| `")).count();
        assert_eq!(
            rows,
            SETTINGS.len() + LOCALHOST.len(),
            "docs/reference/sysctls.md lists a setting that the agent doesn't make"
        );
    }

    #[test]
    fn every_setting_of_connection_tracking_is_listed_in_the_docs() {
        let docs = include_str!("../../../docs/reference/sysctls.md");
        let part = docs.split("\n## Connection tracking").nth(1).expect("a part of its own");
        let part = part.split("\n## ").next().expect("its text");
        for (name, field) in CONNTRACK {
            assert!(
                part.contains(&format!("| `{name}` | `{field}` |")),
                "docs/reference/sysctls.md lacks a row for {name}, which {field} asks for"
            );
        }
        assert_eq!(part.lines().filter(|l| l.starts_with("| `")).count(), CONNTRACK.len(), "a row too many");
    }

    #[test]
    fn connection_tracking_stays_as_it_is_unless_asked() {
        assert_eq!(Conntrack::default().settings(8), []);
        let zero = Conntrack { max_per_core: Some(0), udp: Some(Duration::ZERO), ..Conntrack::default() };
        assert_eq!(zero.settings(8), []);
    }

    #[test]
    fn connection_tracking_is_set_as_asked() {
        let asked = Conntrack {
            tcp_established: Some(Duration::from_secs(86_400)),
            tcp_close_wait: Some(Duration::from_secs(3600)),
            tcp_be_liberal: true,
            udp: Some(Duration::from_secs(30)),
            udp_stream: Some(Duration::from_millis(120_900)),
            ..Conntrack::default()
        };
        let settings = asked.settings(8);
        let values: Vec<_> =
            settings.iter().map(|s| (s.name.rsplit('.').next().unwrap(), &*s.value)).collect();
        assert_eq!(
            values,
            [
                ("nf_conntrack_tcp_timeout_established", "86400"),
                ("nf_conntrack_tcp_timeout_close_wait", "3600"),
                ("nf_conntrack_tcp_be_liberal", "1"),
                ("nf_conntrack_udp_timeout", "30"),
                ("nf_conntrack_udp_timeout_stream", "120"),
            ]
        );
    }

    #[test]
    fn the_connection_table_grows_with_the_processors_between_a_floor_and_a_ceiling() {
        let max = |per_core, min, cores| {
            Conntrack { max_per_core: per_core, min, ..Conntrack::default() }
                .settings(cores)
                .first()
                .map(|s| s.value.to_string())
        };
        assert_eq!(max(Some(32_768), None, 8).as_deref(), Some("262144"));
        assert_eq!(max(Some(32_768), None, 2).as_deref(), Some("131072"));
        assert_eq!(max(Some(32_768), Some(0), 2).as_deref(), Some("65536"));
        assert_eq!(max(Some(32_768), None, 64).as_deref(), Some("1048576"));
        assert_eq!(max(None, Some(500_000), 2).as_deref(), Some("500000"));
        assert_eq!(max(Some(0), Some(500_000), 2), None);
    }

    #[test]
    fn processors_are_counted_from_the_kernels_list() {
        assert_eq!(in_list("0-3,8\n"), Some(5));
        assert_eq!(in_list("0"), Some(1));
        assert_eq!(in_list(""), None);
        assert!(cores() >= 1);
    }

    #[test]
    fn a_setting_that_can_not_be_made_names_its_remedy() {
        let error = set(Path::new("/nonexistent"), SETTINGS[0].clone()).unwrap_err().to_string();
        assert!(error.contains("sysctl -w net.ipv4.ip_forward=1"), "{error}");
    }
}
