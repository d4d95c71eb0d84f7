//! One server, several services: picks by the first part of the path. (tonic's own router would bring a web
//! framework along for the same few lines.)

use std::convert::Infallible;
use std::fmt;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tower::util::BoxCloneService;

use super::status::no_such_service;

type Boxed = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

/// The services by name; cloned for each connection.
#[derive(Clone, Default)]
pub(super) struct Router {
    services: Vec<(&'static str, Boxed)>,
}

impl Router {
    /// With one more.
    pub(super) fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        self.services.push((S::NAME, BoxCloneService::new(service)));
        self
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.services.iter().map(|(name, _)| name)).finish()
    }
}

/// `holdfast.agent.v1.Node` of `/holdfast.agent.v1.Node/Show`.
fn service_of(path: &str) -> Option<&str> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!method.is_empty()).then_some(service)
}

impl Service<Request<Body>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Generated services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let wanted = service_of(request.uri().path());
        match self.services.iter_mut().find(|(name, _)| Some(*name) == wanted) {
            Some((_, service)) => Box::pin(service.call(request)),
            None => {
                let response = no_such_service(request.uri().path());
                Box::pin(async move { Ok(response) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_without_service_and_method_name_none() {
        assert_eq!(service_of("/a.b.C/D"), Some("a.b.C"));
        for path in ["", "/", "a/b", "/a", "/a/"] {
            assert_eq!(service_of(path), None, "{path}");
        }
    }
}
