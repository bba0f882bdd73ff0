//! From a container in a manifest to the order that a supervisor can carry out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use kube::api::Api;
use serde::de::DeserializeOwned;

use crate::env::{Sources, Values, environment, expand};
use crate::files::{self, prepare_etc, prepare_volumes, references};
use crate::image::{Image, Settings};
use crate::protocol::{Confinement, Console, EchoOrder, LastWords, Launch, Mount, PodDir, Program, Root};
use crate::runtime::Runtime;

/// Why a container can't be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// There is no such image.
    Image(String),
    /// Something that its manifest refers to is missing or not supported.
    Config(String),
}

/// The ports that an echo server listens on: those of its container, or 80.
pub(crate) fn echo_ports(container: &Container) -> (Vec<u16>, Vec<u16>) {
    let of = |protocol: &str| {
        let ports = container.ports.iter().flatten();
        let mine = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol);
        mine.filter_map(|port| u16::try_from(port.container_port).ok()).collect::<Vec<_>>()
    };
    let mut all: Vec<u16> = of("TCP").into_iter().chain(of("UDP")).collect();
    if all.is_empty() {
        all.push(80);
    }
    all.sort_unstable();
    all.dedup();
    // Each port over both: one manifest line is enough to try a Service of either protocol.
    (all.clone(), all)
}

/// What the manifest lets a container do.
pub(crate) fn confinement(pod: &Pod, container: &Container) -> Confinement {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let id = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let groups = of_pod.supplemental_groups.into_iter().flatten().chain(of_pod.fs_group);
    Confinement {
        privileged: own.privileged.unwrap_or(false),
        add: capabilities.add.unwrap_or_default(),
        drop: capabilities.drop.unwrap_or_default(),
        user: id(own.run_as_user.or(of_pod.run_as_user)),
        group: id(own.run_as_group.or(of_pod.run_as_group)),
        groups: groups.filter_map(|group| u32::try_from(group).ok()).collect(),
    }
}

/// Why a container may not run as this user, if `runAsNonRoot` says so; in a kubelet's words.
fn root_refusal(pod: &Pod, container: &Container, user: Option<u32>) -> Option<String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let wanted = own.and_then(|own| own.run_as_non_root).or(of_pod.and_then(|of_pod| of_pod.run_as_non_root));
    if wanted != Some(true) || user.is_some_and(|user| user != 0) {
        return None;
    }
    let said = own.and_then(|own| own.run_as_user).or(of_pod.and_then(|of_pod| of_pod.run_as_user));
    let why = match said {
        Some(_) => "container's runAsUser breaks non-root policy",
        None => "container has runAsNonRoot and image will run as root",
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (metadata, container) = (&pod.metadata, &container.name);
    let (name, namespace, uid) = (text(&metadata.name), text(&metadata.namespace), text(&metadata.uid));
    Some(format!("{why} (pod: \"{name}_{namespace}({uid})\", container: {container})"))
}

async fn read_all<K, F>(
    runtime: &Runtime,
    namespace: &str,
    names: &[String],
    data: F,
) -> Result<BTreeMap<String, Values>, Problem>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
    K: kube::Resource<DynamicType = ()>,
    F: Fn(K) -> Values,
{
    let mut all = BTreeMap::new();
    let api: Api<K> = Api::namespaced(runtime.client.clone(), namespace);
    for name in names {
        match tokio::time::timeout(Duration::from_secs(5), api.get_opt(name)).await {
            Ok(Ok(Some(object))) => drop(all.insert(name.clone(), data(object))),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return Err(Problem::Config(format!("read {name:?}: {error}"))),
            Err(_) => return Err(Problem::Config(format!("read {name:?}: the API doesn't answer"))),
        }
    }
    Ok(all)
}

