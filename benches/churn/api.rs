//! The API, as far as an agent asks for it: lists in pages, then watches. Objects are written as they are asked for, so that
//! little of a large cluster is held here.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The node that the agent is told to be on.
pub const NODE: &str = "node-0";

/// How many nodes the endpoints are spread over.
const NODES: usize = 1000;
/// The slice controller's limit (`--max-endpoints-per-slice`).
const IN_A_SLICE: usize = 100;
/// The revision before the first change.
const REVISION: usize = 1000;
/// Cluster IPs, of 10.96.0.0/12: past the part that is kept for addresses that somebody chose.
const VIPS: u32 = 0x0a60_1000;
/// Addresses of endpoints, 16.0.0.0 and up; and those that come in their place, 32.0.0.0 and up.
const ENDPOINTS: u32 = 0x1000_0000;
const REPLACEMENTS: u32 = 0x2000_0000;

/// How many Services there are, how many endpoints each has, and how many of the Services have a port on every node.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub services: usize,
    pub endpoints: usize,
    pub node_ports: usize,
}

impl Size {
    /// The port that a Service has on every node: one in so many has one.
    pub fn node_port(self, service: usize) -> Option<u16> {
        let every = self.services.checked_div(self.node_ports)?.max(1);
        let number = service / every;
        (service.is_multiple_of(every) && number < self.node_ports).then(|| 30_000 + number as u16)
    }
}

/// The server.
pub struct Api {
    size: Size,
    /// From one changed Service to the next: with no common factor, so that each has its turn before one has its second.
    stride: usize,
    state: Mutex<State>,
    changed: Condvar,
    closed: AtomicBool,
    epoch: Instant,
    /// When each change was written to a watch, in nanoseconds after `epoch`; 0 if it wasn't yet.
    sent: Vec<AtomicU64>,
}

struct State {
    /// Of every endpoint, Service by Service.
    addresses: Vec<u32>,
    changes: usize,
}

struct Request {
    path: String,
    query: String,
    body: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Kind {
    Service,
    Slice,
    Node,
    ServiceCidr,
}

impl Api {
    /// A cluster of this size that will change so often at most.
    pub fn new(size: Size, changes: usize, epoch: Instant) -> Arc<Api> {
        let mut stride = size.services * 618 / 1000 + 1;
        while divisor(stride, size.services) != 1 {
            stride += 1;
        }
        let all = (size.services * size.endpoints) as u32;
        Arc::new(Api {
            size,
            stride,
            state: Mutex::new(State { addresses: (ENDPOINTS..ENDPOINTS + all).collect(), changes: 0 }),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            epoch,
            sent: (0..changes).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Answers on a port of loopback in the calling thread's network namespace, until [`Api::close`].
    pub fn serve(self: &Arc<Api>) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let at = listener.local_addr()?;
        let api = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if api.closed.load(Ordering::Relaxed) {
                    return;
                }
                let api = api.clone();
                // Its end is that of the connection, whatever the reason.
                thread::spawn(move || drop(api.converse(&stream)));
            }
        });
        Ok(at)
    }

    /// Ends the watches, and answers no more.
    pub fn close(&self, at: SocketAddr) {
        self.closed.store(true, Ordering::Relaxed);
        self.changed.notify_all();
        drop(TcpStream::connect(at));
    }

    /// The next change: one endpoint of a Service has a new address. Gives its number.
    pub fn change(&self) -> usize {
        let mut state = self.state();
        let number = state.changes;
        state.changes += 1;
        let at = self.service(number) * self.size.endpoints + self.endpoint(number);
        state.addresses[at] = REPLACEMENTS + number as u32;
        drop(state);
        self.changed.notify_all();
        number
    }

    /// The change that brought an address, if one did.
    pub fn change_of(&self, address: [u8; 4]) -> Option<usize> {
        let number = u32::from_be_bytes(address).checked_sub(REPLACEMENTS)? as usize;
        (number < self.sent.len()).then_some(number)
    }

    /// How many elements a change replaces: a slot, and of a pod on the agent's own node what tells its connections to itself.
    pub fn elements(&self, number: usize) -> usize {
        let index = self.service(number) * self.size.endpoints + self.endpoint(number);
        1 + usize::from(index.is_multiple_of(NODES))
    }

    /// When a change was written to the agent's watch.
    pub fn sent(&self, number: usize) -> Option<Duration> {
        Some(self.sent[number].load(Ordering::Acquire)).filter(|at| *at > 0).map(Duration::from_nanos)
    }

    /// The address of a Service.
    pub fn vip(service: usize) -> Ipv4Addr {
        Ipv4Addr::from(VIPS + service as u32)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked with it")
    }

