//! What the operator's API answers while the outbox is away.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use http::{Method, Request};
use tower_service::Service;

use super::*;
use crate::clock::UnixMillis;
use crate::event::name::Home;
use crate::outbox::embedded::engine::Engine;
use crate::outbox::embedded::memory::MemoryDisk;
use crate::outbox::embedded::writer::{Handle, Writer};
use crate::outbox::testing::{Leaving, RETRY_AFTER};

fn settings() -> Settings {
    Settings {
        rules: admit::Rules { home: Home::default(), redrives_max: 3 },
        limits: problems::Limits { bytes_max: 1 << 30, events_max: 1_000, disk_reserve: 0 },
        functions_max: 100,
        queues: api::Queues { queue_url: None, functions: Vec::new(), endpoint_url: None, region: None },
    }
}

/// An API whose outbox is there, and the work of the outbox.
fn admin() -> (Admin<Leaving<Handle>>, Leaving<Handle>, impl Future<Output = ()>) {
    let (clock, metrics) = (Clock::seeded(UnixMillis(1_790_000_000_000), 1), Arc::new(Metrics::new().unwrap()));
    let limits = outbox::Limits {
        bytes_max: 64 << 20,
        events_max: 1_000,
        functions_max: 100,
        dedupe_window: Duration::from_secs(60),
        sdk_window: Duration::from_secs(60),
    };
    let stored = outbox::embedded::Settings { limits, disk_reserve: 0, segment_bytes: 1 << 20, cache: 1 << 20 };
    let engine = Engine::open(MemoryDisk::default().open(), stored, clock.clone(), "memory").unwrap();
    let (writer, handle) = Writer::new(engine, clock.clone(), metrics.clone());
    let leaving = Leaving::new(handle);
    let admin = Admin::new(Readiness::new(&metrics), metrics, clock);
    admin.set_outbox(Some(leaving.clone()));
    admin.set_settings(settings());
    (admin, leaving, writer.run_async(|| Duration::from_millis(1)))
}

async fn ask(router: &mut Router, method: Method, path: &str, body: &str) -> (StatusCode, String, String) {
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    let response = router.call(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let retry_after = head.headers.get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (head.status, retry_after.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn whatever_asks_an_outbox_that_is_away_gets_503_and_when_to_ask_again() {
    let (admin, leaving, work) = admin();
    let id = "01a0c5a1b2c3d4e5f60718293a4b5c6d"; // any id: the outbox is not there to look for it
    let event = format!("/v1/events/{id}");
    let letter = format!("/v1/dead-letters/{id}");
    let ids = format!("{{\"ids\": [\"{id}\"]}}");
    let asked = [
        (Method::GET, "/v1/events", ""),
        (Method::GET, event.as_str(), ""),
        (Method::DELETE, event.as_str(), ""),
        (Method::POST, &format!("{event}/attempt"), ""),
        (Method::GET, "/v1/functions", ""),
        (Method::POST, "/v1/functions/orders/pause", ""),
        (Method::POST, "/v1/functions/orders/resume", ""),
        (Method::POST, "/v1/functions/orders/purge", "{}"),
        (Method::GET, "/v1/dead-letters", ""),
        (Method::GET, letter.as_str(), ""),
        (Method::DELETE, letter.as_str(), ""),
        (Method::POST, "/v1/dead-letters/redrive", &ids),
        (Method::POST, "/v1/dead-letters/purge", &ids),
    ];
    let mut router = admin.router();
    let story = async {
        leaving.leave();
        for (method, path, body) in asked {
            let before = leaving.refused();
            let (status, retry_after, body) = ask(&mut router, method.clone(), path, body).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}: {body}");
            assert_eq!(retry_after, RETRY_AFTER.as_secs().to_string(), "{method} {path}");
            assert!(body.contains("the outbox is away") && leaving.refused() > before, "{method} {path}: {body}");
        }
        let (status, _, body) = ask(&mut router, Method::GET, "/readyz", "").await;
        assert!(status == StatusCode::SERVICE_UNAVAILABLE && body.contains("outbox is away"), "{body}");
        leaving.come_back();
        assert_eq!(ask(&mut router, Method::GET, "/v1/events", "").await.0, StatusCode::OK);
    };
    tokio::select! {
        () = story => {}
        () = work => panic!("the outbox ended"),
    }
}
