//! Files that the daemon follows: the certificate of the listeners, and the secrets of clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::Error;
use super::ending::AdminParts;
use super::vital::Vital;
use crate::admin::operators;
use crate::clock::Clock;
use crate::config::Config;
use crate::follow::Follower;
use crate::http::tls::Tls;
use crate::http::tls::pair::{Files, Pair};
use crate::ingest::client::Directory;
use crate::metrics::Metrics;

/// TLS for each listener. `None` means plain HTTP.
#[derive(Default)]
pub(super) struct Secured {
    pub(super) ingest: Option<Tls>,
    pub(super) admin: Option<Tls>,
}

/// Reads the certificate, and follows its files while the admin listener is served.
pub(super) fn secured(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    reload: watch::Receiver<u64>,
    parts: &AdminParts,
    vital: &Vital,
) -> Result<Secured, Error> {
    let Some(tls) = &config.tls else { return Ok(Secured::default()) };
    let follower = {
        let (files, wall, shown) = (tls.files.clone(), clock.clone(), Arc::clone(metrics));
        let is_first = AtomicBool::new(true);
        let read = move || {
            // At the start even an expired certificate is served. A daemon that does not start would deliver nothing.
            let loaded = if is_first.swap(false, Ordering::Relaxed) {
                files.load().inspect(|(_, pair)| warn(&files, pair, &wall))
            } else {
                files.load_valid(wall.wall_millis())
            };
            loaded.inspect(|(_, pair)| {
                shown.tls_certificate_expiry_timestamp_seconds.set(pair.expires.0 as f64 / 1_000.0);
            })
        };
        Follower::new("TLS certificate", clock.clone(), metrics.tls_reload_failures.clone(), read)?
    };
    let of = |required| Tls::new(follower.value(), required, metrics.tls_handshake_failures.clone());
    let secured = Secured {
        ingest: tls.on_ingest.then(|| of(tls.client_required)),
        // Probes present no certificate.
        admin: tls.on_admin.then(|| of(false)),
    };
    let following = follower.run(reload, parts.stop.clone());
    vital.spawn_endless(&parts.tasks, "certificate", parts.stop.clone(), following);
    Ok(secured)
}

fn warn(files: &Files, pair: &Pair, clock: &Clock) {
    if pair.expires <= clock.wall_millis() {
        let (expired, cert) = (pair.expires.rfc3339(), files.cert.display());
        tracing::error!(expired, %cert, "the TLS certificate has expired: clients refuse it");
    }
}

/// The operators, with their secrets.
pub(super) fn operators(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    reload: watch::Receiver<u64>,
    parts: &AdminParts,
    vital: &Vital,
) -> Result<watch::Receiver<Arc<operators::Directory>>, Error> {
    let operators = config.operators.clone();
    let failures = metrics.auth_reload_failures.clone();
    let follower = Follower::new("secrets of operators", clock.clone(), failures, move || operators.load())?;
    let directory = follower.value();
    let following = follower.run(reload, parts.stop.clone());
    vital.spawn_endless(&parts.tasks, "operators", parts.stop.clone(), following);
    Ok(directory)
}

/// The clients of the ingest listener, with their secrets. `None` means that no clients are configured and none are
/// required.
pub(super) fn clients(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    reload: watch::Receiver<u64>,
    parts: &AdminParts,
    vital: &Vital,
) -> Result<Option<watch::Receiver<Arc<Directory>>>, Error> {
    let clients = config.clients.clone();
    if !clients.matter() {
        return Ok(None);
    }
    let failures = metrics.auth_reload_failures.clone();
    let follower = Follower::new("secrets of clients", clock.clone(), failures, move || clients.load())?;
    let directory = follower.value();
    let following = follower.run(reload, parts.stop.clone());
    vital.spawn_endless(&parts.tasks, "secrets", parts.stop.clone(), following);
    Ok(Some(directory))
}