    /// The Service that a change is one of.
    pub fn service(&self, change: usize) -> usize {
        change * self.stride % self.size.services
    }

    fn endpoint(&self, change: usize) -> usize {
        change / self.size.services % self.size.endpoints
    }

    fn slices_of_a_service(&self) -> usize {
        self.size.endpoints.div_ceil(IN_A_SLICE)
    }

    fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.size.services,
            Kind::Slice => self.size.services * self.slices_of_a_service(),
            Kind::Node | Kind::ServiceCidr => 1,
        }
    }

    // === HTTP ===

    fn converse(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = read(&mut reader)? {
            let kind = match request.path.as_str() {
                "/api/v1/services" => Kind::Service,
                "/apis/discovery.k8s.io/v1/endpointslices" => Kind::Slice,
                "/api/v1/nodes" => Kind::Node,
                "/apis/networking.k8s.io/v1/servicecidrs" => Kind::ServiceCidr,
                path if path.ends_with("/events") => {
                    answer(stream, "201 Created", &request.body)?;
                    continue;
                }
                path => {
                    let status = format!(
                        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"{path}"}}"#
                    );
                    answer(stream, "404 Not Found", status.as_bytes())?;
                    continue;
                }
            };
            match request.value("watch") {
                Some("true" | "1") => return self.watch(kind, &request, stream),
                _ => answer(stream, "200 OK", self.list(kind, &request).as_bytes())?,
            }
        }
        Ok(())
    }

    /// One page. All pages of a list are of the first one's revision: what is newer in them, the watch says again.
    fn list(&self, kind: Kind, request: &Request) -> String {
        let state = self.state();
        let page = request.value("continue").and_then(|token| token.split_once('-'));
        let (revision, first) = match page.map(|(revision, first)| (revision.parse(), first.parse())) {
            Some((Ok(revision), Ok(first))) => (revision, first),
            _ => (REVISION + state.changes, 0),
        };
        let all = self.count(kind);
        let limit = request.value("limit").and_then(|l| l.parse().ok()).unwrap_or(all);
        let end = all.min(first + limit);
        let (version, name) = kind.names();
        let mut body = format!(
            r#"{{"kind":"{name}List","apiVersion":"{version}","metadata":{{"resourceVersion":"{revision}""#
        );
        if end < all {
            let left = all - end;
            let _ = write!(body, r#","continue":"{revision}-{end}","remainingItemCount":{left}"#);
        }
        body.push_str(r#"},"items":["#);
        for number in first..end {
            if number > first {
                body.push(',');
            }
            body.push('{');
            self.object(&mut body, kind, number, &state);
        }
        body.push_str("]}");
        body
    }

    /// Sends what changes after the client's revision, until the time that the client asked for is over.
    fn watch(&self, kind: Kind, request: &Request, mut stream: &TcpStream) -> io::Result<()> {
        const HEAD: &str =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(HEAD.as_bytes())?;
        let number = |key| request.value(key).and_then(|value| value.parse::<usize>().ok());
        let mut next = number("resourceVersion").unwrap_or(0).saturating_sub(REVISION);
        let until = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(300) as u64);
        loop {
            let mut state = self.state();
            while !matches!(kind, Kind::Slice) || next >= state.changes {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() || self.closed.load(Ordering::Relaxed) {
                    return stream.write_all(b"0\r\n\r\n");
                }
                state = self.changed.wait_timeout(state, left).expect("no thread panicked with it").0;
            }
            let event = self.event(next, &state);
            drop(state);
            let at = self.epoch.elapsed().as_nanos() as u64;
            let _ = self.sent[next].compare_exchange(0, at, Ordering::AcqRel, Ordering::Relaxed);
            stream.write_all(event.as_bytes())?;
            next += 1;
        }
    }

    /// A chunk with the event of a change.
    fn event(&self, change: usize, state: &State) -> String {
        let slice = self.service(change) * self.slices_of_a_service() + self.endpoint(change) / IN_A_SLICE;
        let (version, name) = Kind::Slice.names();
        let mut event =
            format!(r#"{{"type":"MODIFIED","object":{{"kind":"{name}","apiVersion":"{version}","#);
        // The revision of this event, whatever the state's: a watch that breaks here goes on here.
        self.slice(&mut event, slice, REVISION + change + 1, state);
        event.push_str("}\n");
        format!("{:x}\r\n{event}\r\n", event.len())
    }

    // === Objects ===

    /// An object without its opening brace.
    fn object(&self, out: &mut String, kind: Kind, number: usize, state: &State) {
        match kind {
            Kind::Service => service(out, number, self.size.node_port(number)),
            Kind::Slice => self.slice(out, number, REVISION + state.changes, state),
            Kind::Node => out.push_str(
                r#""metadata":{"name":"node-0","resourceVersion":"1"},"spec":{"podCIDR":"10.32.0.0/24","podCIDRs":["10.32.0.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}"#,
            ),
            Kind::ServiceCidr => out.push_str(
                r#""metadata":{"name":"kubernetes","resourceVersion":"1"},"spec":{"cidrs":["10.96.0.0/12"]}}"#,
            ),
        }
    }

    fn slice(&self, out: &mut String, number: usize, revision: usize, state: &State) {
        let of_each = self.slices_of_a_service();
        let (service, part) = (number / of_each, number % of_each);
        let first = part * IN_A_SLICE;
        let last = self.size.endpoints.min(first + IN_A_SLICE);
        let namespace = service % 100;
        let uid = uid(2, number);
        let owner = uid_of_service(service);
        let _ = write!(
            out,
            r#""metadata":{{"name":"service-{service}-{part:05x}","generateName":"service-{service}-","namespace":"bench-{namespace}","uid":"{uid}","resourceVersion":"{revision}","generation":3,"creationTimestamp":"2026-01-02T03:04:05Z","labels":{{"app":"service-{service}","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"service-{service}"}},"annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-02T03:04:05Z"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"service-{service}","uid":"{owner}","controller":true,"blockOwnerDeletion":true}}],{SLICE_FIELDS}}},"addressType":"IPv4","ports":[{{"name":"http","protocol":"TCP","port":8080}}],"endpoints":["#
        );
        for endpoint in first..last {
            let index = service * self.size.endpoints + endpoint;
            let address = Ipv4Addr::from(state.addresses[index]);
            let (node, zone) = (index % NODES, index % 3);
            let comma = if endpoint > first { "," } else { "" };
            let pod = self::uid(3, index);
            let _ = write!(
                out,
                r#"{comma}{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node-{node}","targetRef":{{"kind":"Pod","namespace":"bench-{namespace}","name":"service-{service}-7d4b9c6f5d-{endpoint:05x}","uid":"{pod}"}},"zone":"zone-{zone}"}}"#
            );
        }
        out.push_str("]}");
    }
}

impl Kind {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Kind::Service => ("v1", "Service"),
            Kind::Slice => ("discovery.k8s.io/v1", "EndpointSlice"),
            Kind::Node => ("v1", "Node"),
            Kind::ServiceCidr => ("networking.k8s.io/v1", "ServiceCIDR"),
        }
    }
}

