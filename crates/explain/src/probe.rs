//! Connections, made only if asked for: whether somebody listens, and whether the Service leads there.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;

/// How long a backend may take.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// At most so many backends are tried.
const MOST: usize = 32;

/// What came of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// To whom: a backend, or an address and port of the Service.
    pub to: SocketAddr,
    /// It was to an address of the Service, by way of the node's tables.
    pub through: bool,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was accepted.
    Accepted,
    /// It was refused.
    Refused,
    /// There is no way there, as the kernel or a router said.
    Unreachable,
    /// Nothing came back.
    Silent,
}

/// Connects by TCP to each of these, from the network namespace that we run in, and hangs up.
pub async fn connect(targets: &BTreeSet<SocketAddr>, through: bool) -> Vec<Probe> {
    let each = targets.iter().take(MOST).map(|&to| async move {
        let outcome = match tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(to)).await {
            Ok(Ok(_)) => Outcome::Accepted,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
            Ok(Err(error))
                if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) =>
            {
                Outcome::Unreachable
            }
            Ok(Err(_)) | Err(_) => Outcome::Silent,
        };
        Probe { to, through, outcome }
    });
    join_all(each).await
}
