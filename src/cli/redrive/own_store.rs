//! An outbox that this command has opened itself, because no daemon runs on it.
//!
//! The command asks it through the same routes as a daemon. So letters are read, refused and remembered by the same
//! rules.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use crate::admin::{Admin, Readiness};
use crate::aws;
use crate::cli::admin_client::AdminClient;
use crate::cli::{Exit, Failure};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{self, Store};
use crate::metrics::Metrics;
use crate::outbox::{self, OpenError, Opened};

pub(super) struct OwnStore {
    admin: Admin<Store>,
    closing: BoxFuture<'static, Result<(), outbox::Error>>,
    /// The upkeep of the store. Ends with the store.
    keeping: JoinSet<Result<(), outbox::Error>>,
}

impl OwnStore {
    /// Takes the store's lock. Fails while a daemon has it.
    pub(super) async fn open(config: &Config, shared: &aws::Shared, clock: &Clock) -> Result<Self, Failure> {
        let metrics = Arc::new(Metrics::new().map_err(|error| Failure::new(Exit::Internal, error))?);
        let opened = daemon::open(config, clock, &metrics).await;
        let Opened { outbox, upkeep, closing } = opened.map_err(|error| match error {
            daemon::Error::Store(OpenError::Locked { path, .. }) => Failure::saying(
                Exit::Unavailable,
                format!("a daemon uses {path}: leave out --standalone to redrive through it"),
            ),
            daemon::Error::Store(error @ OpenError::Io { .. }) => Failure::new(Exit::Unavailable, error),
            error @ (daemon::Error::Store(OpenError::Newer { .. } | OpenError::Damaged { .. })
            | daemon::Error::Bind { .. }
            | daemon::Error::Closing(_)
            | daemon::Error::Aws(_)
            | daemon::Error::File(_)
            | daemon::Error::HandOff(_)
            | daemon::Error::System { .. }) => Failure::new(Exit::Internal, error),
        })?;
        let mut keeping = JoinSet::new();
        keeping.spawn(upkeep);
        let admin = Admin::new(Readiness::new(&metrics), metrics, clock.clone());
        admin.set_outbox(Some(outbox));
        admin.set_settings(daemon::admin_settings(config, shared));
        Ok(Self { admin, closing, keeping })
    }

    pub(super) fn client(&self) -> AdminClient {
        AdminClient::in_process(self.admin.router())
    }

    /// Closes the store after all requests are written.
    pub(super) async fn close(self) -> Result<(), Failure> {
        self.admin.set_outbox(None);
        let Self { closing, keeping, .. } = self;
        let closed = closing.await;
        drop(keeping);
        closed.map_err(|error| Failure::new(Exit::Internal, error))
    }
}
