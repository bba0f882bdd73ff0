//! The files that a pod's containers find: hosts, hostname, resolv.conf and volumes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume,
};

use crate::env::{Sources, Values, field};
use crate::protocol::{Mount, PodDir, write_atomically};

/// `spec.hostname`, or the pod's name, cut to what a host name can hold.
pub(crate) fn hostname(pod: &Pod) -> String {
    let name = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).or_else(|| pod.metadata.name.clone());
    let mut name = name.unwrap_or_default();
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// Where pods look names up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The cluster's name servers.
    pub servers: &'a [IpAddr],
    /// The domain of the cluster's names.
    pub domain: &'a str,
}

/// `/etc/hosts`.
pub(crate) fn hosts(pod: &Pod, addresses: &[IpAddr], domain: &str) -> String {
    // Some look for this line to see whose file it is.
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-mcastprefix\n\
                    ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned();
    let Some(spec) = &pod.spec else { return text };
    let hostname = hostname(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let full = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    let full = full.map(|subdomain| format!("{hostname}.{subdomain}.{namespace}.svc.{domain}\t"));
    for address in addresses {
        text.push_str(&format!("{address}\t{}{hostname}\n", full.as_deref().unwrap_or_default()));
    }
    for alias in spec.host_aliases.iter().flatten() {
        let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

/// The most servers and search paths that are of use: the C library's limit, and Kubernetes'.
const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;

/// What a `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// The machine's own (resolv.conf(5)). Without `loopback`, servers that only the machine itself reaches are left out.
    fn parse(text: &str, loopback: bool) -> Resolver {
        let mut found = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => found.servers.extend(words.next()),
                // The last one counts.
                Some("search" | "domain") => found.searches = words.collect(),
                Some("options") => found.options.extend(words),
                _ => {}
            }
        }
        let reachable =
            |server: &String| loopback || !server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        found.servers.retain(reachable);
        found
    }

    fn text(mut self) -> String {
        let once = |list: &mut Vec<String>, most: usize| {
            let mut seen = std::collections::BTreeSet::new();
            list.retain(|item| seen.insert(item.clone()));
            list.truncate(most);
        };
        once(&mut self.servers, MOST_SERVERS);
        once(&mut self.searches, MOST_SEARCHES);
        let mut text = String::new();
        if self.servers.is_empty() {
            text.push_str(
                "# This cluster has no name server. Services are in the environment: NAME_SERVICE_HOST.\n",
            );
        }
        for server in self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// `/etc/resolv.conf`, from the pod's policy and the machine's own file. Without a name server in the cluster it names one only
/// where the manifest does: one that doesn't answer makes every look-up wait.
pub(crate) fn resolv_conf(pod: &Pod, machine: &str, names: Names<'_>) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let Some(spec) = &pod.spec else { return String::new() };
    let host_network = spec.host_network.unwrap_or(false);
    let mut resolver = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolver::default(),
        // A pod in the node's network takes the node's names unless it says `ClusterFirstWithHostNet`.
        "Default" => Resolver::parse(machine, host_network),
        "ClusterFirst" if host_network => Resolver::parse(machine, true),
        _ => {
            let Names { servers, domain } = names;
            let mut searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            searches.extend(Resolver::parse(machine, true).searches);
            let servers = servers.iter().map(IpAddr::to_string).collect();
            Resolver { servers, searches, options: vec!["ndots:5".to_owned()] }
        }
    };
    let config = spec.dns_config.clone().unwrap_or_default();
    resolver.servers.extend(config.nameservers.unwrap_or_default());
    resolver.searches.extend(config.searches.unwrap_or_default());
    for option in config.options.unwrap_or_default() {
        let Some(name) = option.name else { continue };
        resolver.options.retain(|known: &String| known.split(':').next() != Some(name.as_str()));
        resolver.options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
    }
    resolver.text()
}

/// Writes the three files and says where they go.
pub(crate) fn prepare_etc(
    dir: &PodDir,
    pod: &Pod,
    addresses: &[IpAddr],
    hostname: &str,
    names: Names<'_>,
) -> io::Result<Vec<Mount>> {
    fs::create_dir_all(dir.0.join("etc"))?;
    let mut mounts = Vec::new();
    for (name, text) in [
        ("hosts", hosts(pod, addresses, names.domain)),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolv_conf(pod, &fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), names)),
    ] {
        let source = dir.etc(name);
        write_atomically(&source, text.as_bytes())?;
        mounts.push(Mount { source, target: Path::new("/etc").join(name), read_only: true, optional: true });
    }
    Ok(mounts)
}

