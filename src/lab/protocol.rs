//! What a lab's keeper and its init tell each other: lines of JSON over a pair of sockets, whose end is a message too.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::state::{Published, Supervised};
use super::topology::{Publish, Topology};

/// What init is to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The machines.
    pub topology: Topology,
    /// Ports to publish besides the NodePorts.
    pub publish: Vec<Publish>,
    /// Directories that serve as images.
    pub images: Vec<(String, PathBuf)>,
    /// Whether pods may have the machine's root.
    pub allow_host_image: bool,
    /// The lab's directory: inside of the lab the place of its private files.
    pub dir: PathBuf,
}

/// What the keeper tells init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make this.
    Make(Box<Order>),
    /// Say when a TCP connection from the client to each of these has succeeded.
    Await(Vec<SocketAddr>),
}

/// What init tells the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// Something was made.
    Progress(String),
    /// The API answers here; the file that lets kubectl in.
    Serving {
        /// The address on this machine.
        api: SocketAddr,
        /// The kubeconfig's text.
        kubeconfig: String,
    },
    /// The published ports, all of them.
    Published(Vec<Published>),
    /// The supervised processes, all of them.
    Processes(Vec<Supervised>),
    /// A supervised process ended.
    Ended {
        /// The machine.
        machine: String,
        /// Its exit status.
        status: i32,
        /// The end of its log.
        log: String,
    },
    /// All that was awaited has answered.
    Answered,
    /// The lab can't be made.
    Failed(String),
}

/// Reads the messages of the other side.
#[derive(Debug)]
pub struct Reader {
    lines: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Reader {
    /// The next message; `None` when the other side is gone. Losing a call half-way loses nothing.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            // What an abandoned call has read of a line is kept in `line`.
            match self.lines.read_until(b'\n', &mut self.line).await {
                Ok(0) | Err(_) => return None,
                Ok(_) if !self.line.ends_with(b"\n") => return None,
                Ok(_) => {}
            }
            let message = serde_json::from_slice(&self.line);
            self.line.clear();
            match message {
                Ok(message) => return Some(message),
                Err(error) => tracing::error!(%error, "a message that can't be read"),
            }
        }
    }
}

/// Writes messages to the other side.
#[derive(Debug)]
pub struct Writer(OwnedWriteHalf);

impl Writer {
    /// Sends a message. That the other side is gone is found out by the reader.
    pub async fn send<T: Serialize>(&mut self, message: &T) {
        let mut line = match serde_json::to_vec(message) {
            Ok(line) => line,
            Err(error) => return tracing::error!(%error, "a message that can't be written"),
        };
        line.push(b'\n');
        let _ = self.0.write_all(&line).await;
    }
}

/// Both halves of a connection.
pub fn split(socket: std::os::unix::net::UnixStream) -> std::io::Result<(Reader, Writer)> {
    socket.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(socket)?.into_split();
    Ok((Reader { lines: BufReader::new(reader), line: Vec::new() }, Writer(writer)))
}
