//! Raw packets on a link: an AF_PACKET socket for one EtherType, and the groups a link listens to.
#![allow(unsafe_code)]

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A socket that receives and sends whole Ethernet frames of one EtherType on one link.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    link: u32,
}

/// One instruction of a classic BPF filter, as `struct sock_filter` has it (linux/filter.h).
#[derive(Clone, Copy, Debug)]
pub struct FilterStep {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl PacketSocket {
    /// Opens a non-blocking socket on the link with index `link`, of the caller's network namespace. `filter` runs in
    /// the kernel, so that frames nobody wants never wake the process; empty means all frames of the EtherType.
    pub fn open(link: u32, ethertype: u16, filter: &[FilterStep]) -> io::Result<PacketSocket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0 receives nothing until bind: no frame of another link slips in before the filter stands.
        // SAFETY: plain system call without pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: `fd` was just returned by the kernel and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if !filter.is_empty() {
            let steps: Vec<libc::sock_filter> = filter
                .iter()
                .map(|s| libc::sock_filter { code: s.code, jt: s.jt, jf: s.jf, k: s.k })
                .collect();
            let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_ptr().cast_mut() };
            // SAFETY: `program` and the steps it points to live across the call; the length is its size.
            check(unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_ATTACH_FILTER,
                    std::ptr::from_ref(&program).cast(),
                    size_of::<libc::sock_fprog>() as libc::socklen_t,
                )
            })?;
        }
        // SAFETY: an all-zero sockaddr_ll is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = link as i32;
        // SAFETY: `address` lives across the call; the length is its size.
        check(unsafe {
            libc::bind(
                fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        })?;
        Ok(PacketSocket { fd, link })
    }

    /// The next frame, with its Ethernet header, or `None` when none is waiting. Frames sent by this machine are skipped.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        loop {
            // SAFETY: an all-zero sockaddr_ll is valid.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: buffer and address are valid for the lengths given.
            let n = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    std::ptr::from_mut(&mut from).cast(),
                    &mut length,
                )
            };
            if n < 0 {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(None),
                    io::ErrorKind::Interrupted => continue,
                    _ => Err(error),
                };
            }
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            return Ok(Some(&buffer[..n as usize]));
        }
    }

    /// Sends one whole frame, Ethernet header included.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the frame is valid for its length.
        let n = unsafe {
            libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_NOSIGNAL)
        };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Index of the link.
    pub fn link(&self) -> u32 {
        self.link
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Joins (or leaves) an IPv6 multicast group on a link: the link's filter lets it in, and MLD tells snooping switches.
pub fn multicast_group(socket: BorrowedFd<'_>, link: u32, group: Ipv6Addr, join: bool) -> io::Result<()> {
    let request = libc::ipv6_mreq {
        ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
        ipv6mr_interface: link,
    };
    let option = if join { libc::IPV6_ADD_MEMBERSHIP } else { libc::IPV6_DROP_MEMBERSHIP };
    // SAFETY: `request` lives across the call; the length is its size.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            option,
            std::ptr::from_ref(&request).cast(),
            size_of::<libc::ipv6_mreq>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Waits until one of the descriptors can be read, or the time is over; says for each whether it can.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: std::time::Duration) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let begun = std::time::Instant::now();
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        // SAFETY: the array is valid for its length.
        if unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) } >= 0 {
            return Ok(polled.iter().map(|p| p.revents != 0).collect());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A UDP socket for IPv6 alone, so that the same port can be bound for IPv4 beside it (std leaves V6ONLY to a sysctl).
pub fn udp6_only(address: std::net::SocketAddr) -> io::Result<std::net::UdpSocket> {
    let std::net::SocketAddr::V6(v6) = address else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an IPv6 address is needed"));
    };
    // SAFETY: plain system call without pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `fd` was just returned by the kernel and is owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    // SAFETY: `on` lives across the call; the length is its size.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_V6ONLY,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    // SAFETY: an all-zero sockaddr_in6 is valid.
    let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    raw.sin6_family = libc::AF_INET6 as u16;
    raw.sin6_port = v6.port().to_be();
    raw.sin6_addr.s6_addr = v6.ip().octets();
    raw.sin6_scope_id = v6.scope_id();
    // SAFETY: `raw` lives across the call; the length is its size.
    check(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(&raw).cast(),
            size_of::<libc::sockaddr_in6>() as libc::socklen_t,
        )
    })?;
    Ok(std::net::UdpSocket::from(fd))
}