/// ConfigMaps and Secrets that a container or the pod's volumes name, and the tokens that they want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub config_maps: Vec<String>,
    pub secrets: Vec<String>,
    /// Audience, and lifetime in seconds.
    pub tokens: Vec<(String, i64)>,
}

/// What a token of a volume is made for: an empty audience is the API server's own.
fn token_of(source: &ServiceAccountTokenProjection) -> (String, i64) {
    // An hour is the default of `expirationSeconds`.
    (source.audience.clone().unwrap_or_default(), source.expiration_seconds.unwrap_or(3600))
}

/// Whether a container mounts what may change while it runs.
pub(crate) fn follows_objects(pod: &Pod, container: &Container) -> bool {
    volumes_of(pod, container)
        .iter()
        .any(|volume| volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some())
}

/// What must be read before a container can start.
pub(crate) fn references(pod: &Pod, container: &Container) -> References {
    let mut references = References::default();
    for from in container.env_from.iter().flatten() {
        references.config_maps.extend(from.config_map_ref.iter().map(|one| one.name.clone()));
        references.secrets.extend(from.secret_ref.iter().map(|one| one.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        references.config_maps.extend(from.config_map_key_ref.iter().map(|one| one.name.clone()));
        references.secrets.extend(from.secret_key_ref.iter().map(|one| one.name.clone()));
    }
    for volume in volumes_of(pod, container) {
        references.config_maps.extend(volume.config_map.iter().map(|one| one.name.clone()));
        references.secrets.extend(volume.secret.iter().filter_map(|one| one.secret_name.clone()));
        for source in volume.projected.iter().filter_map(|one| one.sources.as_ref()).flatten() {
            references.config_maps.extend(source.config_map.iter().map(|one| one.name.clone()));
            references.secrets.extend(source.secret.iter().map(|one| one.name.clone()));
            references.tokens.extend(source.service_account_token.iter().map(token_of));
        }
    }
    for names in [&mut references.config_maps, &mut references.secrets] {
        names.sort();
        names.dedup();
    }
    references
}

fn volumes_of<'a>(pod: &'a Pod, container: &Container) -> Vec<&'a Volume> {
    let all = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let mounted =
        |volume: &&Volume| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
    all.into_iter().flatten().filter(mounted).collect()
}

/// One file of a volume: what is in it, and who may read it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    bytes: Vec<u8>,
    mode: u32,
}

/// The files of a volume by their paths in it.
type Files = BTreeMap<String, Content>;

/// The permission bits of a manifest, or else these; 0644 is the default of every kind of volume.
fn mode(wanted: Option<i32>, default: Option<i32>) -> u32 {
    wanted.or(default).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644) & 0o777
}

/// The files of a ConfigMap or Secret, by `items` where given.
fn select(
    values: Option<&Values>,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    default_mode: Option<i32>,
    what: &str,
) -> Result<Files, String> {
    let Some(values) = values else {
        return if optional { Ok(Files::new()) } else { Err(format!("{what} not found")) };
    };
    let file = |bytes: &Vec<u8>, wanted| Content { bytes: bytes.clone(), mode: mode(wanted, default_mode) };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(values.iter().map(|(key, value)| (key.clone(), file(value, None))).collect());
    };
    let mut files = Files::new();
    for item in items {
        match values.get(&item.key) {
            Some(value) => drop(files.insert(item.path.clone(), file(value, item.mode))),
            None if optional => {}
            None => return Err(format!("{what} has no key {:?}", item.key)),
        }
    }
    Ok(files)
}

