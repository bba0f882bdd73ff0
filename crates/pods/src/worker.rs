//! One task for each pod: observes, decides, acts, reports; and does so again whenever anything changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kube::api::{Api, DeleteParams, Preconditions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::decide::{Action, Decision, Observed, SandboxState, Wanted, decide, wanted};
use crate::events::Severity;
use crate::host_ports::{self, HostPort};
use crate::launch::{Problem, launch};
use crate::network;
use crate::probe::{Kind, Patient, Verdict, attend};
use crate::protocol::{Order, PodDir, Request, RunState, write_json};
use crate::report::Reporter;
use crate::runtime::Runtime;
use crate::sandbox::{self, Control, News};
use crate::status::{Facts, Waiting, status};
use crate::{files, hook, protocol};

/// How soon something that failed on the node is tried again; it doubles up to the longest.
const RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long a supervisor may take to start a container.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How often volumes made from objects are read again, as often as a kubelet does.
const REFRESH: SignedDuration = SignedDuration::from_secs(60);
/// How long the hook after a start may take: longer than anybody waits.
const LONGEST_HOOK: Duration = Duration::from_secs(24 * 3600);

/// What is written about a pod on the node, for the log endpoint and for those who look.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// `network.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Network {
    pub addresses: Vec<IpAddr>,
    /// The node's ports that lead to the pod.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// What a worker tells the runtime when it ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing of the pod is left.
    Finished,
    /// The node's process is about to end; the pod goes on.
    Left,
}

pub(crate) struct Worker {
    runtime: Arc<Runtime>,
    dir: PodDir,
    uid: String,
    /// The object as last seen; it stays when the object is gone.
    pod: Arc<Pod>,
    gone: bool,
    pods: watch::Receiver<Option<Arc<Pod>>>,
    shutdown: CancellationToken,

    observed: Observed,
    process: Option<OwnedFd>,
    control: Option<Control>,
    news: Option<mpsc::UnboundedReceiver<News>>,
    addresses: Vec<IpAddr>,
    ready: BTreeSet<String>,
    waiting: BTreeMap<String, Waiting>,
    /// How often a container's start was refused in a row.
    refusals: BTreeMap<String, u32>,
    backing_off: BTreeMap<String, Timestamp>,
    probes: BTreeMap<String, (String, JoinHandle<()>)>,
    verdicts: (mpsc::UnboundedSender<Verdict>, mpsc::UnboundedReceiver<Verdict>),
    reporter: Reporter,
    deletion: Option<(Timestamp, Timestamp)>,
    hold: Option<Timestamp>,
    /// When volumes are read again.
    refresh: Option<Timestamp>,
    failures: u32,
    finished: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        for (_, probe) in self.probes.values() {
            probe.abort();
        }
        self.runtime.waiting.lock().retain(|(uid, _), _| *uid != self.uid);
    }
}

impl Worker {
    pub fn new(
        runtime: Arc<Runtime>,
        pod: Arc<Pod>,
        pods: watch::Receiver<Option<Arc<Pod>>>,
        shutdown: CancellationToken,
    ) -> Worker {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dir = runtime.dir(&uid);
        let reporter = Reporter::new(runtime.client.clone(), &pod);
        Worker {
            runtime,
            dir,
            uid,
            pod,
            gone: false,
            pods,
            shutdown,
            observed: Observed::default(),
            process: None,
            control: None,
            news: None,
            addresses: Vec::new(),
            ready: BTreeSet::new(),
            waiting: BTreeMap::new(),
            refusals: BTreeMap::new(),
            backing_off: BTreeMap::new(),
            probes: BTreeMap::new(),
            verdicts: mpsc::unbounded_channel(),
            reporter,
            deletion: None,
            hold: None,
            refresh: None,
            failures: 0,
            finished: false,
        }
    }

    /// Until the pod is gone, or the node's process is about to end.
    pub async fn run(mut self) -> Outcome {
        self.adopt().await;
        loop {
            let now = Timestamp::now();
            if self.refresh.is_some_and(|due| due <= now) {
                self.refresh_volumes().await;
            }
            let wanted = self.wanted(now);
            self.attend_containers();
            let mut decision = decide(&wanted, &self.observed, now);
            self.backing_off = std::mem::take(&mut decision.backing_off);
            let held = self.hold.is_some_and(|hold| hold > now);
            if !held && !decision.actions.is_empty() {
                for action in std::mem::take(&mut decision.actions) {
                    if action == Action::Finish {
                        return self.finish().await;
                    }
                    if let Err(error) = self.act(action).await {
                        self.failed(&error);
                        break;
                    }
                    self.hold = None;
                }
                continue;
            }
            self.report(now);
            if !self.wait(&decision).await {
                return Outcome::Left;
            }
        }
    }

