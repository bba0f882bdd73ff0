//! kubectl in pods: exec, attach, cp, port-forward, proxy, by way of the server and the pod's node.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Output, Stdio};
use std::time::Duration;

use crate::harness::text;
use crate::kubectl::{Kubectl, with_each_of};

/// A pod with the machine's programs that serves its files on port 8000, one that repeats what it hears, and a Service.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: files, labels: { app: files } }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: echo
    ports: [ { containerPort: 8000, name: http } ]
    readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 1 }
  - { name: sh, image: host, command: [ tail, -f, /dev/null ], env: [ { name: WHO, value: me } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: parrot }
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers: [ { name: cat, image: host, stdin: true, stdinOnce: true, command: [ cat ] } ]
---
apiVersion: v1
kind: Service
metadata: { name: files }
spec: { selector: { app: files }, ports: [ { port: 80, targetPort: http } ] }
"#;

#[test]
fn kubectl_runs_programs_in_pods_and_reaches_their_ports() {
    with_each_of(
        "kubectl runs programs in pods and reaches their ports",
        "remote",
        &["--allow-host-image"],
        |k| {
            k.applies(PODS);
            k.run("wait --for=condition=Ready pod --all --timeout=60s");
            for websockets in ["true", "false"] {
                runs_programs(k, websockets);
                forwards_ports(k, websockets);
            }
            copies_files(k);
            attaches(k);
            proxies(k);
        },
    );
}

/// `kubectl exec` of a shell's script in the container with programs.
fn exec(k: &Kubectl, websockets: &str, options: &str, script: &str, input: &str) -> Output {
    let mut command = k.command(&format!("exec files -c sh {options} --"));
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets).args(["sh", "-c", script]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("running kubectl");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("kubectl's output")
}

fn runs_programs(k: &Kubectl, websockets: &str) {
    let output = exec(k, websockets, "-i", "cat; echo $WHO >&2; hostname; exit 102", "typed\n");
    assert_eq!(output.status.code(), Some(102), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "typed\nfiles\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "me\ncommand terminated with exit code 102\n");
    let much = "0123456789abcdef".repeat(1 << 16);
    let output = exec(k, websockets, "-i", "cat", &much);
    assert!(output.status.success() && output.stdout == much.as_bytes(), "{} bytes", output.stdout.len());
    std::thread::scope(|scope| {
        for number in 0..6 {
            scope.spawn(move || {
                let output = exec(k, websockets, "", &format!("echo {number}; exit {number}"), "");
                assert_eq!(output.status.code(), Some(number), "{}", text(&output));
                assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n"));
            });
        }
    });
    let refused = k.fails("exec files -c echo -- ls", "");
    assert!(refused.contains("is built in and has no programs"), "{refused}");
    let refused = k.fails("exec files -c sh -- no-such-program", "");
    assert!(refused.contains("executable file not found in $PATH"), "{refused}");
}

fn copies_files(k: &Kubectl) {
    let folder = tempfile::tempdir().expect("a folder");
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(&there, &content).expect("written");
    k.run(&format!("cp {} files:/tmp/copied -c sh", there.display()));
    k.run(&format!("cp files:/tmp/copied {} -c sh", back.display()));
    assert!(std::fs::read(&back).expect("the copy") == content, "what comes back is what went there");
}

fn attaches(k: &Kubectl) {
    let output = k.feed("attach parrot -i", "a line\n");
    assert!(output.status.success() && output.stdout == b"a line\n", "{}", text(&output));
    k.run("wait --for=jsonpath={.status.phase}=Succeeded pod/parrot --timeout=60s");
    let mut command = k.command("run asked -i --rm --restart=Never --image=host --command --");
    command.args(["sh", "-c", "read line; echo got $line; exit 4"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("running kubectl");
    child.stdin.take().expect("a pipe").write_all(b"it\n").expect("written");
    let output = child.wait_with_output().expect("kubectl's output");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("got it\n"), "{}", text(&output));
}

/// `kubectl port-forward`, ended when dropped.
struct Forward {
    child: Child,
    port: u16,
    /// Held open: kubectl ends when nobody reads what it goes on to say.
    _said: BufReader<ChildStdout>,
}

impl Forward {
    fn begin(k: &Kubectl, websockets: &str, what: &str) -> Forward {
        let mut command = k.command(&format!("port-forward {what}"));
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("running kubectl");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        said.read_line(&mut line).expect("a line");
        // Forwarding from 127.0.0.1:40123 -> 8000
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let port = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
        Forward { child, port, _said: said }
    }

    /// One line there, and everything back.
    fn ask(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("kubectl listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        let _ = stream.write_all(b"hello\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// What kubectl says before it ends by itself.
    fn last_words(&mut self) -> String {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut said).expect("text");
        said
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forwards_ports(k: &Kubectl, websockets: &str) {
    for what in ["pod/files :8000", "service/files :80"] {
        let forward = Forward::begin(k, websockets, what);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(forward.ask().starts_with("files 127.0.0.1:"), "{}", forward.ask()));
            }
        });
    }
    let mut refused = Forward::begin(k, websockets, "pod/files :81");
    assert_eq!(refused.ask(), "");
    let said = refused.last_words();
    assert!(said.contains("error forwarding port 81 to pod files, uid "), "{said}");
    assert!(said.contains("connect: connection refused"), "{said}");
}

fn proxies(k: &Kubectl) {
    let path = "get --raw /api/v1/namespaces/default";
    for target in
        ["pods/files:8000", "pods/http:files:8000", "pods/files", "services/files:80", "services/files"]
    {
        let answer = k.run(&format!("{path}/{target}/proxy/some/path?x=1"));
        assert!(
            answer.contains("hostname: files\n") && answer.contains("path: /some/path?x=1\n"),
            "{answer}"
        );
    }
    assert_eq!(k.run("get --raw /api/v1/nodes/node-1/proxy/healthz"), "ok\n");
    let refused = k.fails(&format!("{path}/pods/files:81/proxy/"), "");
    assert!(refused.contains("(ServiceUnavailable): error trying to reach service: dial tcp"), "{refused}");
}
