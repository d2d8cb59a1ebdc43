//! What every call has to pass before it reaches its service.

use super::Api;
use crate::metrics::methods::{self, METHODS};
use e2d_api::errors::{self, Known};
use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use std::convert::Infallible;
use std::future::{self, Future, Ready};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::body::Body;

/// The services behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    api: Api,
    inner: S,
}

impl Api {
    /// Puts services behind the gate: a call that says it needs a leader is refused while there is none, and a version
    /// of the client must be text.
    pub fn gate<S>(&self, inner: S) -> Gated<S> {
        Gated { api: self.clone(), inner }
    }
}

/// Whether a call may pass, and if so, whether its streams are to end when the leader is lost.
pub(super) fn may_pass(headers: &HeaderMap, has_leader: impl FnOnce() -> bool) -> Result<bool, Known> {
    if headers.get("client-api-version").is_some_and(|version| std::str::from_utf8(version.as_bytes()).is_err()) {
        return Err(errors::INVALID_CLIENT_API_VERSION);
    }
    let needs_leader = headers.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
    if needs_leader && !has_leader() {
        return Err(errors::NO_LEADER);
    }
    Ok(needs_leader)
}

impl<S, B> tower::Service<Request<B>> for Gated<S>
where
    S: tower::Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, Timed<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match may_pass(request.headers(), || self.api.consensus.state().leader().is_some()) {
            Ok(_) => {
                let timed = Timed {
                    method: methods::find(request.uri().path()),
                    began: Instant::now(),
                    warn_after: self.api.warn_after,
                    future: self.inner.call(request),
                };
                Either::Right(timed)
            }
            Err(known) => Either::Left(future::ready(Ok(Status::from(known).into_http()))),
        }
    }
}

pin_project! {
    /// A call that is warned about when it takes long. The future of a stream ends when the stream begins, so only unary
    /// calls can.
    pub struct Timed<F> {
        method: usize,
        began: Instant,
        warn_after: Duration,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let output = ready!(this.future.poll(context));
        let took = this.began.elapsed();
        if took > *this.warn_after {
            let method = &METHODS[*this.method];
            tracing::warn!(
                service = method.service,
                method = method.name,
                milliseconds = took.as_millis() as u64,
                expected_milliseconds = this.warn_after.as_millis() as u64,
                "a request took long"
            );
        }
        Poll::Ready(output)
    }
}
