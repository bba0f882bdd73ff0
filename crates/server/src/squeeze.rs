//! Large answers in gzip, for clients that take it.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Body as _;

use crate::body::ServerBody;

/// From how many bytes on it is worth it, and how hard it is tried, as in kube-apiserver (`defaultGzipThresholdBytes`,
/// `defaultGzipContentEncodingLevel`).
const THRESHOLD: u64 = 128 << 10;
const LEVEL: u32 = 1;

/// Whether the client takes gzip.
pub(crate) fn accepted(headers: &HeaderMap) -> bool {
    let accepts = |value: &HeaderValue| {
        let words = value.to_str().unwrap_or_default().split(',').map(str::trim);
        words.filter(|word| word.split(';').next() == Some("gzip")).any(|word| !word.ends_with("q=0"))
    };
    headers.get_all(header::ACCEPT_ENCODING).iter().any(accepts)
}

/// The answer, smaller if it is here whole and large. Streams stay: each event is to be seen when it happens.
pub(crate) fn whole(mut response: Response<ServerBody>) -> Response<ServerBody> {
    let large = response.body().size_hint().exact().is_some_and(|size| size >= THRESHOLD);
    if !large || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.map(|body| {
        body.map(|bytes| {
            let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::new(LEVEL));
            // A vector takes all that is written.
            let _ = encoder.write_all(&bytes);
            encoder.finish().unwrap_or_default().into()
        })
    })
}
