//! SPDY.

use bytes::{Bytes, BytesMut};
use portolan_stream::spdy::{Decoder, Encoder, Error, Frame, Headers};
use proptest::prelude::*;

fn headers() -> impl Strategy<Value = Headers> {
    proptest::collection::vec(("[a-z-]{1,20}", "[ -~ü]{0,60}"), 0..12)
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = || 0u32..0x8000_0000;
    prop_oneof![
        (stream(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynStream {
            stream,
            fin,
            headers
        }),
        (stream(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
            stream,
            fin,
            headers
        }),
        (stream(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
            stream,
            fin,
            headers
        }),
        (stream(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..5000))
            .prop_map(|(stream, fin, data)| Frame::Data { stream, fin, data: data.into() }),
        (stream(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
        (stream(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (stream(), any::<u32>()).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        any::<u32>().prop_map(Frame::Ping),
        Just(Frame::Settings),
    ]
}

fn decode(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, Error> {
    decoder.push(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_one_side_says_the_other_hears(
        frames in proptest::collection::vec(frame(), 0..20),
        places in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut bytes);
        }
        let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
        for piece in super::cut(&bytes, &places) {
            heard.extend(decode(&mut decoder, piece).expect("frames of ours"));
        }
        prop_assert_eq!(heard, frames);
    }

    #[test]
    fn no_bytes_make_it_panic(kind in 0u8..12, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let length = [0, rest.len() as u8];
        let bytes = [&[0x80, 3, 0, kind, 0][..], &length[..], &[0][..], &rest[..]].concat();
        let _ = decode(&mut Decoder::default(), &bytes);
        let _ = decode(&mut Decoder::default(), &rest);
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

#[test]
fn headers_that_another_zlib_has_compressed_are_read() {
    // Two blocks of one connection, made by Python's zlib with the dictionary and a sync flush each.
    let first = "78bbe3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45a024cc64610024398b209198094adc8c0600000000ffff";
    let (first, second) = (unhex(first), unhex("0211185a41a55022000000ffff"));
    let frame = |stream: u8, block: &[u8]| {
        let head = [0x80, 3, 0, 1, 0, 0, 0, 10 + block.len() as u8, 0, 0, 0, stream, 0, 0, 0, 0, 0, 0];
        [&head[..], block].concat()
    };
    let mut decoder = Decoder::default();
    let frames = decode(&mut decoder, &[frame(1, &first), frame(3, &second)].concat()).expect("frames");
    let own = |pairs: &[(&str, &str)]| -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let opened = |stream, headers| Frame::SynStream { stream, fin: false, headers };
    assert_eq!(
        frames,
        [
            opened(1, own(&[("streamtype", "error"), ("port", "80"), ("requestid", "0")])),
            opened(3, own(&[("streamtype", "data")])),
        ]
    );
}

#[test]
fn what_breaks_the_protocol_is_refused() {
    let refused = |bytes: &[u8]| decode(&mut Decoder::default(), bytes);
    assert_eq!(refused(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]), Err(Error::Protocol), "SPDY/2");
    assert_eq!(refused(&[0x80, 3, 0, 5, 0, 0, 0, 0]), Err(Error::Protocol), "a frame that SPDY/3 gave up");
    assert_eq!(refused(&[0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0]), Err(Error::Protocol), "half a ping");
    assert_eq!(refused(&[0x80, 3, 0, 1, 0, 0xff, 0, 0]), Err(Error::Protocol), "64 KiB of headers at most");
    assert_eq!(refused(&[0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 1, 9, 9]), Err(Error::Headers));
}

#[test]
fn headers_that_swell_without_end_are_refused() {
    let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
    let bomb = vec![("x".to_owned(), "x".repeat(1 << 20))];
    encoder.encode(&Frame::SynReply { stream: 1, fin: false, headers: bomb }, &mut bytes);
    assert!(bytes.len() < 8 << 10, "it compresses well");
    assert_eq!(decode(&mut Decoder::default(), &bytes), Err(Error::Headers));
}

#[test]
fn long_data_is_sent_in_several_frames_and_only_the_last_ends_the_stream() {
    let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
    let data = Bytes::from(vec![7; (1 << 24) + 5]);
    encoder.encode(&Frame::Data { stream: 1, fin: true, data }, &mut bytes);
    let frames = decode(&mut Decoder::default(), &bytes).expect("frames");
    let sizes: Vec<_> = frames
        .iter()
        .map(|frame| match frame {
            Frame::Data { fin, data, .. } => (*fin, data.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [(false, (1 << 24) - 1), (true, 6)]);
}
