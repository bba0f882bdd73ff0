//! Somebody connected to a supervisor's socket: lines of JSON both ways, and descriptors that come with them.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::protocol::{Report, Request};

/// How many descriptors a session brings.
pub(super) const STREAMS: usize = 3;

/// One connection.
pub(super) struct Client {
    /// Tells it from others, also from those that were before.
    pub id: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Client {
    pub fn new(id: u64, stream: UnixStream) -> Client {
        Client { id, stream, input: Vec::new(), output: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub fn tell(&mut self, report: &Report) {
        match serde_json::to_vec(report) {
            Ok(line) => {
                self.output.extend_from_slice(&line);
                self.output.push(b'\n');
            }
            Err(error) => eprintln!("{error}"),
        }
    }

    /// Sends what the socket takes. `false` when nobody is there any more.
    pub fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads whole lines, with the descriptors that they bring. `None` when nobody is there any more.
    pub fn requests(&mut self) -> Option<Vec<(Request, Vec<OwnedFd>)>> {
        let open = self.receive();
        let mut requests = Vec::new();
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => {
                    // Descriptors arrive no later than the first byte that they were sent with (unix(7)).
                    let brings = if matches!(request, Request::Session { .. }) { STREAMS } else { 0 };
                    let brings = self.descriptors.drain(..brings.min(self.descriptors.len())).collect();
                    requests.push((request, brings));
                }
                Err(error) => eprintln!("a request that makes no sense: {error}"),
            }
        }
        (open || !requests.is_empty()).then_some(requests)
    }

    /// Reads what is there. `false` at the end.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut vectors = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg(&self.stream, &mut vectors, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            match received {
                Ok(message) if message.bytes == 0 => return false,
                Ok(message) => self.input.extend_from_slice(&buffer[..message.bytes]),
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
