//! Those who follow a container's own streams by `kubectl attach`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::cri_log::Stream;

/// Who falls so far behind with reading is let go: the container must not wait for it.
const MOST_BEHIND: usize = 1 << 20;

/// One way out: a pipe, and what it hasn't taken yet.
struct Out {
    pipe: Option<OwnedFd>,
    pending: Vec<u8>,
}

impl Out {
    /// Writes what the pipe takes.
    fn flush(&mut self) {
        while let Some(pipe) = self.pipe.as_ref().filter(|_| !self.pending.is_empty()) {
            match rustix::io::write(pipe, &self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.pending.len() <= MOST_BEHIND => return,
                Err(_) => {
                    self.pipe = None;
                    self.pending.clear();
                }
            }
        }
    }
}

/// One who follows.
pub(super) struct Attachment {
    /// The client that asked.
    pub owner: u64,
    /// What it calls this.
    pub token: u64,
    input: Option<OwnedFd>,
    /// Read from the input, not yet written to the container.
    typed: Vec<u8>,
    outputs: [Out; 2],
}

impl Attachment {
    /// The descriptors are standard input, output and error, as the client named them.
    pub fn new(owner: u64, token: u64, descriptors: [OwnedFd; 3]) -> rustix::io::Result<Attachment> {
        for descriptor in &descriptors {
            rustix::io::ioctl_fionbio(descriptor, true)?;
        }
        let [input, stdout, stderr] = descriptors;
        let out = |pipe| Out { pipe: Some(pipe), pending: Vec::new() };
        Ok(Attachment {
            owner,
            token,
            input: Some(input),
            typed: Vec::new(),
            outputs: [out(stdout), out(stderr)],
        })
    }

    /// Passes on what the container has written.
    pub fn show(&mut self, stream: Stream, bytes: &[u8]) {
        let out = &mut self.outputs[usize::from(stream == Stream::Stderr)];
        if out.pipe.is_some() {
            out.pending.extend_from_slice(bytes);
            out.flush();
        }
    }

    /// What to wait for.
    pub fn interest<'a>(
        &'a self,
        container: Option<&'a OwnedFd>,
        all: &mut Vec<(BorrowedFd<'a>, PollFlags)>,
    ) {
        for out in self.outputs.iter().filter(|out| !out.pending.is_empty()) {
            if let Some(pipe) = &out.pipe {
                all.push((pipe.as_fd(), PollFlags::OUT));
            }
        }
        match (&self.input, container) {
            // Nothing more is read while the container doesn't take what was.
            (_, Some(container)) if !self.typed.is_empty() => all.push((container.as_fd(), PollFlags::OUT)),
            (Some(input), Some(_)) => all.push((input.as_fd(), PollFlags::IN)),
            _ => {}
        }
    }

    /// Moves what can be moved. `true` if its input has just ended, and all of it has been passed on.
    pub fn turn(&mut self, container: Option<&OwnedFd>) -> bool {
        self.outputs.iter_mut().for_each(Out::flush);
        let Some(container) = container else { return false };
        loop {
            while !self.typed.is_empty() {
                match rustix::io::write(container, &self.typed) {
                    Ok(written) => drop(self.typed.drain(..written)),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => return false,
                    Err(_) => {
                        self.typed.clear();
                        self.input = None;
                    }
                }
            }
            let Some(input) = &self.input else { return false };
            let mut buffer = [0; 4096];
            match rustix::io::read(input, &mut buffer[..]) {
                Ok(0) => {
                    self.input = None;
                    return true;
                }
                Ok(read) => self.typed.extend_from_slice(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => self.input = None,
            }
        }
    }
}
