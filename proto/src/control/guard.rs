//! The guard at a service's door: a call without the token is refused before a byte of its message is read.

use std::convert::Infallible;
use std::future::ready;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use crate::control::token::Token;

/// A service whose calls need a token.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    service: S,
    token: Token,
    open: &'static [&'static str],
}

impl<S> Guarded<S> {
    /// Every call of `service` needs `token`.
    pub fn new(service: S, token: Token) -> Guarded<S> {
        Guarded { service, token, open: &[] }
    }

    /// The calls of these paths (`/package.Service/Method`) need none.
    pub fn except(self, open: &'static [&'static str]) -> Guarded<S> {
        Guarded { open, ..self }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future = BoxFuture<Response<Body>, Infallible>,
        >,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !self.open.contains(&request.uri().path())
            && let Err(refusal) = self.token.authorize(request.headers())
        {
            return Box::pin(ready(Ok(refusal.into_http())));
        }
        self.service.call(request)
    }
}
