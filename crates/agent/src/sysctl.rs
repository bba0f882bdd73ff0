//! The kernel settings that forwarding needs, in the network namespace of the calling thread.

use std::fmt;
use std::io;
use std::path::Path;

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name, as `sysctl` prints it.
    pub name: &'static str,
    /// The value.
    pub value: &'static str,
    /// What doesn't work without it.
    pub without: &'static str,
}

/// All settings that the agent makes in any case. A test compares them with `docs/reference/sysctls.md`.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "net.ipv4.ip_forward",
        value: "1",
        without: "connections of pods and from outside to IPv4 endpoints on other nodes and in pods are not forwarded",
    },
    Setting {
        name: "net.ipv6.conf.all.forwarding",
        value: "1",
        without: "connections of pods and from outside to IPv6 endpoints on other nodes and in pods are not forwarded",
    },
];

/// Those that it makes where NodePorts are to answer on localhost.
pub const LOCALHOST: &[Setting] = &[Setting {
    name: "net.ipv4.conf.all.route_localnet",
    value: "1",
    without: "NodePorts do not answer on 127.0.0.1",
}];

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
        let Setting { name, value, without } = self.setting;
        write!(
            f,
            "{name} can't be set ({}): {without}; run `sysctl -w {name}={value}` on the node",
            self.error
        )
    }
}

/// Makes these settings, those that aren't made already; gives those that could not be made.
pub fn set_all(settings: &[Setting]) -> Vec<NotSet> {
    settings.iter().filter_map(|&setting| set(Path::new("/proc/sys"), setting).err()).collect()
}

fn set(root: &Path, setting: Setting) -> Result<(), NotSet> {
    let path = root.join(setting.name.replace('.', "/"));
    // Compared first: /proc/sys is often read-only in a container whose settings were made from outside.
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == setting.value) {
        return Ok(());
    }
    std::fs::write(&path, setting.value).map_err(|error| NotSet { setting, error })
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
    fn a_setting_that_can_not_be_made_names_its_remedy() {
        let error = set(Path::new("/nonexistent"), SETTINGS[0]).unwrap_err().to_string();
        assert!(error.contains("sysctl -w net.ipv4.ip_forward=1"), "{error}");
    }
}