/// Everything that a container needs is read, written and resolved. The caller fills in which start it is.
pub(crate) async fn launch(
    runtime: &Runtime,
    dir: &PodDir,
    pod: &Pod,
    container: &Container,
    addresses: &[IpAddr],
) -> Result<Launch, Problem> {
    let reference = container.image.clone().unwrap_or_default();
    let image = runtime.images.resolve(&reference).map_err(Problem::Image)?;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let names = references(pod, container);
    let config_maps = read_all(runtime, &namespace, &names.config_maps, |map: ConfigMap| {
        let texts = map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
        texts
            .chain(map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)))
            .collect()
    })
    .await?;
    let secrets = read_all(runtime, &namespace, &names.secrets, |secret: Secret| {
        secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect()
    })
    .await?;
    let mut tokens = BTreeMap::new();
    for (audience, seconds) in names.tokens {
        let token =
            runtime.tokens.get(&runtime.client, pod, &audience, seconds).await.map_err(Problem::Config)?;
        tokens.insert((audience, seconds), token);
    }
    let services = runtime.services.state();
    let linked = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let visible = |service: &Service| {
        let (of, name) = (service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        linked && of == Some(&namespace) || of == Some("default") && name == Some("kubernetes")
    };
    let sources = Sources {
        services: services.iter().map(|heard| &heard.0).filter(|service| visible(service)).collect(),
        config_maps,
        secrets,
        tokens,
        pod_ips: addresses.to_vec(),
        host_ips: runtime.config.node_addresses.clone(),
    };
    let mut env = environment(pod, container, &sources).map_err(Problem::Config)?;
    let mut confinement = confinement(pod, container);
    let mut directory = container.working_dir.clone().unwrap_or_default();
    let mut last_words = None;
    let (program, root, mounts) = match image {
        Image::Echo { abrupt } => {
            let (tcp, udp) = echo_ports(container);
            let grace =
                pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
            let grace = u64::try_from(grace).unwrap_or(30);
            let order = EchoOrder { tcp, udp, addresses: addresses.to_vec(), abrupt, grace };
            (Program::Echo(order), Root::Empty, Vec::new())
        }
        Image::Host | Image::Directory { .. } => {
            let (root, settings) = match image {
                Image::Directory { root, settings } => (Some(root), settings),
                _ => (None, Settings::default()),
            };
            // Expanded is what the manifest says: the image's own words are taken as they are.
            let of = |words: &Option<Vec<String>>| -> Vec<String> {
                words.iter().flatten().map(|word| expand(word, &env)).collect()
            };
            let argv = settings.words(&of(&container.command), &of(&container.args));
            if argv.is_empty() {
                return Err(Problem::Config(format!(
                    "container {}: image {reference:?} has no program of its own; set command",
                    container.name
                )));
            }
            let said = |error: std::io::Error| Problem::Config(format!("write the pod's files: {error}"));
            let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
            let hostname = if host_network { runtime.config.node_name.clone() } else { files::hostname(pod) };
            let names =
                files::Names { servers: &runtime.config.cluster_dns, domain: &runtime.config.cluster_domain };
            let mut mounts = prepare_etc(dir, pod, addresses, &hostname, names).map_err(said)?;
            let host_paths = runtime.config.allow_host_image;
            mounts
                .extend(prepare_volumes(dir, pod, container, &sources, host_paths).map_err(Problem::Config)?);
            let policy = container.termination_message_policy.as_deref();
            last_words = Some(if policy == Some("FallbackToLogsOnError") {
                LastWords::OrLogs
            } else {
                LastWords::File
            });
            mounts.push(Mount {
                source: dir.last_words(&container.name),
                target: container
                    .termination_message_path
                    .clone()
                    .unwrap_or_else(|| "/dev/termination-log".to_owned())
                    .into(),
                read_only: false,
                optional: true,
            });
            let path_is_ours = !container.env.iter().flatten().any(|variable| variable.name == "PATH");
            for variable in settings.env.iter().flatten() {
                let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                if !env.contains_key(name) || name == "PATH" && path_is_ours {
                    env.insert(name.to_owned(), value.to_owned());
                }
            }
            if directory.is_empty() {
                directory = settings.working_dir.clone();
            }
            let root = match root {
                Some(root) => {
                    if confinement.user.is_none() {
                        let (user, group) = settings.ids(&root).map_err(Problem::Config)?;
                        confinement.user = user;
                        confinement.group = confinement.group.or(group);
                    }
                    let own = container.security_context.as_ref();
                    let read_only = own.and_then(|own| own.read_only_root_filesystem).unwrap_or(false);
                    Root::Image { directory: root, read_only }
                }
                None => Root::Host,
            };
            (Program::Exec(argv), root, mounts)
        }
    };
    if let Some(problem) = root_refusal(pod, container, confinement.user) {
        return Err(Problem::Config(problem));
    }
    if directory.is_empty() {
        directory = "/".to_owned();
    }
    Ok(Launch {
        name: container.name.clone(),
        id: String::new(),
        attempt: 0,
        streak: 0,
        image: reference,
        program,
        root,
        env: env.into_iter().collect(),
        directory: PathBuf::from(directory),
        mounts,
        confinement,
        console: Console {
            stdin: container.stdin.unwrap_or(false),
            once: container.stdin_once.unwrap_or(false),
            terminal: container.tty.unwrap_or(false),
        },
        last_words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_echo_server_listens_on_every_port_of_its_container_over_both_protocols() {
        let container = |ports| -> Container {
            serde_json::from_value(json!({"name": "c", "ports": ports})).expect("a container")
        };
        assert_eq!(echo_ports(&container(json!([]))), (vec![80], vec![80]));
        let two = container(json!([{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]));
        assert_eq!(echo_ports(&two), (vec![53, 8080], vec![53, 8080]));
    }

    #[test]
    fn a_containers_security_context_comes_before_its_pods() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {}, "spec": {"containers": [], "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3}}
        }))
        .expect("a Pod");
        let container: Container = serde_json::from_value(json!({
            "name": "c", "securityContext": {"runAsUser": 5, "capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}}
        }))
        .expect("a container");
        let confinement = confinement(&pod, &container);
        assert_eq!((confinement.user, confinement.group), (Some(5), Some(2)));
        assert_eq!((confinement.groups, confinement.privileged), (vec![3], false));
        assert_eq!((confinement.drop, confinement.add), (vec!["ALL".to_owned()], vec!["NET_RAW".to_owned()]));
    }

    #[test]
    fn who_must_not_run_as_root_is_refused_and_told_by_what() {
        let with = |of_pod: serde_json::Value, own: serde_json::Value, image: Option<u32>| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"containers": [], "securityContext": of_pod}
            }))
            .expect("a Pod");
            let container: Container =
                serde_json::from_value(json!({"name": "c", "securityContext": own})).expect("a container");
            root_refusal(&pod, &container, confinement(&pod, &container).user.or(image))
        };
        let strict = || json!({"runAsNonRoot": true});
        let image = "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)";
        assert_eq!(with(strict(), json!({}), None).as_deref(), Some(image));
        assert_eq!(with(strict(), json!({}), Some(0)).as_deref(), Some(image));
        let said = with(strict(), json!({"runAsUser": 0}), None).expect("a refusal");
        assert!(said.starts_with("container's runAsUser breaks non-root policy (pod: "), "{said}");
        for (of_pod, own, image) in [
            (strict(), json!({"runAsUser": 1000}), None),
            (strict(), json!({}), Some(1000)),
            (strict(), json!({"runAsNonRoot": false}), None),
            (json!({}), json!({}), None),
        ] {
            assert_eq!(with(of_pod.clone(), own.clone(), image), None, "{of_pod} {own}");
        }
    }
}
