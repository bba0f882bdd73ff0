//! What goes back: a whole body, or a stream that grows while it is read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body::{Body, Frame, SizeHint};

/// An error inside a streamed body; it ends the body short.
pub type StreamError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
pub struct ServerBody {
    inner: Inner,
    /// Dropped when the body has ended or nobody reads it any more.
    _end: Option<Box<dyn Send>>,
}

enum Inner {
    Whole(Option<Bytes>),
    Stream(BoxStream<'static, Result<Bytes, StreamError>>),
}

impl ServerBody {
    fn of(inner: Inner) -> ServerBody {
        ServerBody { inner, _end: None }
    }

    /// Whether it grows while it is read.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.inner, Inner::Stream(_))
    }

    /// The same body, which drops this, too, at its end.
    pub(crate) fn with_end(self, end: Box<dyn Send>) -> ServerBody {
        ServerBody { _end: Some(Box::new((end, self._end))), ..self }
    }

    /// A body that is here already.
    pub fn whole(bytes: impl Into<Bytes>) -> ServerBody {
        ServerBody::of(Inner::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty())))
    }

    /// Changes what is here whole already.
    pub(crate) fn map(mut self, change: impl FnOnce(Bytes) -> Bytes) -> ServerBody {
        if let Inner::Whole(Some(bytes)) = &mut self.inner {
            *bytes = change(std::mem::take(bytes));
        }
        self
    }

    /// No body.
    pub fn empty() -> ServerBody {
        ServerBody::of(Inner::Whole(None))
    }

    /// A body that is made as it is read.
    pub fn stream(stream: BoxStream<'static, Result<Bytes, StreamError>>) -> ServerBody {
        ServerBody::of(Inner::Stream(stream))
    }
}

impl Body for ServerBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match &mut self.inner {
            Inner::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|item| item.map(|result| result.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.inner, Inner::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Whole(None) => SizeHint::with_exact(0),
            Inner::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Stream(_) => SizeHint::default(),
        }
    }
}
