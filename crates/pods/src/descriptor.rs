//! A pipe or a terminal that is read and written without waiting for it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// How much is read at once: what client-go sends at once, too.
const PIECE: usize = 32 * 1024;

/// The descriptor.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    pub fn new(descriptor: OwnedFd) -> io::Result<Descriptor> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        // Deprecated for descriptors that change while they are registered. An `OwnedFd` is one number as long as it lives.
        #[allow(deprecated)]
        AsyncFd::new(descriptor).map(Descriptor)
    }

    /// What is there now: `None` if nothing is, no bytes at the end.
    pub fn try_read(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; PIECE];
        loop {
            match rustix::io::read(self.0.get_ref(), &mut buffer) {
                Ok(read) => {
                    buffer.truncate(read);
                    return Some(buffer);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                // A terminal that nobody has open any more says EIO.
                Err(_) => return Some(Vec::new()),
            }
        }
    }

    /// Waits for bytes; none at the end.
    pub async fn read(&self) -> Vec<u8> {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return Vec::new() };
            match self.try_read() {
                Some(bytes) => return bytes,
                None => ready.clear_ready(),
            }
        }
    }

    /// Writes everything, or fails because nobody reads.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sets a terminal's size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(self.0.get_ref(), size);
    }
}

/// A new terminal: the side of who types and reads, and the side of the program.
pub(crate) fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, theirs))
}
