//! Serves the operator's API below a path as well (`listen.admin_prefix`), for a proxy that hands paths on as they are.
//!
//! Holds: the prefix is taken off before anything else looks at a request, so the guard, the rights and the handlers see
//! the same paths with and without it. Everything is also served without it: probes, scrapers and commands need none.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::future::{Either, Ready, ready};
use http::header::{CACHE_CONTROL, LOCATION};
use http::uri::PathAndQuery;
use http::{Request, StatusCode, Uri};
use tower_service::Service;

/// A service, also below a prefix.
#[derive(Clone)]
pub struct Below<S> {
    inner: S,
    /// Empty, or with a slash at its beginning and none at its end.
    prefix: Arc<str>,
}

impl<S> Below<S> {
    pub fn new(inner: S, prefix: &str) -> Self {
        Self { inner, prefix: prefix.into() }
    }
}

impl<S, B> Service<Request<B>> for Below<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Self::Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match route(&self.prefix, request.uri()) {
            Route::Here => {}
            Route::Below(uri) => *request.uri_mut() = uri,
            Route::Slash(location) => {
                let head = [(LOCATION, location), (CACHE_CONTROL, "no-store".to_owned())];
                return Either::Left(ready(Ok((StatusCode::PERMANENT_REDIRECT, head).into_response())));
            }
        }
        Either::Right(self.inner.call(request))
    }
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    /// Its path stays as it is.
    Here,
    /// Its path is this without the prefix.
    Below(Uri),
    /// It names the prefix without a slash at its end, from which relative links of the page would lead astray.
    Slash(String),
}

fn route(prefix: &str, uri: &Uri) -> Route {
    let Some(rest) = uri.path().strip_prefix(prefix).filter(|_| !prefix.is_empty()) else { return Route::Here };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if rest.is_empty() {
        return Route::Slash(format!("{prefix}/{query}"));
    }
    if !rest.starts_with('/') {
        return Route::Here;
    }
    let mut parts = uri.clone().into_parts();
    // A part of a valid path from a slash on is a valid path.
    parts.path_and_query = format!("{rest}{query}").parse::<PathAndQuery>().ok();
    Uri::from_parts(parts).map_or(Route::Here, Route::Below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_taken_off_and_everything_else_stays() {
        let of = |uri: &str| route("/ops/sendoff", &uri.parse().unwrap());
        let below = |uri: &str| Route::Below(uri.parse().unwrap());
        assert_eq!(of("/ops/sendoff/v1/status?x=%2F"), below("/v1/status?x=%2F"));
        assert_eq!(of("/ops/sendoff/"), below("/"));
        assert_eq!(of("/ops/sendoff//v1/status"), below("//v1/status"));
        assert_eq!(of("http://localhost:9478/ops/sendoff/livez"), below("http://localhost:9478/livez"));
        assert_eq!(of("/ops/sendoff/ops/sendoff/livez"), below("/ops/sendoff/livez"), "once");
        assert_eq!(of("/ops/sendoff"), Route::Slash("/ops/sendoff/".to_owned()));
        assert_eq!(of("/ops/sendoff?a=1"), Route::Slash("/ops/sendoff/?a=1".to_owned()));
        for here in ["/", "/livez", "/v1/status", "/ops/sendoffx/livez", "/ops", "/OPS/sendoff/livez"] {
            assert_eq!(of(here), Route::Here, "{here}");
        }
        assert_eq!(route("", &"/v1/status".parse().unwrap()), Route::Here);
    }
}
