//! What goes back: a whole body, or a stream that grows while it is read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body::{Body, Frame, SizeHint};

/// An error inside a streamed body; it ends the body short.
pub type StreamError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
pub struct ServerBody(Inner);

enum Inner {
    Whole(Option<Bytes>),
    Stream(BoxStream<'static, Result<Bytes, StreamError>>),
}

impl ServerBody {
    /// A body that is here already.
    pub fn whole(bytes: impl Into<Bytes>) -> ServerBody {
        ServerBody(Inner::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty())))
    }

    /// Changes what is here whole already.
    pub(crate) fn map(self, change: impl FnOnce(Bytes) -> Bytes) -> ServerBody {
        match self.0 {
            Inner::Whole(Some(bytes)) => ServerBody::whole(change(bytes)),
            inner => ServerBody(inner),
        }
    }

    /// No body.
    pub fn empty() -> ServerBody {
        ServerBody(Inner::Whole(None))
    }

    /// A body that is made as it is read.
    pub fn stream(stream: BoxStream<'static, Result<Bytes, StreamError>>) -> ServerBody {
        ServerBody(Inner::Stream(stream))
    }
}

impl Body for ServerBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match &mut self.0 {
            Inner::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|item| item.map(|result| result.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Inner::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Whole(None) => SizeHint::with_exact(0),
            Inner::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Stream(_) => SizeHint::default(),
        }
    }
}
