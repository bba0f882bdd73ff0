//! What a pod promises.

use serde_json::{Value, json};

use crate::kind::find;
use crate::patch::merge;

fn pod(spec: Value) -> Value {
    let mut out = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d"},
        "spec": {"containers": [{"name": "a", "image": "echo"}]}});
    merge(&mut out, &json!({"spec": spec})).unwrap();
    find("", "v1", "pods").unwrap().prepare_create(&mut out);
    out
}

fn errors(object: &Value) -> String {
    let found = find("", "v1", "pods").unwrap().check_create(object);
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_plain_pod_gets_the_defaults() {
    let made = pod(json!({"containers": [{"name": "a", "image": "x:1", "ports": [{"containerPort": 80}],
        "readinessProbe": {"httpGet": {"port": 80}}}]}));
    assert_eq!(
        made["spec"],
        json!({
            "containers": [{
                "name": "a", "image": "x:1", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "readinessProbe": {
                    "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "resources": {}}],
            "enableServiceLinks": true, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "securityContext": {},
        })
    );
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(errors(&made), "");
}

#[test]
fn an_accounts_older_name_counts_where_the_newer_says_nothing() {
    for (newer, older, account) in [("a", "", "a"), ("", "b", "b"), ("a", "b", "a")] {
        let mut spec = json!({"serviceAccountName": newer, "serviceAccount": older});
        super::default_spec(&mut spec);
        assert_eq!(
            [&spec["serviceAccountName"], &spec["serviceAccount"]],
            [account; 2],
            "{newer:?} {older:?}"
        );
    }
}

#[test]
fn an_image_without_a_tag_is_always_pulled() {
    for (image, policy) in [
        ("echo", "Always"),
        ("echo:latest", "Always"),
        ("echo:1", "IfNotPresent"),
        ("host:5000/echo", "Always"),
        ("echo@sha256:0", "IfNotPresent"),
    ] {
        let made = pod(json!({"containers": [{"name": "a", "image": image}]}));
        assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
    }
}

#[test]
fn quality_of_service_follows_requests_and_limits() {
    let of =
        |resources: Value| pod(json!({"containers": [{"name": "a", "image": "x", "resources": resources}]}));
    let both = of(json!({"limits": {"cpu": 1, "memory": "1Gi"}}));
    assert_eq!(both["status"]["qosClass"], "Guaranteed");
    assert_eq!(both["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1", "memory": "1Gi"}));
    assert_eq!(of(json!({"requests": {"cpu": "1"}}))["status"]["qosClass"], "Burstable");
}

#[test]
fn each_rule_of_a_pod_has_its_path_and_text() {
    let rows = [
        (json!({"containers": null}), "spec.containers: Required value"),
        (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
        (json!({"containers": [{"image": "x"}]}), "spec.containers[0].name: Required value"),
        (
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 70000}]}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "livenessProbe": {}}]}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
    ];
    for (spec, text) in rows {
        assert_eq!(errors(&pod(spec.clone())), text, "{spec}");
    }
}

#[test]
fn only_images_deadline_and_added_tolerations_change_in_a_pod() {
    let kind = find("", "v1", "pods").unwrap();
    let old = pod(json!({"tolerations": [{"key": "a", "operator": "Exists"}]}));
    let change = |spec: Value| {
        let mut new = old.clone();
        merge(&mut new, &json!({"spec": spec})).unwrap();
        kind.prepare_update(&mut new, &old);
        let generation = new["metadata"]["generation"].as_i64().unwrap();
        (kind.check_update(&new, &old), generation)
    };
    let image = json!({"containers": [{"name": "a", "image": "y", "imagePullPolicy": "Always"}]});
    assert_eq!(change(image), (vec![], 2));
    let mut tolerations = old["spec"]["tolerations"].as_array().unwrap().clone();
    tolerations.push(json!({"operator": "Exists"}));
    assert_eq!(change(json!({"tolerations": tolerations})), (vec![], 2));
    tolerations.remove(0);
    let (found, _) = change(json!({"tolerations": tolerations}));
    assert_eq!(
        found[0].to_string(),
        "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
    );
    assert_eq!(change(json!({})), (vec![], 1));
    let (found, _) = change(json!({"restartPolicy": "Never"}));
    assert!(
        found[0].to_string().starts_with("spec: Forbidden: pod updates may not change fields other than")
    );
    let (found, _) =
        change(json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}));
    assert_eq!(
        found[0].to_string(),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );
}

#[test]
fn a_pod_is_bound_once() {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut bound = pod(json!({}));
    super::bind(&mut bound, "n1", now).unwrap();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["status"], "True");
    assert_eq!(super::bind(&mut bound, "n2", now).unwrap_err(), "pod p is already assigned to node \"n1\"");
}

#[test]
fn a_pods_line_tells_what_kubectl_tells() {
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let container =
        |state: Value, ready: bool| json!({"name": "a", "ready": ready, "restartCount": 0, "state": state});
    let rows: Vec<(Value, Value, &str, &str, &str)> = vec![
        (json!({"phase": "Pending"}), json!({}), "0/1", "Pending", "0"),
        (
            json!({"phase": "Pending", "containerStatuses": [container(json!({"waiting": {"reason": "ContainerCreating"}}), false)]}),
            json!({}),
            "0/1",
            "ContainerCreating",
            "0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [container(json!({"running": {}}), true)]}),
            json!({}),
            "1/1",
            "Running",
            "0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}}]}),
            json!({}),
            "0/1",
            "CrashLoopBackOff",
            "3 (5m ago)",
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), false)]}),
            json!({}),
            "0/1",
            "Completed",
            "0",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [container(json!({"terminated": {"exitCode": 3}}), false)]}),
            json!({}),
            "0/1",
            "ExitCode:3",
            "0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [container(json!({"running": {}}), true)]}),
            json!({"deletionTimestamp": "2026-01-01T00:59:00Z"}),
            "1/1",
            "Terminating",
            "0",
        ),
    ];
    for (status, extra, ready, word, restarts) in rows {
        let mut object = pod(json!({}));
        object["status"] = status.clone();
        merge(&mut object, &json!({"metadata": extra})).unwrap();
        let line = super::summary(&object, now);
        assert_eq!(
            (line.ready.as_str(), line.status.as_str(), line.restarts.as_str()),
            (ready, word, restarts),
            "{status}"
        );
    }
}

#[test]
fn a_pod_that_initializes_says_how_far_it_is() {
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let mut object =
        pod(json!({"initContainers": [{"name": "i", "image": "x"}, {"name": "j", "image": "x"}]}));
    object["status"] = json!({"phase": "Pending", "initContainerStatuses": [
        {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]});
    assert_eq!(super::summary(&object, now).status, "Init:1/2");
    object["status"]["initContainerStatuses"][1]["state"] =
        json!({"terminated": {"exitCode": 1, "reason": "Error"}});
    assert_eq!(super::summary(&object, now).status, "Init:Error");
}
