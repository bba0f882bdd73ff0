//! Names of others: asked of the upstreams with a number and a port of our own, so that nobody can guess what to answer in
//! their place (RFC 5452), over TCP where an answer was cut; kept for as long as it holds.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::cache::Cache;
use crate::message::{HEADER, Head, Query, Rcode, ask, head, question};
use crate::meters::Meters;

/// How long one upstream may take; then the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long all of them together may take: whoever asked gives up then (resolv.conf(5), `timeout`).
const AT_MOST: Duration = Duration::from_secs(5);
/// How many questions may be under way.
const UNDER_WAY: usize = 1000;
/// How many answers are kept.
const KEPT: usize = 10_000;

/// Asks upstreams.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    /// Which one answered last: it is asked first.
    good: AtomicUsize,
    cache: Mutex<Cache>,
    under_way: Semaphore,
    meters: Arc<Meters>,
}

impl Forwarder {
    /// Asks these, in their order.
    pub fn new(upstreams: Vec<SocketAddr>, meters: Arc<Meters>) -> Forwarder {
        Forwarder {
            upstreams,
            good: AtomicUsize::new(0),
            cache: Mutex::new(Cache::new(KEPT)),
            under_way: Semaphore::new(UNDER_WAY),
            meters,
        }
    }

    /// What is answered to this question; `None` if nobody answers.
    pub async fn resolve(&self, query: &Query) -> Option<Vec<u8>> {
        if let Some(known) = self.cache.lock().get(query, Instant::now()) {
            self.meters.cache(true);
            return Some(known);
        }
        self.meters.cache(false);
        let _permit = self.under_way.try_acquire().ok()?;
        let answer = timeout(AT_MOST, self.ask_all(query)).await.ok().flatten();
        match &answer {
            Some(answer) => {
                let mut cache = self.cache.lock();
                cache.put(query, answer, Instant::now());
                self.meters.kept(cache.len());
            }
            None => self.meters.nobody_answered(),
        }
        answer
    }

    async fn ask_all(&self, query: &Query) -> Option<Vec<u8>> {
        let first = self.good.load(Ordering::Relaxed);
        let mut failure = None;
        for turn in 0..self.upstreams.len() {
            let index = (first + turn) % self.upstreams.len();
            match timeout(PATIENCE, one(self.upstreams[index], query)).await {
                Ok(Ok(answer)) => {
                    let rcode = head(&answer).map(|head| head.rcode);
                    if rcode != Some(Rcode::ServFail as u8) && rcode != Some(Rcode::Refused as u8) {
                        self.good.store(index, Ordering::Relaxed);
                        return Some(answer);
                    }
                    // Another may know better; if none does, this is what there is to say.
                    failure = Some(answer);
                }
                Ok(Err(error)) => {
                    tracing::debug!(upstream = %self.upstreams[index], %error, "asking an upstream");
                    self.meters.upstream_failed();
                }
                Err(_) => self.meters.upstream_failed(),
            }
        }
        failure
    }
}

/// Asks one upstream.
async fn one(upstream: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let id = u16::from_be_bytes(id);
    let question = ask(query, id);
    let answer = over_udp(upstream, query, id, &question).await?;
    match head(&answer) {
        Some(Head { truncated: true, .. }) => over_tcp(upstream, query, id, &question).await,
        _ => Ok(answer),
    }
}

async fn over_udp(upstream: SocketAddr, query: &Query, id: u16, asked: &[u8]) -> io::Result<Vec<u8>> {
    let any = if upstream.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(asked).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], query, id) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, query: &Query, id: u16, asked: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let mut framed = (asked.len() as u16).to_be_bytes().to_vec();
    framed.extend(asked);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, query, id) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
    }
}

/// Whether a message answers a question.
fn answers(message: &[u8], query: &Query, id: u16) -> bool {
    let Some(head) = head(message) else { return false };
    let Some((name, kind, class, end)) = question(message) else { return false };
    head.id == id
        && head.response
        && name.lower() == query.lower
        && (kind, class) == (query.kind, query.class)
        // The name stands there in full, so that it can be put back in the case in which it was asked.
        && end == HEADER + query.name.wire().len() + 4
}
