//! The real kubectl against a detached lab: what its users type, and what they read.
//!
//! `KUBECTL` names the programs, separated by colons; without it, the `kubectl` on the PATH is used.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Lab, text};
use crate::map::root;

/// One kubectl, for one lab.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: tempfile::TempDir,
}

impl Kubectl {
    /// The program with these arguments, split at spaces.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(root()).env("KUBECONFIG", &self.kubeconfig).env("HOME", self.cache.path());
        command.arg(format!("--cache-dir={}", self.cache.path().display()));
        command.args(arguments.split_whitespace());
        command
    }

    /// Runs a command to its end.
    pub fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("running kubectl")
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn run(&self, arguments: &str) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "kubectl {arguments}: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs a command to its end with something to read.
    pub fn feed(&self, arguments: &str, input: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("running kubectl");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("writing to kubectl");
        child.wait_with_output().expect("kubectl's output")
    }

    /// Applies a manifest.
    pub fn applies(&self, manifest: &str) {
        let output = self.feed("apply -f -", manifest);
        assert!(output.status.success(), "kubectl apply: {}", text(&output));
    }

    /// Runs a command that must fail; gives what it said.
    pub fn fails(&self, arguments: &str, input: &str) -> String {
        let output = self.feed(arguments, input);
        assert!(!output.status.success(), "kubectl {arguments} should have failed: {}", text(&output));
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

fn programs() -> Vec<PathBuf> {
    if let Ok(named) = std::env::var("KUBECTL") {
        return std::env::split_paths(&named).collect();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|p| p.is_file()).into_iter().collect()
}

/// Runs `test` with each kubectl there is, each against a lab of its own.
fn with_each(promise: &str, name: &str, test: impl Fn(&Kubectl)) {
    with_each_of(promise, name, &["-f", "examples/"], test);
}

/// [`with_each`], with these options for the labs.
pub fn with_each_of(promise: &str, name: &str, options: &[&str], test: impl Fn(&Kubectl)) {
    let programs = programs();
    if programs.is_empty() {
        portolan_sys::trial::skipped(promise, "no kubectl on the PATH, nor in KUBECTL");
        return;
    }
    for program in programs {
        let Some(lab) = Lab::up(promise, name, options) else { return };
        let cache = tempfile::tempdir().expect("a folder for kubectl's cache");
        let kubectl = Kubectl { program, kubeconfig: lab.kubeconfig(), cache };
        println!("{}", kubectl.run("version"));
        test(&kubectl);
    }
}

/// The words of each line.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn kubectl_reads_changes_and_removes_as_on_kubernetes() {
    with_each("kubectl reads, changes and removes as on Kubernetes", "kubectl", |k| {
        // get, in every form
        let pods = k.run("get pods");
        assert_eq!(rows(&pods)[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        assert_eq!(rows(&pods)[1][1..4], ["1/1", "Running", "0"]);
        let wide = k.run("get pods -o wide");
        assert!(rows(&wide)[0].ends_with(&["READINESS", "GATES"]), "{wide}");
        let services = k.run("get services");
        assert_eq!(rows(&services)[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
        assert!(services.contains("8080:30163/TCP"), "{services}");
        assert!(rows(&k.run("get nodes")).iter().skip(1).all(|row| row[1] == "Ready"));
        assert!(k.run("get deployment echo-hostname -o yaml").contains("observedGeneration"));
        assert_eq!(
            k.run("get service hostname-service -o json -o jsonpath={.spec.ports[0].nodePort}"),
            "30163"
        );
        assert!(
            k.run("get pods -l app=echo-hostname -o name")
                .lines()
                .all(|line| line.starts_with("pod/echo-hostname-"))
        );
        assert_eq!(k.run("get pods -l app=none -o name"), "");
        assert!(k.run("get pods -A").contains("default"));
        assert!(k.run("get all").contains("deployment.apps/echo-hostname"));
        assert!(
            k.run("get endpointslices,endpoints,events,namespaces,configmaps,serviceaccounts,rs,leases -A")
                .len()
                > 100
        );

        // describe
        let described = k.run("describe service hostname-service");
        assert!(described.contains("NodePort:") && described.contains("30163/TCP"), "{described}");
        let described = k.run("describe pods -l app=echo-hostname");
        assert!(described.contains("Scheduled") && described.contains("Started"), "{described}");
        assert!(k.run("describe deployment echo-hostname").contains("ScalingReplicaSet"));
        assert!(k.run("describe node node-1").contains("InternalIP"));

        // logs
        let logs = k.run("logs deployment/echo-hostname");
        assert!(!logs.is_empty(), "a pod of `echo` says where it listens");
        assert_eq!(k.run("logs deployment/echo-hostname --tail=1").lines().count(), 1);

        // scale, rollout
        k.run("scale deployment echo-hostname --replicas=4");
        k.run("rollout status deployment echo-hostname --timeout=60s");
        assert_eq!(k.run("get deployment echo-hostname -o jsonpath={.status.readyReplicas}"), "4");
        k.run("scale deployment echo-hostname --replicas=3");
        k.run("rollout restart deployment echo-hostname");
        let status = k.run("rollout status deployment echo-hostname --timeout=60s");
        assert!(status.contains("successfully rolled out"), "{status}");
        assert!(k.run("rollout history deployment echo-hostname").contains('2'));
        k.run("rollout undo deployment echo-hostname");
        k.run("rollout status deployment echo-hostname --timeout=60s");
        k.run("wait --for=condition=Available deployment/echo-hostname --timeout=60s");

        // patch and label
        k.run(r#"patch service hostname-cluster-ip -p {"metadata":{"annotations":{"by":"strategic"}}}"#);
        k.run(r#"patch service hostname-cluster-ip --type=merge -p {"metadata":{"annotations":{"by":"merge"}}}"#);
        k.run(r#"patch service hostname-cluster-ip --type=json -p [{"op":"test","path":"/metadata/annotations/by","value":"merge"}]"#);
        assert!(k.run("label service hostname-cluster-ip tier=front").contains("labeled"));
        assert!(k.run("get services -l tier=front").contains("hostname-cluster-ip"));
        assert!(k.run("label service hostname-cluster-ip tier-").contains("unlabeled"));

        // apply again changes nothing; diff finds nothing; explain-like discovery works
        assert!(
            k.run("apply -f examples/")
                .lines()
                .all(|line| line.ends_with("unchanged") || line.ends_with("configured"))
        );
        assert!(k.run("apply -f examples/").lines().all(|line| line.ends_with("unchanged")));
        assert!(k.run("api-resources").contains("endpointslices"));
        assert!(k.run("cluster-info").contains("running at"));

        // watch: a change made now is seen by a watch begun before
        let mut watch =
            k.command("get configmaps -w --no-headers").stdout(Stdio::piped()).spawn().expect("a watch");
        let seen = await_line(watch.stdout.take().expect("a pipe"), "watched", || {
            k.applies(r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"watched"}}"#);
        });
        let _ = watch.kill();
        let _ = watch.wait();
        assert!(seen, "the watch didn't show the new ConfigMap");

        // delete
        assert!(k.run("delete configmap watched").contains("deleted"));
        assert!(k.run("delete -f examples/ --timeout=60s").contains("hostname-service"));
        assert_eq!(k.run("get services -o name").trim(), "service/kubernetes");
        k.run("wait --for=delete pod -l app=echo-hostname --timeout=60s");
        k.applies(r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"gone"}}"#);
        k.run("delete namespace gone --timeout=60s");
        assert!(k.fails("get namespace gone", "").contains("(NotFound)"));
    });
}

/// Waits until a line with `word` comes out of the pipe; `cause` makes it come, once something was read or shortly after.
fn await_line(pipe: impl std::io::Read + Send + 'static, word: &str, cause: impl FnOnce()) -> bool {
    use std::io::BufRead;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::BufReader::new(pipe).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    // The watch first prints what is there already (kube-root-ca.crt): from then on it misses nothing.
    let _ = told.recv_timeout(Duration::from_secs(20));
    cause();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        match told.recv_timeout(Duration::from_secs(1)) {
            Ok(line) if line.contains(word) => return true,
            _ => {}
        }
    }
    false
}

#[test]
fn a_bad_manifest_gets_kubectls_usual_error_with_the_fields_path() {
    with_each("a bad manifest gets kubectl's usual error with the field's path", "bad", |k| {
        let service =
            |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{ name: bad }}\nspec: {spec}\n");
        for (manifest, said) in [
            (service("{ ports: [ { port: 70000 } ] }"), "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"),
            (
                service("{ type: NodePort, ports: [ { port: 80, nodePort: 30163 } ] }"),
                "spec.ports[0].nodePort: Invalid value: 30163: provided port is already allocated",
            ),
            (
                service("{ type: NodePort, ports: [ { port: 80, nodePort: 80 } ] }"),
                "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
            ),
            (service("{ portz: [ { port: 80 } ] }"), "unknown field \"spec.portz\""),
            (service("{ ports: [ { port: 80, prot: TCP } ] }"), "unknown field \"spec.ports[0].prot\""),
            (service("{ selector: { \"a b\": c }, ports: [ { port: 80 } ] }"), "spec.selector: Invalid value: \"a b\""),
            (service("{}"), "spec.ports: Required value"),
            (
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: bad }\nspec: { selector: { matchLabels: { a: b } }, template: { metadata: { labels: { a: c } }, spec: { containers: [ { name: c, image: echo } ] } } }\n".to_owned(),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
            ),
        ] {
            let error = k.fails("apply -f -", &manifest);
            assert!(error.contains(said), "expected {said:?} in {error:?}");
        }
        assert!(Path::new(&k.kubeconfig).exists());
        assert!(
            k.run("get services -o name").lines().all(|line| line != "service/bad"),
            "nothing of it was kept"
        );
    });
}
