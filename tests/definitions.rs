//! Kinds that clients define, by kubectl and by Helm.
//!
//! `HELM` names the program; without it, the `helm` on the PATH is used.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Lab, text};
use crate::kubectl::with_each_of;
use crate::map::root;

const WIDGETS: &str = "tests/chart/crds/widgets.yaml";

fn widget(name: &str, size: &str) -> String {
    format!(
        "apiVersion: workshop.example.com/v1\nkind: Widget\nmetadata: {{ name: {name} }}\nspec: {{ size: {size} }}\n"
    )
}

#[test]
fn kubectl_defines_kinds_and_uses_them() {
    with_each_of("kubectl defines kinds and uses them", "defines", &[], |k| {
        assert_eq!(
            k.run(&format!("apply -f {WIDGETS}")).trim(),
            "customresourcedefinition.apiextensions.k8s.io/widgets.workshop.example.com created"
        );
        k.run("wait --for condition=established --timeout=30s crd/widgets.workshop.example.com");
        assert!(k.run("get crd").contains("widgets.workshop.example.com"));
        assert!(k.run("api-resources --api-group=workshop.example.com").contains("wd"));

        // It is explained, made by either apply, and shown in its columns.
        let explained = k.run("explain widget.spec");
        assert!(
            explained.contains("What is wanted of the widget.") && explained.contains("How large it is."),
            "{explained}"
        );
        k.applies(&widget("a", "small"));
        k.applies(&widget("a", "large"));
        let applied = k.feed("apply --server-side -f -", &widget("b", "small"));
        assert!(applied.status.success(), "{}", text(&applied));
        let table = k.run("get wd");
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows, [vec!["NAME", "SIZE"], vec!["a", "large"], vec!["b", "small"]], "{table}");
        assert_eq!(k.run("get widget a -o jsonpath={.spec.count}"), "1");
        assert!(k.run("get all").contains("widget.workshop.example.com/a"));
        let refused = k.fails("apply -f -", &widget("c", "huge"));
        assert!(refused.contains("spec.size: Unsupported value: \"huge\""), "{refused}");
        let unknown = k.fails("apply -f -", &widget("c", "small").replace("size:", "bulk: 1, size:"));
        assert!(unknown.contains("unknown field \"spec.bulk\""), "{unknown}");
        k.run("label widget a shelf=top");
        k.run("patch widget a --subresource=status --type=merge -p {\"status\":{\"ready\":true}}");
        assert_eq!(k.run("get widget a -o jsonpath={.status.ready}"), "true");

        // What a widget owns goes with it; a namespace is emptied of widgets; quotas count them.
        let uid = k.run("get widget a -o jsonpath={.metadata.uid}");
        k.applies(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: owned\n  ownerReferences: [ {{ apiVersion: workshop.example.com/v1, \
             kind: Widget, name: a, uid: {uid} }} ]\n"
        ));
        k.run("delete widget a");
        k.run("wait --for=delete --timeout=60s configmap/owned");
        k.run("create namespace shop");
        k.run("create quota few --hard=count/widgets.workshop.example.com=1 -n shop");
        let made = k.feed("create -n shop -f -", &widget("one", "small"));
        assert!(made.status.success(), "{}", text(&made));
        let refused = k.fails("create -n shop -f -", &widget("two", "small"));
        assert!(refused.contains("exceeded quota: few"), "{refused}");
        k.run("delete namespace shop --timeout=60s");

        // With the definition its objects go, and nobody knows the kind.
        k.run("delete crd widgets.workshop.example.com --timeout=60s");
        let gone = k.fails("get widgets", "");
        assert!(gone.contains("could not find the requested resource"), "{gone}");
    });
}

/// The program, if there is one.
pub fn helm() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("HELM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("helm")).find(|p| p.is_file())
}

#[test]
fn helm_installs_upgrades_rolls_back_and_uninstalls() {
    const PROMISE: &str = "Helm installs, upgrades, rolls back and uninstalls";
    let Some(program) = helm() else {
        portolan_sys::trial::skipped(PROMISE, "no helm on the PATH, nor in HELM");
        return;
    };
    let Some(lab) = Lab::up(PROMISE, "helm", &[]) else { return };
    let home = tempfile::tempdir().expect("a folder for Helm's files");
    let run = |arguments: &str| {
        let mut command = Command::new(&program);
        command.current_dir(root()).env("KUBECONFIG", lab.kubeconfig()).env("HOME", home.path());
        let output = command.args(arguments.split_whitespace()).output().expect("running helm");
        assert!(output.status.success(), "helm {arguments}: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let read = |kind: &str, jsonpath: &str| {
        let manifest = run(&format!("get {kind} shop -n workshop"));
        manifest.lines().filter(|line| line.contains(jsonpath)).map(str::to_owned).collect::<Vec<_>>()
    };
    let installed = run("install shop tests/chart -n workshop --create-namespace --wait --timeout 120s");
    assert!(installed.contains("STATUS: deployed"), "{installed}");
    let upgraded =
        run("upgrade shop tests/chart -n workshop --set size=large,replicas=2 --wait --timeout 120s");
    assert!(upgraded.contains("REVISION: 2"), "{upgraded}");
    assert!(read("manifest", "size:").iter().any(|line| line.contains("large")));
    run("rollback shop 1 -n workshop --wait --timeout 120s");
    assert!(read("manifest", "size:").iter().all(|line| !line.contains("large")));
    let listed = run("list -n workshop");
    let row: Vec<&str> = listed.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!((row.first(), row.get(2)), (Some(&"shop"), Some(&"3")), "{listed}");
    assert_eq!(run("history shop -n workshop").lines().count(), 4);
    run("uninstall shop -n workshop --wait --timeout 120s");
    assert_eq!(run("list -n workshop --all").lines().count(), 1, "nothing is left");
}
