//! Turns bytes into frames and frames into bytes, as the specifications of WebSocket and SPDY/3.1 say; no I/O, no clock.
//!
//! Both are what kubectl's exec, attach and port-forward speak once HTTP has been left behind. Absent on purpose: extensions
//! of WebSocket, SPDY's flow control (its one client, Go's spdystream, has none) and server push.

pub mod spdy;
pub mod websocket;