impl Request {
    fn value(&self, key: &str) -> Option<&str> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
    }
}

fn service(out: &mut String, number: usize, node_port: Option<u16>) {
    let (namespace, address, uid) = (number % 100, Api::vip(number), uid_of_service(number));
    let (kind, port) = match node_port {
        Some(port) => ("NodePort", format!(r#","nodePort":{port}"#)),
        None => ("ClusterIP", String::new()),
    };
    let _ = write!(
        out,
        r#""metadata":{{"name":"service-{number}","namespace":"bench-{namespace}","uid":"{uid}","resourceVersion":"{number}","creationTimestamp":"2026-01-02T03:04:05Z","labels":{{"app":"service-{number}"}},{SERVICE_FIELDS}}},"spec":{{"ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080{port}}}],"selector":{{"app":"service-{number}"}},"clusterIP":"{address}","clusterIPs":["{address}"],"type":"{kind}","sessionAffinity":"None","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}"#
    );
}

/// What API servers note of writers, which makes up much of an object.
const SERVICE_FIELDS: &str = r#""managedFields":[{"manager":"kubectl-create","operation":"Update","apiVersion":"v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}}}]"#;
const SLICE_FIELDS: &str = r#""managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"discovery.k8s.io/v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:endpointslice.kubernetes.io/managed-by":{},"f:kubernetes.io/service-name":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"\"}":{}}},"f:ports":{}}}]"#;

fn uid(kind: usize, number: usize) -> String {
    format!("{kind:08x}-5a1e-4c0d-8000-{number:012x}")
}

fn uid_of_service(service: usize) -> String {
    uid(1, service)
}

fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request { path: path.to_owned(), query: query.to_owned(), body: Vec::new() };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                request.body.resize(value.trim().parse().unwrap_or(0), 0);
            }
            Some(_) => {}
            None => break,
        }
    }
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}

fn answer(mut stream: &TcpStream, status: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// The greatest common divisor.
fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}
