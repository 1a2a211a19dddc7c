//! The OpenAPI document of the admin listener, made of its handlers and of the types that they read and write.

use std::sync::LazyLock;

use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::{__path_livez, __path_metrics, __path_readyz};
use super::{
    actions, bulk, dead_letters, events, functions, groups, guard, keys, recent, series, shown_config, snapshot,
    status, whoami,
};

/// The document, as JSON.
pub fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        // A document of text and numbers cannot fail to be written.
        Document::openapi().to_pretty_json().unwrap_or_default()
    });
    &DOCUMENT
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "sendoff admin",
        description = "The operator's API of sendoff, on the admin listener (listen.admin). Applications send events to the \
                       ingest listener, whose document is at /v1/openapi.json there.",
    ),
    paths(
        livez,
        readyz,
        metrics,
        show,
        status::status,
        status::log_level,
        status::set_log_level,
        status::drain,
        status::end_drain,
        functions::list,
        functions::pause,
        functions::resume,
        functions::purge,
        events::list,
        events::show,
        events::cancel,
        events::attempt,
        dead_letters::list,
        dead_letters::import,
        dead_letters::revive,
        dead_letters::purge_all,
        dead_letters::queues,
        dead_letters::show,
        dead_letters::purge,
        dead_letters::redrive,
        actions::list,
        whoami::show,
        snapshot::show,
        series::show,
        recent::list,
        shown_config::show,
        keys::show,
        groups::list,
        bulk::start,
        bulk::list,
        bulk::show,
        bulk::stop,
    ),
    modifiers(&Everywhere)
)]
struct Document;

/// What can be answered to every request below `/v1/`: by the guard, and by a daemon that starts or whose outbox has failed.
struct Everywhere;

impl Modify for Everywhere {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let paths = document.paths.paths.iter_mut().filter(|(path, _)| path.starts_with("/v1/"));
        let operations = paths.flat_map(|(_, item)| [&mut item.get, &mut item.put, &mut item.post, &mut item.delete]);
        for operation in operations.flatten() {
            let has_body = operation.request_body.is_some();
            for (status, why, of_body) in guard::ANSWERS {
                if of_body && !has_body {
                    continue;
                }
                let content = Content::new(Some(Ref::from_schema_name("Message")));
                let response = ResponseBuilder::new().description(why).content("application/json", content);
                let responses = &mut operation.responses.responses;
                responses.entry(status.as_u16().to_string()).or_insert_with(|| RefOr::T(response.build()));
            }
        }
    }
}

/// This document
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    operation_id = "show_openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
pub(super) async fn show() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], document())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every route of the listener, as `METHOD /path`, found in the sources that make them.
    fn routes() -> BTreeSet<String> {
        let sources = [
            include_str!("../admin.rs"),
            include_str!("actions.rs"),
            include_str!("bulk.rs"),
            include_str!("dead_letters.rs"),
            include_str!("events.rs"),
            include_str!("functions.rs"),
            include_str!("series.rs"),
            include_str!("snapshot.rs"),
            include_str!("status.rs"),
            include_str!("whoami.rs"),
        ];
        let routes = sources.iter().flat_map(|source| source.split(".route(\"").skip(1));
        let methods = routes.flat_map(|route| {
            let (path, handlers) = route.split_once('"').unwrap();
            let handlers = handlers.lines().next().unwrap();
            let methods = ["get", "put", "post", "delete"].into_iter();
            methods
                .filter(move |method| handlers.contains(&format!("{method}(")))
                .map(move |method| format!("{method} {path}"))
        });
        methods.collect()
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let document: serde_json::Value = serde_json::from_str(document()).unwrap();
        let paths = document["paths"].as_object().unwrap().iter();
        let described = paths
            .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| format!("{method} {path}")));
        let described: BTreeSet<String> = described.collect();
        assert!(routes().len() > 20, "the routes are no longer found");
        assert_eq!(described, routes());
    }

    #[test]
    fn the_document_is_the_one_that_was_reviewed() {
        let golden = include_str!("../../tests/golden/openapi-admin.json");
        let why = "if this is meant: curl http://127.0.0.1:9478/v1/openapi.json > tests/golden/openapi-admin.json";
        assert_eq!(document().trim(), golden.trim(), "{why}");
    }
}
