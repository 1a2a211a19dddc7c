//! Serves the operator's API and the probes.

use std::sync::Arc;

use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ending::AdminParts;
use super::listeners::{UnixSockets, Unopened};
use super::vital::Vital;
use super::{ADMIN_CONNECTIONS_MAX, Error, Store, limits};
use crate::admin::Admin;
use crate::admin::access::Access;
use crate::admin::actions::Actions;
use crate::admin::bodies::Bodies;
use crate::admin::bulk::Bulk;
use crate::admin::guard::{Guard, guarded};
use crate::admin::operators::Directory;
use crate::admin::prefix::Below;
use crate::admin::snapshot::Snapshots;
use crate::admin::status::StatusRoutes;
use crate::admin::whoami::{self, About};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::host::Hosts;
use crate::http::tls::{Port, Tls};
use crate::http::{GivesWay, Listener, Server};
use crate::metrics::Metrics;

/// What the listeners of the operator's API and of the probes share.
pub(super) struct Serving<'a> {
    pub(super) config: &'a Config,
    pub(super) clock: &'a Clock,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) parts: &'a AdminParts,
    pub(super) vital: &'a Vital,
    pub(super) access: Access,
    pub(super) bodies: Bodies,
}

/// What decides about callers of the operator's API.
pub(super) fn access(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    operators: watch::Receiver<Arc<Directory>>,
) -> Access {
    Access {
        operators,
        read_only: config.operators.read_only,
        metrics_guarded: config.operators.metrics,
        own_uid: rustix::process::geteuid().as_raw(),
        actions: Actions::new(clock.clone(), Arc::clone(metrics)),
        metrics: Arc::clone(metrics),
    }
}

/// Every route of the operator's API.
pub(super) fn routes(
    operator: &Admin<Store>,
    status: &StatusRoutes<Store>,
    access: &Access,
    parts: &AdminParts,
    (prefix, clock): (&str, &Clock),
) -> axum::Router {
    let prefix = prefix.to_owned();
    let about = About { access: access.clone(), started_at: clock.now().rfc3339(), prefix };
    let bulk = Bulk::new(operator.clone(), access.actions.clone(), parts.tasks.clone(), parts.stop.clone());
    let routes = operator.router().merge(status.router()).merge(access.actions.router()).merge(bulk.router());
    routes.merge(Snapshots::new(status.clone()).router()).merge(whoami::router(about))
}

impl Serving<'_> {
    /// Serves routes on a TCP port.
    pub(super) fn port(&self, stage: &'static str, listener: TcpListener, tls: Option<Tls>, routes: axum::Router) {
        self.serve(stage, Port::new(listener, tls), routes, self.config.listen.admin_hosts.clone());
    }

    /// Opens the socket of `listen.admin_unix`, if there is one, and serves routes on it. Call this under the store's lock,
    /// because another daemon's socket file must not be replaced.
    pub(super) fn socket(&self, unopened: Unopened, routes: &axum::Router) -> Result<UnixSockets, Error> {
        let mut sockets = unopened.open()?;
        for socket in sockets.listeners.drain(..) {
            // Web pages cannot reach a socket file, so every host name is fine.
            self.serve("admin socket", socket, routes.clone(), Hosts::any());
        }
        Ok(sockets)
    }

    /// Every new connection is accepted, and another one gives way, because probes must always be answered.
    fn serve(&self, stage: &'static str, listener: impl Listener, routes: axum::Router, hosts: Hosts) {
        let Self { config, clock, metrics, parts, vital, access, bodies } = self;
        let AdminParts { tasks, stop, cut } = parts;
        let guard = Guard {
            hosts,
            body_timeout: config.ingest.body_timeout,
            metrics: Arc::clone(metrics),
            bodies: bodies.clone(),
            leftovers: tasks.clone(),
        };
        let limits = limits(&config.ingest, ADMIN_CONNECTIONS_MAX);
        let server = Server::new(limits, None, (*clock).clone(), stop.clone(), tasks.clone());
        let server = server.cut_by(cut.clone()).giving_way(GivesWay::Any);
        let below = Below::new(guarded(routes, guard, access.clone()), &config.listen.admin_prefix);
        let service = TowerToHyperService::new(below);
        vital.spawn_endless(tasks, stage, stop.clone(), server.serve(listener, service));
    }
}