    fn wanted(&mut self, now: Timestamp) -> Wanted {
        if let Some(stamp) = &self.pod.metadata.deletion_timestamp
            && self.deletion.is_none_or(|(known, _)| known != stamp.0)
        {
            // A second deletion with a shorter grace: those that are already ending have less time now.
            let again = self.deletion.is_some();
            self.deletion = Some((stamp.0, now));
            if again {
                self.shorten();
            }
        }
        wanted(&self.pod, self.gone, self.deletion.map(|(_, seen)| seen), now)
    }

    /// Tells what is stopping that it has less time.
    fn shorten(&mut self) {
        self.observed.stopping.clear();
    }

    fn failed(&mut self, error: &str) {
        tracing::warn!(pod = %self.name(), %error, "will be tried again");
        let wait = RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
        self.failures += 1;
        self.hold = Timestamp::now().checked_add(wait).ok();
    }

    fn name(&self) -> String {
        let metadata = &self.pod.metadata;
        format!(
            "{}/{}",
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default()
        )
    }

    fn host_network(&self) -> bool {
        self.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
    }

    fn containers(&self) -> impl Iterator<Item = &Container> {
        let spec = self.pod.spec.as_ref();
        let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        init.chain(spec.into_iter().flat_map(|spec| &spec.containers))
    }

    /// Takes over what an earlier process of this node has left.
    async fn adopt(&mut self) {
        self.addresses = protocol::read_json::<Network>(&self.dir.network())
            .ok()
            .flatten()
            .map(|network| network.addresses)
            .unwrap_or_default();
        self.observed.records = self.dir.records();
        let Some(process) = sandbox::find(&self.dir) else {
            if self.dir.sandbox().exists() {
                self.observed.sandbox = SandboxState::Dead;
            }
            self.end_records();
            return;
        };
        // What was ready stays ready until a probe says otherwise: a restart of this process is no news about the pod.
        let statuses = self.pod.status.as_ref();
        let main = statuses.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
        let init = statuses.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
        for status in main.chain(init) {
            let same = self.observed.records.get(&status.name).is_some_and(|record| {
                status.container_id.as_deref() == Some(&format!("portolan://{}", record.id))
            });
            if same && status.ready {
                self.ready.insert(status.name.clone());
            }
            if same && status.started == Some(true) {
                self.observed.started.insert(status.name.clone());
            }
        }
        self.process = Some(process.pidfd);
        if let Err(error) = self.complete(process.sandbox.pid).await {
            tracing::warn!(pod = %self.name(), %error, "can't be taken over and is made again");
            self.lost();
        }
    }

    /// The pod's process 1 is dead, or as good as dead: nobody can reach it.
    fn lost(&mut self) {
        self.observed.sandbox = SandboxState::Dead;
        self.control = None;
        self.news = None;
        self.end_records();
    }