/// The files that a volume consists of; `None` for a volume that is an empty directory or one of the node's.
fn content(pod: &Pod, volume: &Volume, sources: &Sources<'_>) -> Result<Option<Files>, String> {
    let mut files = Files::new();
    if let Some(one) = &volume.config_map {
        let what = format!("volume {}: ConfigMap {:?}", volume.name, one.name);
        let (values, optional) = (sources.config_maps.get(&one.name), one.optional.unwrap_or(false));
        return select(values, one.items.as_ref(), optional, one.default_mode, &what).map(Some);
    }
    if let Some(one) = &volume.secret {
        let name = one.secret_name.clone().unwrap_or_default();
        let what = format!("volume {}: Secret {name:?}", volume.name);
        let (values, optional) = (sources.secrets.get(&name), one.optional.unwrap_or(false));
        return select(values, one.items.as_ref(), optional, one.default_mode, &what).map(Some);
    }
    let downward = |items: Option<&Vec<DownwardAPIVolumeFile>>, default_mode, files: &mut Files| {
        for item in items.into_iter().flatten() {
            let Some(reference) = &item.field_ref else {
                return Err(format!("volume {}: {} has no fieldRef", volume.name, item.path));
            };
            let bytes = field(pod, &reference.field_path, sources)?.into_bytes();
            files.insert(item.path.clone(), Content { bytes, mode: mode(item.mode, default_mode) });
        }
        Ok(())
    };
    if let Some(one) = &volume.downward_api {
        downward(one.items.as_ref(), one.default_mode, &mut files)?;
        return Ok(Some(files));
    }
    let Some(projected) = &volume.projected else { return Ok(None) };
    let default_mode = projected.default_mode;
    for source in projected.sources.iter().flatten() {
        if let Some(one) = &source.config_map {
            let what = format!("volume {}: ConfigMap {:?}", volume.name, one.name);
            let (values, optional) = (sources.config_maps.get(&one.name), one.optional.unwrap_or(false));
            files.extend(select(values, one.items.as_ref(), optional, default_mode, &what)?);
        } else if let Some(one) = &source.secret {
            let what = format!("volume {}: Secret {:?}", volume.name, one.name);
            let (values, optional) = (sources.secrets.get(&one.name), one.optional.unwrap_or(false));
            files.extend(select(values, one.items.as_ref(), optional, default_mode, &what)?);
        } else if let Some(one) = &source.downward_api {
            downward(one.items.as_ref(), default_mode, &mut files)?;
        } else if let Some(one) = &source.service_account_token {
            let token = sources.tokens.get(&token_of(one));
            let token = token.ok_or_else(|| format!("volume {}: there is no token", volume.name))?;
            let content = Content { bytes: token.clone().into_bytes(), mode: mode(None, default_mode) };
            files.insert(one.path.clone(), content);
        } else {
            return Err(format!(
                "volume {}: of projected sources only configMap, secret, downwardAPI and serviceAccountToken are \
                 supported",
                volume.name
            ));
        }
    }
    Ok(Some(files))
}

/// A relative path that stays where it is: no `..`, not absolute.
fn inside(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    let normal = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if normal {
        Ok(path.to_owned())
    } else {
        Err(format!("path {path:?} must be relative and without \"..\""))
    }
}

