//! WebSocket.

use bytes::{Bytes, BytesMut};
use portolan_stream::websocket::{Decoder, Error, LONGEST, Message, Side, accept, encode};
use proptest::prelude::*;

fn message() -> impl Strategy<Value = Message> {
    let short = || proptest::collection::vec(any::<u8>(), 0..126).prop_map(Bytes::from);
    let long = proptest::collection::vec(any::<u8>(), 0..70_000).prop_map(Bytes::from);
    prop_oneof![
        long.prop_map(Message::Binary),
        short().prop_map(Message::Text),
        short().prop_map(Message::Ping),
        short().prop_map(Message::Pong),
        proptest::option::of((1000u16..5000, "[a-zü]{0,50}")).prop_map(Message::Close),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_one_side_says_the_other_hears(
        messages in proptest::collection::vec(message(), 0..6),
        places in proptest::collection::vec(any::<usize>(), 0..20),
        mask in proptest::option::of(any::<[u8; 4]>()),
    ) {
        let mut bytes = BytesMut::new();
        for message in &messages {
            encode(message, mask, &mut bytes);
        }
        let mut decoder = Decoder::new(if mask.is_some() { Side::Server } else { Side::Client });
        let mut heard = Vec::new();
        for piece in super::cut(&bytes, &places) {
            decoder.push(piece);
            while let Some(message) = decoder.next_message().expect("frames of ours") {
                heard.push(message);
            }
        }
        prop_assert_eq!(heard, messages);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::new(Side::Server);
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_message() {}
    }
}

fn decode(side: Side, bytes: &[u8]) -> Result<Option<Message>, Error> {
    let mut decoder = Decoder::new(side);
    decoder.push(bytes);
    decoder.next_message()
}

#[test]
fn the_specifications_examples_are_understood() {
    // RFC 6455, sections 1.3 and 5.7.
    assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let hello = Ok(Some(Message::Text(Bytes::from("Hello"))));
    assert_eq!(decode(Side::Client, b"\x81\x05Hello"), hello);
    assert_eq!(decode(Side::Server, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), hello);
    assert_eq!(decode(Side::Client, b"\x01\x03Hel\x80\x02lo"), hello);
    // A ping may come between the parts of a message.
    let mut decoder = Decoder::new(Side::Client);
    decoder.push(b"\x01\x03Hel\x89\x01x\x80\x02lo");
    assert_eq!(decoder.next_message(), Ok(Some(Message::Ping(Bytes::from("x")))));
    assert_eq!(decoder.next_message(), hello);
}

#[test]
fn what_breaks_the_protocol_is_refused() {
    assert_eq!(decode(Side::Server, b"\x81\x05Hello"), Err(Error::Mask));
    assert_eq!(decode(Side::Client, b"\xc1\x05Hello"), Err(Error::Protocol), "a reserved bit");
    assert_eq!(decode(Side::Client, b"\x80\x05Hello"), Err(Error::Protocol), "a continuation of nothing");
    assert_eq!(decode(Side::Client, b"\x09\x01x"), Err(Error::Protocol), "a ping in parts");
    assert_eq!(decode(Side::Client, b"\x88\x01x"), Err(Error::Protocol), "half a status code");
    let too_long = [&[0x82, 127][..], &(LONGEST as u64 + 1).to_be_bytes()].concat();
    assert_eq!(decode(Side::Client, &too_long), Err(Error::TooLong));
}
