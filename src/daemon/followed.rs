//! Files that the daemon follows: the certificate of the listeners, and the secrets of clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::IntCounter;
use tokio::sync::watch;

use super::Error;
use super::ending::AdminParts;
use super::vital::Vital;
use crate::admin::operators::{self, Operators};
use crate::clock::Clock;
use crate::config::Config;
use crate::follow::{Bad, Follower};
use crate::http::tls::Tls;
use crate::http::tls::pair::{Files, Pair};
use crate::ingest::client::{Clients, Directory};
use crate::metrics::Metrics;
use crate::reload::Reload;

/// TLS for each listener. `None` means plain HTTP.
#[derive(Default)]
pub(super) struct Secured {
    pub(super) ingest: Option<Tls>,
    pub(super) admin: Option<Tls>,
}

/// What it takes to follow files while the admin listener is served.
pub(super) struct Following<'a> {
    pub(super) config: &'a Config,
    pub(super) clock: &'a Clock,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) reload: &'a Reload,
    pub(super) parts: &'a AdminParts,
    pub(super) vital: &'a Vital,
}

impl Following<'_> {
    /// Reads the certificate of the listeners, and follows its files.
    pub(super) fn secured(&self) -> Result<Secured, Error> {
        let Some(tls) = &self.config.tls else { return Ok(Secured::default()) };
        let (files, wall, shown) = (tls.files.clone(), self.clock.clone(), Arc::clone(self.metrics));
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
        let failures = &self.metrics.tls_reload_failures;
        let pair = self.follow("certificate", "TLS certificate", failures, read)?;
        let of = |required| Tls::new(pair.clone(), required, self.metrics.tls_handshake_failures.clone());
        Ok(Secured {
            ingest: tls.on_ingest.then(|| of(tls.client_required)),
            // Probes present no certificate.
            admin: tls.on_admin.then(|| of(false)),
        })
    }

    /// The operators, with their secrets.
    pub(super) fn operators(&self) -> Result<watch::Receiver<Arc<operators::Directory>>, Error> {
        let operators = self.reload.operators();
        let read = move || Operators::clone(&operators.borrow()).load();
        self.follow("operators", "operators and their secrets", &self.metrics.auth_reload_failures, read)
    }

    /// The clients of the ingest listener, with their secrets.
    pub(super) fn clients(&self) -> Result<watch::Receiver<Arc<Directory>>, Error> {
        super::users::warn(self.config);
        let clients = self.reload.clients();
        let read = move || Clients::clone(&clients.borrow()).load();
        self.follow("secrets", "clients and their secrets", &self.metrics.auth_reload_failures, read)
    }

    /// Reads a value, and follows its files as a task called `stage`. `what` names the files in the log.
    fn follow<T: Send + Sync + 'static>(
        &self,
        stage: &'static str,
        what: &'static str,
        failures: &IntCounter,
        read: impl Fn() -> Result<([u8; 32], T), Bad> + Send + Sync + 'static,
    ) -> Result<watch::Receiver<Arc<T>>, Error> {
        let follower = Follower::new(what, self.clock.clone(), failures.clone(), read)?;
        let (value, stop) = (follower.value(), &self.parts.stop);
        let following = follower.run(self.reload.signals(), stop.clone());
        self.vital.spawn_endless(&self.parts.tasks, stage, stop.clone(), following);
        Ok(value)
    }
}

fn warn(files: &Files, pair: &Pair, clock: &Clock) {
    if pair.expires <= clock.wall_millis() {
        let (expired, cert) = (pair.expires.rfc3339(), files.cert.display());
        tracing::error!(expired, %cert, "the TLS certificate has expired: clients refuse it");
    }
}