    /// Brings a running process 1 to where containers can be started: network, connection.
    async fn complete(&mut self, pid: i32) -> Result<(), String> {
        if self.host_network() {
            self.addresses.clone_from(&self.runtime.config.node_addresses);
        } else {
            let (uid, addresses) = (self.uid.clone(), self.addresses.clone());
            let (doors, runtime) = (host_ports::of(&self.pod, &self.addresses), self.runtime.clone());
            let connect = move || {
                match network::connected(&uid, &addresses) {
                    Ok(true) => {}
                    _ => network::connect(&uid, pid, &addresses)?,
                }
                if !doors.is_empty() {
                    network::answer_localhost(&uid)?;
                    runtime.host_ports.open(&uid, doors)?;
                }
                Ok::<_, std::io::Error>(())
            };
            let connected = tokio::task::spawn_blocking(connect).await.map_err(|error| error.to_string())?;
            connected.map_err(|error| format!("network: {error}"))?;
        }
        let (tell, mut news) = mpsc::unbounded_channel();
        let control =
            Control::connect(&self.dir, tell).await.map_err(|error| format!("supervisor: {error}"))?;
        match tokio::time::timeout(START_PATIENCE, news.recv()).await {
            Ok(Some(News::Containers(records))) => self.observed.records = records,
            _ => return Err("supervisor: no answer".to_owned()),
        }
        self.control = Some(control);
        self.news = Some(news);
        self.observed.sandbox = SandboxState::Ready;
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::MakeSandbox => {
                let made = self.make_sandbox().await;
                if let Err(error) = &made {
                    let message = format!("Failed to create pod sandbox: {error}");
                    self.event(None, Severity::Warning, "FailedCreatePodSandBox", message);
                    self.remove_sandbox().await?;
                }
                made
            }
            Action::RemoveSandbox => self.remove_sandbox().await,
            Action::Start { name, attempt, streak } => {
                self.start(&name, attempt, streak).await;
                Ok(())
            }
            Action::Stop { name, id, grace, for_good } => {
                self.stop(&name, &id, grace, for_good);
                Ok(())
            }
            // Handled by the caller.
            Action::Finish => Ok(()),
        }
    }

    async fn make_sandbox(&mut self) -> Result<(), String> {
        let said = |error: std::io::Error| error.to_string();
        fs::create_dir_all(&self.dir.0).map_err(said)?;
        let metadata = &self.pod.metadata;
        let name = PodName {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: self.uid.clone(),
        };
        write_json(&self.dir.pod(), &name).map_err(said)?;
        if !self.host_network() {
            // Written before anything uses them: after a restart nobody else gets them.
            self.addresses = self.runtime.pool.lock().give(&self.uid)?;
            let (addresses, host_ports) =
                (self.addresses.clone(), host_ports::of(&self.pod, &self.addresses));
            write_json(&self.dir.network(), &Network { addresses, host_ports }).map_err(said)?;
        }
        let order = Order { hostname: files::hostname(&self.pod), host_network: self.host_network() };
        let process = sandbox::start(&self.runtime.config, &self.dir, &order).await.map_err(said)?;
        let pid = process.sandbox.pid;
        self.process = Some(process.pidfd);
        self.complete(pid).await?;
        self.failures = 0;
        Ok(())
    }

    /// Everything of the pod but its directory.
    async fn remove_sandbox(&mut self) -> Result<(), String> {
        for (_, (_, probe)) in std::mem::take(&mut self.probes) {
            probe.abort();
        }
        self.control = None;
        self.news = None;
        let process = self.process.take().or_else(|| sandbox::find(&self.dir).map(|process| process.pidfd));
        if let Some(process) = process {
            sandbox::kill(process).await.map_err(|error| format!("end the pod's processes: {error}"))?;
        }
        if !self.host_network() {
            let (uid, runtime) = (self.uid.clone(), self.runtime.clone());
            let remove = move || runtime.host_ports.close(&uid).and_then(|()| network::disconnect(&uid));
            let removed = tokio::task::spawn_blocking(remove).await;
            removed
                .map_err(|error| error.to_string())?
                .map_err(|error| format!("remove the pod's link: {error}"))?;
        }
        let _ = fs::remove_file(self.dir.sandbox());
        self.observed.sandbox = SandboxState::Absent;
        self.observed.stopping.clear();
        self.observed.unhealthy.clear();
        self.ready.clear();
        self.observed.started.clear();
        self.end_records();
        Ok(())
    }

    /// What ran in a sandbox that is gone has ended; written down, because nobody else will.
    fn end_records(&mut self) {
        let now = Timestamp::now();
        for (name, record) in &mut self.observed.records {
            if matches!(record.state, RunState::Running(_)) {
                record.end_with_sandbox(now);
                let _ = write_json(&self.dir.record(name), record);
            }
        }
    }

    async fn start(&mut self, name: &str, attempt: u32, streak: u32) {
        let Some(control) = self.control.clone() else { return };
        let Some(container) = self.containers().find(|container| container.name == name).cloned() else {
            return;
        };
        let id = format!("{}-{name}-{attempt}", self.uid);
        let launch = launch(&self.runtime, &self.dir, &self.pod, &container, &self.addresses).await;
        let mut launch = match launch {
            Ok(launch) => launch,
            Err(problem) => return self.refuse(&container, problem),
        };
        self.waiting.remove(name);
        self.refusals.remove(name);
        self.observed.blocked.remove(name);
        if files::follows_objects(&self.pod, &container) {
            self.refresh.get_or_insert(Timestamp::now() + REFRESH);
        }
        (launch.id, launch.attempt, launch.streak) = (id.clone(), attempt, streak);
        let image = launch.image.clone();
        self.event(
            Some(name),
            Severity::Normal,
            "Pulled",
            format!("Container image \"{image}\" already present on machine"),
        );
        self.ready.remove(name);
        self.observed.started.remove(name);
        control.send(Request::Start(Box::new(launch)));
        let started = async {
            while let Some(news) = self.news.as_mut()?.recv().await {
                match news {
                    News::Containers(records) => {
                        let known = records.get(name).is_some_and(|record| record.id == id);
                        self.observed.records = records;
                        if known {
                            return Some(());
                        }
                    }
                    News::Gone => return None,
                }
            }
            None
        };
        if !matches!(tokio::time::timeout(START_PATIENCE, started).await, Ok(Some(()))) {
            self.lost();
            return;
        }
        self.event(Some(name), Severity::Normal, "Created", format!("Created container: {name}"));
        match self.observed.records.get(name).map(|record| &record.state) {
            Some(RunState::Exited(exit)) if exit.failure.is_some() => {
                let message = format!("Error: {}", exit.failure.as_deref().unwrap_or_default());
                self.event(Some(name), Severity::Warning, "Failed", message);
            }
            _ => {
                self.event(Some(name), Severity::Normal, "Started", format!("Started container {name}"));
                self.post_start(container, id, control);
            }
        }
    }

    /// Does what the manifest wants done once a container has started.
    fn post_start(&self, container: Container, id: String, control: Control) {
        let hook = container.lifecycle.as_ref().and_then(|hooks| hooks.post_start.clone());
        let Some(hook) = hook else { return };
        let (address, tell) = (self.addresses.first().copied(), self.verdicts.0.clone());
        tokio::spawn(async move {
            let done = hook::run(&hook, &container, address, &control, LONGEST_HOOK).await;
            if let Err(problem) = done {
                let (container, kind) = (container.name, Kind::PostStart);
                let _ = tell.send(Verdict { container, id, kind, well: false, complaint: Some(problem) });
            }
        });
    }

    /// Reads again what volumes are made from, for containers that run: ConfigMaps change, and tokens expire.
    async fn refresh_volumes(&mut self) {
        let mut again = false;
        let containers: Vec<Container> = self.containers().cloned().collect();
        for container in containers {
            let runs = self.observed.records.get(&container.name);
            let runs = runs.is_some_and(|record| matches!(record.state, RunState::Running(_)));
            if !runs || !files::follows_objects(&self.pod, &container) {
                continue;
            }
            again = true;
            if let Err(problem) =
                launch(&self.runtime, &self.dir, &self.pod, &container, &self.addresses).await
            {
                tracing::debug!(pod = %self.name(), ?problem, "volumes stay as they are");
            }
        }
        self.refresh = again.then(|| Timestamp::now() + REFRESH);
    }

    /// A container can't be started as things are: says why, and tries again later.
    fn refuse(&mut self, container: &Container, problem: Problem) {
        let refusals = self.refusals.entry(container.name.clone()).or_default();
        *refusals += 1;
        let first = *refusals == 1;
        let wait = crate::decide::wait(*refusals);
        let (reason, event) = match &problem {
            Problem::Image(_) if first => ("ErrImagePull", "Failed"),
            Problem::Image(_) => ("ImagePullBackOff", "BackOff"),
            Problem::Config(_) => ("CreateContainerConfigError", "Failed"),
        };
        let (Problem::Image(message) | Problem::Config(message)) = problem;
        self.event(Some(&container.name), Severity::Warning, event, format!("Error: {reason}: {message}"));
        self.waiting.insert(container.name.clone(), Waiting { reason: reason.to_owned(), message });
        let until = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
        self.observed.blocked.insert(container.name.clone(), until);
    }

    fn stop(&mut self, name: &str, id: &str, grace: Duration, for_good: bool) {
        self.observed.stopping.insert(id.to_owned());
        let Some(control) = self.control.clone() else { return };
        let message = if for_good {
            format!("Stopping container {name}")
        } else {
            format!("Container {name} failed liveness probe, will be restarted")
        };
        self.event(Some(name), Severity::Normal, "Killing", message);
        let stop = move |left: Duration| Request::Stop {
            name: name.to_owned(),
            id: id.to_owned(),
            grace: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let container = self.containers().find(|container| container.name == name).cloned();
        let hook = |container: Container| Some((container.lifecycle.as_ref()?.pre_stop.clone()?, container));
        let Some((hook, container)) = container.and_then(hook).filter(|_| !grace.is_zero()) else {
            control.send(stop(grace));
            return;
        };
        let (address, recorder, pod) =
            (self.addresses.first().copied(), self.runtime.recorder.clone(), self.pod.clone());
        // The hook's time counts as grace; what it leaves is for the container, but at least two seconds, as elsewhere.
        let (name, id) = (name.to_owned(), id.to_owned());
        tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            if let Err(problem) = hook::run(&hook, &container, address, &control, grace).await {
                let message = format!("PreStopHook failed: {problem}");
                recorder.record(&pod, Some(&name), Severity::Warning, "FailedPreStopHook", message);
            }
            let left = grace.saturating_sub(begun.elapsed()).max(Duration::from_secs(2));
            control.send(Request::Stop {
                name,
                id,
                grace: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            });
        });
    }

    /// Sees to it that what runs is probed, and that what has no probe counts as well.
    fn attend_containers(&mut self) {
        let Some(control) = self.control.clone() else { return };
        let Some(address) = self.addresses.first().copied() else { return };
        let running = |worker: &Worker, name: &str| match worker.observed.records.get(name) {
            Some(record) if matches!(record.state, RunState::Running(_)) => Some(record.id.clone()),
            _ => None,
        };
        let containers: Vec<Container> = self.containers().cloned().collect();
        for container in containers {
            let name = &container.name;
            let Some(id) = running(self, name) else {
                self.ready.remove(name);
                self.observed.started.remove(name);
                if let Some((_, probe)) = self.probes.remove(name) {
                    probe.abort();
                }
                continue;
            };
            if container.startup_probe.is_none() {
                self.observed.started.insert(name.clone());
            }
            if container.readiness_probe.is_none() && self.observed.started.contains(name) {
                self.ready.insert(name.clone());
            }
            let probed = container.startup_probe.is_some()
                || container.readiness_probe.is_some()
                || container.liveness_probe.is_some();
            if !probed || self.probes.get(name).is_some_and(|(known, _)| *known == id) {
                continue;
            }
            let patient = Patient {
                id: id.clone(),
                address,
                control: control.clone(),
                started: self.observed.started.contains(name),
                ready: self.ready.contains(name),
                container: container.clone(),
            };
            let task = tokio::spawn(attend(patient, self.verdicts.0.clone()));
            if let Some((_, old)) = self.probes.insert(name.clone(), (id, task)) {
                old.abort();
            }
        }
    }

    fn heard(&mut self, verdict: Verdict) {
        let current = self.observed.records.get(&verdict.container);
        if current.is_none_or(|record| record.id != verdict.id) {
            return;
        }
        let name = &verdict.container;
        let kind = match verdict.kind {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
            Kind::PostStart => "PostStartHook",
        };
        if let Some(complaint) = &verdict.complaint {
            let (reason, message) = match verdict.kind {
                Kind::PostStart => ("FailedPostStartHook", format!("{kind} failed: {complaint}")),
                _ => ("Unhealthy", format!("{kind} probe failed: {complaint}")),
            };
            self.event(Some(name), Severity::Warning, reason, message);
        }
        match (verdict.kind, verdict.well) {
            (Kind::Startup, true) => drop(self.observed.started.insert(name.clone())),
            (Kind::Readiness, true) => drop(self.ready.insert(name.clone())),
            (Kind::Readiness, false) => drop(self.ready.remove(name)),
            (Kind::Startup | Kind::Liveness | Kind::PostStart, false) => {
                self.observed.unhealthy.insert(verdict.id);
            }
            (Kind::Liveness | Kind::PostStart, true) => {}
        }
    }

    fn event(
        &self,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.runtime.recorder.record(&self.pod, container, severity, reason, message);
    }

    fn facts(&mut self, now: Timestamp) -> Facts {
        Facts {
            wanted: self.wanted(now),
            sandbox: self.observed.sandbox,
            records: self.observed.records.clone(),
            started: self.observed.started.clone(),
            ready: self.ready.clone(),
            waiting: self.waiting.clone(),
            backing_off: self.backing_off.clone(),
            pod_ips: self.addresses.clone(),
            host_ips: self.runtime.config.node_addresses.clone(),
            finished: self.finished,
        }
    }

    fn report(&mut self, now: Timestamp) {
        if !self.gone {
            let facts = self.facts(now);
            self.tell_who_waits(&status(&self.pod, &facts, now));
            self.reporter.report(&self.pod, |base| status(base, &facts, now));
        }
    }

    /// For those who ask for a log that isn't there yet.
    fn tell_who_waits(&self, status: &PodStatus) {
        let all = [&status.init_container_statuses, &status.container_statuses];
        let waits = all.into_iter().flatten().flatten().filter_map(|container| {
            let reason = container.state.as_ref()?.waiting.as_ref()?.reason.clone()?;
            Some(((self.uid.clone(), container.name.clone()), reason))
        });
        let mut waiting = self.runtime.waiting.lock();
        waiting.retain(|(uid, _), _| *uid != self.uid);
        waiting.extend(waits);
    }

    /// Until anything changes. `false`: the node's process is about to end.
    async fn wait(&mut self, decision: &Decision) -> bool {
        let wake = [decision.wake, self.hold, self.refresh, self.reporter.retry()].into_iter().flatten();
        let now = Timestamp::now();
        let due = wake.filter(|wake| *wake > now).min();
        let sleep = due.map(|due| Duration::try_from(due.duration_since(now)).unwrap_or_default());
        let news = async {
            match &mut self.news {
                Some(news) => news.recv().await.unwrap_or(News::Gone),
                None => std::future::pending().await,
            }
        };
        let timer = async {
            match sleep {
                // A millisecond more, so that it is really over then.
                Some(sleep) => tokio::time::sleep(sleep + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.shutdown.cancelled() => return false,
            changed = self.pods.changed() => match changed {
                Ok(()) => {
                    let seen = self.pods.borrow_and_update().clone();
                    match seen {
                        Some(pod) => self.pod = pod,
                        None => {
                            self.gone = true;
                            self.shorten();
                        }
                    }
                }
                Err(_) => return false,
            },
            news = news => match news {
                News::Containers(records) => {
                    let before = std::mem::replace(&mut self.observed.records, records);
                    self.notice_ends(&before);
                    self.forget_old_runs();
                }
                News::Gone => self.lost(),
            },
            Some(verdict) = self.verdicts.1.recv() => self.heard(verdict),
            () = self.reporter.progress() => {}
            () = timer => {}
        }
        true
    }

    fn forget_old_runs(&mut self) {
        let records = &self.observed.records;
        let current = |id: &String| records.values().any(|record| record.id == *id);
        self.observed.stopping.retain(current);
        self.observed.unhealthy.retain(current);
    }

    /// Says so when a container that keeps ending has ended again.
    fn notice_ends(&mut self, before: &BTreeMap<String, crate::protocol::Record>) {
        if self.pod.metadata.deletion_timestamp.is_some() || self.gone {
            return;
        }
        for (name, record) in &self.observed.records {
            let ended = matches!(record.state, RunState::Exited(_));
            let ran = before
                .get(name)
                .is_some_and(|old| old.id == record.id && matches!(old.state, RunState::Running(_)));
            if ended && ran && record.streak > 0 {
                let message = format!("Back-off restarting failed container {name} in pod {}", self.name());
                self.event(Some(name), Severity::Warning, "BackOff", message);
            }
        }
    }

    /// Nothing runs any more: says so, removes the object, and forgets the pod.
    async fn finish(mut self) -> Outcome {
        self.finished = true;
        let now = Timestamp::now();
        if !self.gone {
            let facts = self.facts(now);
            let last = self.reporter.report_now(&self.pod, |base| status(base, &facts, now));
            let _ = tokio::time::timeout(Duration::from_secs(2), last).await;
        }
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.runtime.client.clone(), &namespace);
        let mut wait = RETRY;
        while !self.gone {
            let preconditions = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
            let parameters = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            match tokio::time::timeout(Duration::from_secs(5), api.delete(&name, &parameters)).await {
                Ok(Ok(_)) => break,
                // Gone already, or another pod has the name by now.
                Ok(Err(kube::Error::Api(answer))) if answer.code == 404 || answer.code == 409 => break,
                Ok(Err(error)) => tracing::warn!(pod = %self.name(), %error, "the object was not removed"),
                Err(_) => {
                    tracing::warn!(pod = %self.name(), "the object was not removed: the API doesn't answer")
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Outcome::Left,
                changed = self.pods.changed() => {
                    self.gone = changed.is_err() || self.pods.borrow_and_update().is_none();
                }
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_RETRY),
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.dir.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = %self.name(), %error, "the pod's directory was not removed");
        }
        self.runtime.pool.lock().release(&self.uid);
        Outcome::Finished
    }
}
