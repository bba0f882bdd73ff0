//! Port-forward: connections to localhost in a pod's network namespace, for somebody far away.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::Bytes;
use portolan_sys::namespace::{in_netns, netns_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::channels::CREATION;
use crate::protocol::PodDir;
use crate::sandbox;
use crate::spdy::{Connection, Received, Stream};

/// How long a connection inside of the pod may take: it doesn't leave the machine.
const PATIENCE: Duration = Duration::from_secs(10);
const PIECE: usize = 32 * 1024;

/// The pod whose ports are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub dir: PodDir,
    pub pod: String,
    pub uid: String,
}

impl Target {
    /// Connects to a port as a program in the pod would to `localhost`: IPv4 first, as containerd does.
    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let dir = self.dir.clone();
        let connected = tokio::task::spawn_blocking(move || {
            let process = sandbox::find(&dir).ok_or_else(|| "the pod does not run".to_owned())?;
            let netns = netns_of(process.sandbox.pid as u32).map_err(|error| error.to_string())?;
            let connect = |address: IpAddr| -> io::Result<std::net::TcpStream> {
                let at = SocketAddr::new(address, port);
                in_netns(netns.as_fd(), || std::net::TcpStream::connect_timeout(&at, PATIENCE))?
            };
            connect(Ipv4Addr::LOCALHOST.into()).or_else(|first| {
                connect(Ipv6Addr::LOCALHOST.into()).map_err(|second| {
                    let said = |error: &io::Error| match error.kind() {
                        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
                        _ => error.to_string(),
                    };
                    format!(
                        "failed to connect to localhost:{port} inside the pod's network namespace, \
                         IPv4: dial tcp4 127.0.0.1:{port}: {} IPv6: dial tcp6 [::1]:{port}: {}",
                        said(&first),
                        said(&second)
                    )
                })
            })
        });
        let stream = connected.await.map_err(|error| error.to_string())??;
        stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream))
            .map_err(|error| error.to_string())
    }

    /// What a client reads on the error stream, in a kubelet's words.
    fn complaint(&self, port: u16, error: &str) -> String {
        format!("error forwarding port {port} to pod {}, uid {}: {error}", self.pod, self.uid)
    }
}

/// The two streams of one forwarded connection, as far as they have come.
#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
}

/// Serves the streams of a SPDY connection until the client is gone.
pub(crate) async fn over_spdy(mut connection: Connection, target: Target) {
    let mut pairs: HashMap<String, (Pair, tokio::time::Instant)> = HashMap::new();
    while let Some(stream) = connection.accept().await {
        let now = tokio::time::Instant::now();
        pairs.retain(|_, (_, since)| now - *since < CREATION);
        let Some(port) =
            stream.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0)
        else {
            stream.reset();
            continue;
        };
        let kind = stream.header("streamtype").unwrap_or_default().to_owned();
        // The oldest clients number nothing: their error stream comes first, and the data stream has the next odd number.
        let id = match (stream.header("requestid"), kind.as_str()) {
            (Some(id), _) if !id.is_empty() => id.to_owned(),
            (_, "data") => stream.id().wrapping_sub(2).to_string(),
            _ => stream.id().to_string(),
        };
        let pair = &mut pairs.entry(id.clone()).or_insert((Pair::default(), now)).0;
        match kind.as_str() {
            "data" if pair.data.is_none() => pair.data = Some(stream),
            "error" if pair.error.is_none() => pair.error = Some(stream),
            _ => {
                stream.reset();
                continue;
            }
        }
        if pair.data.is_some()
            && pair.error.is_some()
            && let Some((Pair { data: Some(data), error: Some(error) }, _)) = pairs.remove(&id)
        {
            tokio::spawn(forward(target.clone(), port, data, error));
        }
    }
}

/// One connection.
async fn forward(target: Target, port: u16, mut data: Stream, mut error: Stream) {
    let connected = match target.connect(port).await {
        Ok(connected) => connected,
        Err(problem) => {
            error.send(target.complaint(port, &problem).into()).await;
            error.finish().await;
            data.sender().reset().await;
            return;
        }
    };
    let (mut read, mut write) = connected.into_split();
    let sender = data.sender();
    let back = async {
        let mut buffer = vec![0; PIECE];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => break Ok(()),
                Ok(length) => {
                    if !sender.send(Bytes::copy_from_slice(&buffer[..length])).await {
                        break Ok(());
                    }
                }
                Err(problem) => break Err(problem),
            }
        }
    };
    let there = async {
        loop {
            match data.next().await {
                // What the pod doesn't read any more is lost, but what it has said before is still to be read.
                Received::Bytes(bytes) => drop(write.write_all(&bytes).await),
                Received::End => drop(write.shutdown().await),
                Received::Reset => return,
            }
        }
    };
    // Each direction ends for itself; the connection is over when the pod has said all, or the client gives it up.
    let result = tokio::select! {
        result = back => result,
        () = there => Ok(()),
    };
    if let Err(problem) = result {
        error.send(target.complaint(port, &problem.to_string()).into()).await;
    }
    sender.finish().await;
    error.finish().await;
}

/// Serves the channels of a WebSocket: for each port two, data and errors (`v4.channel.k8s.io`, as kube-rs and browsers
/// use it). Each channel begins with its port, low byte first.
pub(crate) async fn over_channels(
    target: Target,
    ports: Vec<u16>,
    mut input: mpsc::Receiver<(u8, Bytes)>,
    output: mpsc::Sender<(u8, Bytes)>,
) {
    let mut writers: HashMap<u8, mpsc::Sender<Bytes>> = HashMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let channel = index as u8 * 2;
        for channel in [channel, channel + 1] {
            let _ = output.send((channel, Bytes::copy_from_slice(&port.to_le_bytes()))).await;
        }
        let (typed, mut to_write) = mpsc::channel::<Bytes>(64);
        writers.insert(channel, typed);
        let (target, output) = (target.clone(), output.clone());
        tasks.spawn(async move {
            let failed = |problem: String| {
                let text = target.complaint(port, &problem);
                let output = output.clone();
                async move { drop(output.send((channel + 1, text.into())).await) }
            };
            let mut connected = match target.connect(port).await {
                Ok(connected) => connected,
                Err(problem) => return failed(problem).await,
            };
            let (mut read, mut write) = connected.split();
            let back = async {
                let mut buffer = vec![0; PIECE];
                loop {
                    match read.read(&mut buffer).await {
                        Ok(0) => break Ok(()),
                        Ok(length) => {
                            let piece = Bytes::copy_from_slice(&buffer[..length]);
                            if output.send((channel, piece)).await.is_err() {
                                break Ok(());
                            }
                        }
                        Err(problem) => break Err(problem),
                    }
                }
            };
            let there = async {
                while let Some(bytes) = to_write.recv().await {
                    if write.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                let _ = write.shutdown().await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                result = back => if let Err(problem) = result { failed(problem.to_string()).await },
                () = there => {}
            }
        });
    }
    drop(output);
    loop {
        tokio::select! {
            message = input.recv() => match message {
                Some((channel, bytes)) => if let Some(writer) = writers.get(&channel) {
                    let _ = writer.send(bytes).await;
                },
                // The client is gone: the connections with it.
                None => return,
            },
            ended = tasks.join_next() => if ended.is_none() { return },
        }
    }
}
