//! What is applied to somebody's Kubernetes: the manifests in deploy/, and the chart that says the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use portolan_agent::servers::HEALTHZ_PORT;
use serde_json::Value;

use crate::definitions::helm;
use crate::map::{read, root};

/// Objects by kind and name.
type Objects = BTreeMap<(String, String), Value>;

/// The objects of a text of YAML documents.
fn objects(text: &str) -> Objects {
    let documents: Vec<Option<Value>> = serde_saphyr::from_multiple(text).expect("YAML");
    let named = |object: Value| {
        let word = |value: &Value| value.as_str().expect("a kind and a name").to_owned();
        ((word(&object["kind"]), word(&object["metadata"]["name"])), object)
    };
    documents.into_iter().flatten().map(named).collect()
}

fn manifests() -> Objects {
    let mut all = objects(&read("deploy/portolan-agent.yaml"));
    all.extend(objects(&read("deploy/portolan-dns.yaml")));
    all
}

/// The container of one of the manifests' objects.
fn container(kind: &str, name: &str) -> Value {
    manifests()[&(kind.to_owned(), name.to_owned())]["spec"]["template"]["spec"]["containers"][0].clone()
}

#[test]
fn the_manifests_name_the_image_that_is_built() {
    let image = format!("localhost/portolan:{}", env!("CARGO_PKG_VERSION"));
    for (kind, name) in [("DaemonSet", "portolan-agent"), ("Deployment", "portolan-dns")] {
        assert_eq!(container(kind, name)["image"], image.as_str(), "{kind} {name}");
    }
    let chart: Value = serde_saphyr::from_str(&read("deploy/chart/Chart.yaml")).expect("YAML");
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn kubelets_ask_the_agent_where_it_answers() {
    let agent = container("DaemonSet", "portolan-agent");
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/healthz")] {
        let asked = &agent[probe]["httpGet"];
        assert_eq!((&asked["port"], &asked["path"]), (&HEALTHZ_PORT.into(), &path.into()), "{probe}");
    }
}

#[test]
fn the_chart_renders_the_manifests() {
    const PROMISE: &str = "the chart renders the manifests";
    let Some(program) = helm() else {
        portolan_sys::trial::skipped(PROMISE, "no helm on the PATH, nor in HELM");
        return;
    };
    let mut rendered = objects(&render(&program, &["--set", "apiServer.host=192.0.2.1,dns.enabled=true"]));
    // What the manifest has its user make.
    let address =
        rendered.remove(&("ConfigMap".to_owned(), "portolan-agent".to_owned())).expect("a ConfigMap");
    let data = serde_json::json!({"KUBERNETES_SERVICE_HOST": "192.0.2.1", "KUBERNETES_SERVICE_PORT": "6443"});
    assert_eq!(address["data"], data);
    assert_eq!(rendered, manifests());
}

fn render(program: &Path, arguments: &[&str]) -> String {
    let home = tempfile::tempdir().expect("a folder for Helm's files");
    let mut command = Command::new(program);
    command.current_dir(root()).env("HOME", home.path()).env_remove("KUBECONFIG");
    command.args(["template", "portolan", "deploy/chart", "--namespace", "kube-system"]).args(arguments);
    let output = command.output().expect("running helm");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
