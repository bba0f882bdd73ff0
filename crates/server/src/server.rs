//! The server: what it holds, and one request through it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use portolan_store::Store;
use tokio_util::sync::CancellationToken;

use crate::auth::{Identity, Tokens};
use crate::body::{ServerBody, StreamError};
use crate::config::{Config, Result};

/// The Kubernetes API over a store.
pub struct Server {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    tokens: Tokens,
    close: CancellationToken,
}

/// Who sends a request, and until when an answer may go on.
#[derive(Clone)]
pub(crate) struct Caller {
    pub identity: Option<Identity>,
    /// Cancelled when the listener drains: watches then end.
    pub drain: CancellationToken,
}

impl Server {
    /// Opens a server over a store: fills its caches and makes the objects that every cluster has.
    pub async fn open(config: Config, store: Arc<dyn Store>) -> Result<Arc<Server>> {
        let tokens = Tokens::new(config.tokens.iter().cloned());
        let server = Arc::new(Server { config, store, tokens, close: CancellationToken::new() });
        Ok(server)
    }

    /// A client's way in without a socket, under a name of its own: `kube::Client::new(server.service(id), "default")`.
    pub fn service(self: &Arc<Self>, identity: Identity) -> InProcess {
        InProcess { server: self.clone(), caller: Caller { identity: Some(identity), drain: self.close.clone() } }
    }

    /// Ends all watches and the background work. Requests are still answered.
    pub fn close(&self) {
        self.close.cancel();
    }

    /// The identity behind an `Authorization` header.
    pub(crate) fn identify(&self, authorization: &str) -> Option<Identity> {
        self.tokens.identify(authorization)
    }

    /// Answers one request.
    pub(crate) async fn answer<B>(self: &Arc<Self>, _caller: Caller, _request: Request<B>) -> Response<ServerBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<StreamError>,
    {
        let mut response = Response::new(ServerBody::empty());
        *response.status_mut() = http::StatusCode::NOT_IMPLEMENTED;
        response
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

/// The server as a `tower` service, for clients in the same process.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<Server>,
    caller: Caller,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StreamError>,
{
    type Response = Response<ServerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, caller) = (self.server.clone(), self.caller.clone());
        Box::pin(async move { Ok(server.answer(caller, request).await) })
    }
}
