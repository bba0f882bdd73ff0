//! WebSocket as a plain stream of bytes: what `SPDY/3.1+portforward.k8s.io` travels in (KEP-4006).

use bytes::{Bytes, BytesMut};
use portolan_stream::websocket::{self, Message, Side};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

const PIECE: usize = 32 * 1024;

/// The bytes in a WebSocket's messages, and the way back.
pub(crate) fn open<C>(connection: C) -> DuplexStream
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (near, far) = tokio::io::duplex(4 * PIECE);
    let (mut read, mut write) = tokio::io::split(connection);
    let (mut from_near, mut to_near) = tokio::io::split(far);
    let (answer, mut answers) = mpsc::channel::<Message>(8);
    tokio::spawn(async move {
        let mut decoder = websocket::Decoder::new(Side::Server);
        let mut buffer = vec![0; PIECE];
        loop {
            match decoder.next_message() {
                Ok(Some(Message::Binary(payload) | Message::Text(payload))) => {
                    if to_near.write_all(&payload).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Message::Ping(payload))) => drop(answer.send(Message::Pong(payload)).await),
                Ok(Some(Message::Pong(_))) => {}
                Ok(Some(close @ Message::Close(_))) => {
                    let _ = answer.send(close).await;
                    break;
                }
                Err(error) => {
                    let _ = answer.send(Message::Close(Some((1002, error.to_string())))).await;
                    break;
                }
                Ok(None) => match read.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => decoder.push(&buffer[..length]),
                },
            }
        }
        let _ = to_near.shutdown().await;
    });
    tokio::spawn(async move {
        let mut bytes = BytesMut::new();
        let mut buffer = vec![0; PIECE];
        let mut over = false;
        while !over {
            let message = tokio::select! {
                Some(answer) = answers.recv() => answer,
                read = from_near.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => Message::Close(Some((1000, String::new()))),
                    Ok(length) => Message::Binary(Bytes::copy_from_slice(&buffer[..length])),
                },
            };
            over = matches!(message, Message::Close(_));
            websocket::encode(&message, None, &mut bytes);
            if write.write_all_buf(&mut bytes).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
    near
}
