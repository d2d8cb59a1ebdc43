//! The gRPC services side by side: the first part of the path says whose a call is.
//!
//! tonic's own router would do as well, but it is made for paths with parameters and for handlers of any kind, and boxes
//! the request's body twice and the future once more: a microsecond or two of the twenty that a call costs.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

/// Services to choose from. Clones are cheap.
#[derive(Debug)]
pub struct Services<L>(Arc<L>);

/// No service.
#[derive(Debug, Clone, Copy)]
pub struct End;

/// A service, and the others.
#[derive(Debug, Clone)]
pub struct Link<S, L> {
    service: S,
    others: L,
}

impl End {
    /// Adds a service.
    pub fn with<S>(self, service: S) -> Link<S, End> {
        Link { service, others: self }
    }
}

impl<S, L> Link<S, L> {
    /// Adds a service, which is asked before the others: add last what is called most.
    pub fn with<T>(self, service: T) -> Link<T, Link<S, L>> {
        Link { service, others: self }
    }

    /// To be served.
    pub fn build(self) -> Services<Link<S, L>> {
        Services(Arc::new(self))
    }
}

type Future = BoxFuture<Response<Body>, Infallible>;

/// A list of services.
pub trait Dispatch<B> {
    /// Hands a call to the service that it is for.
    fn dispatch(&self, request: Request<B>) -> Future;
}

impl<B> Dispatch<B> for End {
    fn dispatch(&self, _: Request<B>) -> Future {
        Box::pin(std::future::ready(Ok(Status::new(Code::Unimplemented, "").into_http())))
    }
}

impl<B, S, L> Dispatch<B> for Link<S, L>
where
    S: NamedService + Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Future> + Clone,
    L: Dispatch<B>,
{
    fn dispatch(&self, request: Request<B>) -> Future {
        let rest = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(S::NAME));
        if rest.is_some_and(|rest| rest.starts_with('/')) {
            // The services that tonic generates are always ready; there is no other state in them than what an `Arc`
            // shares, so the clone is as good as the original.
            self.service.clone().call(request)
        } else {
            self.others.dispatch(request)
        }
    }
}

impl<L> Clone for Services<L> {
    fn clone(&self) -> Services<L> {
        Services(Arc::clone(&self.0))
    }
}

impl<B, L: Dispatch<B>> Service<Request<B>> for Services<L> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Future {
        self.0.dispatch(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its own name in a header.
    macro_rules! named {
        ($type:ident, $name:literal) => {
            #[derive(Clone)]
            struct $type;

            impl NamedService for $type {
                const NAME: &'static str = $name;
            }

            impl Service<Request<()>> for $type {
                type Response = Response<Body>;
                type Error = Infallible;
                type Future = Future;

                fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                    Poll::Ready(Ok(()))
                }

                fn call(&mut self, _: Request<()>) -> Future {
                    let answer = Response::builder().header("by", $name).body(Body::empty()).unwrap();
                    Box::pin(std::future::ready(Ok(answer)))
                }
            }
        };
    }
    named!(Kv, "p.KV");
    named!(KvLong, "p.KVLong");
    named!(Lease, "p.Lease");

    #[test]
    fn a_call_goes_to_the_service_that_its_path_names() {
        let mut services = End.with(Lease).with(KvLong).with(Kv).build();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (path, by) in [
            ("/p.KV/Put", Some("p.KV")),
            ("/p.KV/", Some("p.KV")),
            ("/p.KVLong/Put", Some("p.KVLong")),
            ("/p.Lease/x/y", Some("p.Lease")),
            ("/p.KV", None),
            ("/p.K/Put", None),
            ("//p.KV/Put", None),
            ("/q.KV/Put", None),
            ("/", None),
            ("*", None),
        ] {
            let answer = runtime.block_on(services.call(Request::get(path).body(()).unwrap())).unwrap();
            let got = answer.headers().get("by").map(|value| value.to_str().unwrap());
            assert_eq!(got, by, "{path}");
            let status = answer.headers().get(Status::GRPC_STATUS).map(|value| value.to_str().unwrap());
            assert_eq!(status, by.is_none().then_some("12"), "{path}");
        }
    }
}