/// `fsGroup`: makes a volume and all that is in it the group's, who may read, and write where the pod may; what is made there
/// later is the group's as well. A volume that is the group's already is looked through only `again` if its files have changed.
fn give_to(path: &Path, group: u32, writable: bool, again: bool) -> io::Result<()> {
    /// `S_ISGID`.
    const INHERIT: u32 = 0o2000;
    let known = fs::symlink_metadata(path)?;
    if known.is_symlink() {
        return Ok(());
    }
    let mut mode = known.mode() & 0o7777 | if writable { 0o660 } else { 0o440 };
    if known.is_dir() {
        if !again && known.gid() == group && known.mode() & INHERIT != 0 {
            return Ok(());
        }
        for entry in fs::read_dir(path)? {
            give_to(&entry?.path(), group, writable, again)?;
        }
        mode |= INHERIT | 0o110;
    }
    std::os::unix::fs::chown(path, None, Some(group))?;
    // Last, since a change of owner takes special bits away.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes the volumes that a container mounts, and says where they go.
pub(crate) fn prepare_volumes(
    dir: &PodDir,
    pod: &Pod,
    container: &Container,
    sources: &Sources<'_>,
    allow_host_paths: bool,
) -> Result<Vec<Mount>, String> {
    let said = |error: io::Error| error.to_string();
    let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
    let group = group.and_then(|group| u32::try_from(group).ok());
    let mut mounts = Vec::new();
    for volume in volumes_of(pod, container) {
        let directory = dir.volume(&volume.name);
        let mut source = directory.clone();
        let mut writable = false;
        let mut changed = false;
        if let Some(files) = content(pod, volume, sources)? {
            for (path, Content { bytes, mode }) in files {
                let path = directory.join(inside(&path)?);
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).map_err(said)?;
                }
                // What hasn't changed stays as it is: who watches the file isn't woken for nothing.
                if fs::read(&path).is_ok_and(|known| known == bytes) {
                    continue;
                }
                changed = true;
                write_atomically(&path, &bytes).map_err(said)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(said)?;
            }
            fs::create_dir_all(&directory).map_err(said)?;
        } else if volume.empty_dir.is_some() {
            writable = true;
            fs::create_dir_all(&directory).map_err(said)?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).map_err(said)?;
        } else if let Some(host) = &volume.host_path {
            if !allow_host_paths {
                return Err(format!(
                    "volume {}: hostPath shows the machine's files to the container: start the node with \
                     --allow-host-image to permit it",
                    volume.name
                ));
            }
            writable = true;
            source = PathBuf::from(&host.path);
        } else {
            return Err(format!(
                "volume {}: only emptyDir, configMap, secret, downwardAPI, projected and hostPath are supported",
                volume.name
            ));
        }
        if let Some(group) = group.filter(|_| volume.host_path.is_none()) {
            give_to(&directory, group, writable, changed)
                .map_err(|error| format!("securityContext.fsGroup: volume {}: {error}", volume.name))?;
        }
        for mount in container.volume_mounts.iter().flatten().filter(|mount| mount.name == volume.name) {
            let source = match mount.sub_path.as_deref().filter(|path| !path.is_empty()) {
                Some(path) => source.join(inside(path)?),
                None => source.clone(),
            };
            if writable && !source.exists() {
                fs::create_dir_all(&source).map_err(said)?;
            }
            mounts.push(Mount {
                source,
                target: PathBuf::from(&mount.mount_path),
                read_only: !writable || mount.read_only.unwrap_or(false),
                optional: false,
            });
        }
    }
    mounts.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": spec}))
            .expect("a Pod")
    }

    const NONE: Names<'_> = Names { servers: &[], domain: "cluster.local" };

    #[test]
    fn resolv_conf_names_the_clusters_servers_first() {
        let servers = ["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()];
        let names = Names { servers: &servers, domain: "example.test" };
        let with = |spec| resolv_conf(&pod(spec), "nameserver 192.0.2.1\n", names);
        let ours = "nameserver 10.96.0.10\nnameserver fd00:10:96::a\nsearch shop.svc.example.test svc.example.test example.test\n\
            options ndots:5\n";
        assert_eq!(with(json!({"containers": []})), ours);
        let host = json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        assert_eq!(with(host), ours);
        let more = json!({"containers": [], "dnsConfig": {"nameservers": ["192.0.2.53", "192.0.2.54"]}});
        assert!(
            with(more).starts_with(
                "nameserver 10.96.0.10\nnameserver fd00:10:96::a\nnameserver 192.0.2.53\nsearch"
            )
        );
        assert_eq!(with(json!({"containers": [], "dnsPolicy": "Default"})), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn resolv_conf_names_no_server_that_nobody_runs() {
        let text = resolv_conf(&pod(json!({"containers": []})), "", NONE);
        assert!(!text.contains("nameserver"), "{text}");
        assert!(
            text.contains("search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n")
        );
        let own = pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["192.0.2.53"], "searches": ["example.org"], "options": [{"name": "ndots", "value": "2"}]
        }}));
        assert_eq!(
            resolv_conf(&own, "nameserver 192.0.2.1\n", NONE),
            "nameserver 192.0.2.53\nsearch example.org\noptions ndots:2\n"
        );
    }

    #[test]
    fn a_pods_policy_says_whether_it_takes_the_machines_names() {
        let machine =
            "# made by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch lan\noptions edns0\n";
        let with = |spec| resolv_conf(&pod(spec), machine, NONE);
        assert_eq!(
            with(
                json!({"containers": [], "dnsPolicy": "Default", "dnsConfig": {"searches": ["example.org", "lan"]}})
            ),
            "nameserver 192.0.2.1\nsearch lan example.org\noptions edns0\n"
        );
        let host = with(json!({"containers": [], "hostNetwork": true}));
        assert_eq!(host, "nameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch lan\noptions edns0\n");
        let cluster =
            with(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}));
        assert!(
            cluster.contains("search shop.svc.cluster.local svc.cluster.local cluster.local lan\n"),
            "{cluster}"
        );
        assert!(!cluster.contains("nameserver"), "{cluster}");
        let many: Vec<String> = (0..40).map(|number| format!("s{number}.example")).collect();
        let many = with(json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"], "searches": many}}));
        assert_eq!((many.matches("nameserver").count(), many.matches(".example").count()), (3, 32));
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod = pod(json!({"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, &["10.1.0.1".parse().expect("an address")], "cluster.local");
        assert!(text.ends_with("10.1.0.1\th.s.shop.svc.cluster.local\th\n192.0.2.9\ta\tb\n"), "{text}");
        assert_eq!(hostname(&pod), "h");
    }

    #[test]
    fn a_long_name_is_cut_to_a_host_name() {
        let mut pod = pod(json!({"containers": []}));
        pod.metadata.name = Some(format!("{}-{}", "x".repeat(62), "y".repeat(40)));
        assert_eq!(hostname(&pod), "x".repeat(62));
    }

    #[test]
    fn a_config_map_becomes_files_and_a_missing_one_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let dir = PodDir(directory.path().to_owned());
        let pod = pod(json!({"containers": [], "volumes": [
            {"name": "conf", "configMap": {"name": "c", "items": [{"key": "k", "path": "sub/file"}]}},
            {"name": "scratch", "emptyDir": {}}
        ]}));
        let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp/x"}, {"name": "conf", "mountPath": "/tmp/conf"}
        ]}))
        .expect("a container");
        assert_eq!(references(&pod, &container).config_maps, ["c"]);
        let mut sources = Sources::default();
        let missing = prepare_volumes(&dir, &pod, &container, &sources, false);
        assert!(missing.is_err_and(|error| error.contains("ConfigMap \"c\"")));
        sources.config_maps.insert("c".into(), BTreeMap::from([("k".to_owned(), b"v".to_vec())]));
        let mounts = prepare_volumes(&dir, &pod, &container, &sources, false).expect("volumes");
        let seen: Vec<_> = mounts.iter().map(|mount| (mount.target.to_str(), mount.read_only)).collect();
        assert_eq!(seen, [(Some("/tmp/conf"), true), (Some("/tmp/x"), false)]);
        assert_eq!(fs::read_to_string(mounts[0].source.join("sub/file")).expect("the file"), "v");
    }
}
