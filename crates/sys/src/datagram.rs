//! Datagrams with both of their addresses: an answer must leave from the address that was asked, whatever routing would choose.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for one `in_pktinfo` or `in6_pktinfo` with its header, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the kernel say of each datagram which of the machine's addresses it was sent to (ip(7) IP_PKTINFO, ipv6(7)).
pub fn tell_destination(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let (level, option) = match ipv6 {
        false => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        true => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    // SAFETY: `on` lives across the call; the length is its size.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

/// A datagram: its length (longer ones are cut to the buffer), who sent it, and to which address, where the kernel said it.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    // SAFETY: all-zero is a valid value of these plain structures.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { std::mem::zeroed() };
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = std::ptr::from_mut(&mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `message` is to a value that lives across the call, with its size.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let from = sender(&name).ok_or_else(|| io::Error::other("a datagram of another family"))?;
    let mut to = None;
    // SAFETY: `message` is as the kernel filled it in; the macros stay within msg_controllen, and the data of each entry is
    // read unaligned and only where the entry's length covers it.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(&raw const message);
        while !entry.is_null() {
            let (head, data) = (&*entry, libc::CMSG_DATA(entry));
            let holds = |size: usize| head.cmsg_len >= libc::CMSG_LEN(size as u32) as usize;
            match (head.cmsg_level, head.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if holds(size_of::<libc::in_pktinfo>()) => {
                    let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                    to = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if holds(size_of::<libc::in6_pktinfo>()) => {
                    let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => {}
            }
            entry = libc::CMSG_NXTHDR(&raw const message, entry);
        }
    }
    Ok((length as usize, from, to))
}

/// Sends a datagram, from that address of the machine if one is given.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of these plain structures.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { std::mem::zeroed() };
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    message.msg_name = std::ptr::from_mut(&mut name).cast();
    message.msg_namelen = receiver(&mut name, to);
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let put = |message: &mut libc::msghdr, control: &mut Control, level, kind, info: &[u8]| {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: plain arithmetic; both structures with their header are shorter than `Control`.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(info.len() as u32) } as _;
        // SAFETY: msg_control has room for one header and `info`, and is aligned for the header.
        unsafe {
            let entry = libc::CMSG_FIRSTHDR(&raw const *message);
            (*entry).cmsg_level = level;
            (*entry).cmsg_type = kind;
            (*entry).cmsg_len = libc::CMSG_LEN(info.len() as u32) as _;
            std::ptr::copy_nonoverlapping(info.as_ptr(), libc::CMSG_DATA(entry), info.len());
        }
    };
    match from {
        // struct in_pktinfo: interface, source address, and a field that counts on receipt alone.
        Some(IpAddr::V4(from)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&from.octets());
            put(&mut message, &mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        // struct in6_pktinfo: source address, interface.
        Some(IpAddr::V6(from)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&from.octets());
            put(&mut message, &mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    // SAFETY: every pointer in `message` is to a value that lives across the call, with its size; the kernel writes to none.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn sender(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure the storage holds.
            let of: &libc::sockaddr_in = unsafe { &*std::ptr::from_ref(name).cast() };
            let ip = Ipv4Addr::from(u32::from_be(of.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(of.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which structure the storage holds.
            let of: &libc::sockaddr_in6 = unsafe { &*std::ptr::from_ref(name).cast() };
            let ip = Ipv6Addr::from(of.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(of.sin6_port), of.sin6_flowinfo, of.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Fills in an address; its length.
fn receiver(name: &mut libc::sockaddr_storage, to: SocketAddr) -> libc::socklen_t {
    match to {
        SocketAddr::V4(to) => {
            // SAFETY: the storage is large enough and aligned for either family's structure.
            let of: &mut libc::sockaddr_in = unsafe { &mut *std::ptr::from_mut(name).cast() };
            of.sin_family = libc::AF_INET as libc::sa_family_t;
            of.sin_port = to.port().to_be();
            of.sin_addr.s_addr = u32::from(*to.ip()).to_be();
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(to) => {
            // SAFETY: as above.
            let of: &mut libc::sockaddr_in6 = unsafe { &mut *std::ptr::from_mut(name).cast() };
            of.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            of.sin6_port = to.port().to_be();
            of.sin6_addr.s6_addr = to.ip().octets();
            of.sin6_flowinfo = to.flowinfo();
            of.sin6_scope_id = to.scope_id();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    /// Waits for a datagram; the socket itself doesn't block.
    fn await_one(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr, Option<IpAddr>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match receive(socket.as_fd(), buffer) {
                Ok(datagram) => return datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        for (any, asked) in [("0.0.0.0:0", "127.0.0.53"), ("[::]:0", "::1")] {
            let Ok(server) = UdpSocket::bind(any) else {
                return crate::trial::skipped("an answer leaves from the address asked", "no IPv6");
            };
            let asked: IpAddr = asked.parse().expect("an address");
            tell_destination(server.as_fd(), asked.is_ipv6()).expect("told");
            let client = UdpSocket::bind((asked, 0)).expect("a socket");
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
            // Connected: it takes datagrams from the address that it asked, and from no other.
            client.connect((asked, server.local_addr().expect("bound").port())).expect("connected");
            client.send(b"question").expect("sent");
            let mut buffer = [0; 64];
            let (length, from, to) = await_one(&server, &mut buffer);
            assert_eq!(&buffer[..length], b"question");
            assert_eq!((from, to), (client.local_addr().expect("bound"), Some(asked)));
            send(server.as_fd(), b"answer", from, to).expect("sent");
            let length = client.recv(&mut buffer).expect("an answer");
            assert_eq!(&buffer[..length], b"answer");
        }
    }
}
