//! Notifies waiters that lanes have changed, or that the store is lost.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The current version of the store. Waiters for a later one are woken in order. tokio's watch channel wakes them in
/// random order, which would make the simulation irreproducible.
#[derive(Default)]
pub(super) struct News {
    version: AtomicU64,
    told: Notify,
}

impl News {
    pub(super) fn tell(&self, version: u64) {
        if self.version.swap(version, Ordering::Release) != version {
            self.told.notify_waiters();
        }
    }

    pub(super) async fn after(&self, since: u64) {
        loop {
            // Registered before the version is read, so that it misses no notification.
            let told = self.told.notified();
            if self.version.load(Ordering::Acquire) > since {
                return;
            }
            told.await;
        }
    }
}

/// News of `Changes::Any`, and of `Changes::Buried`.
#[derive(Default)]
pub(super) struct AllNews {
    pub(super) any: News,
    pub(super) buried: News,
}

impl AllNews {
    pub(super) fn tell(&self, version: u64, buried: u64) {
        self.any.tell(version);
        self.buried.tell(buried);
    }
}

/// Why the store is lost, once it is.
#[derive(Default)]
pub(super) struct Poison {
    why: OnceLock<String>,
    told: Notify,
}

impl Poison {
    pub(super) fn get(&self) -> Option<&String> {
        self.why.get()
    }

    /// The first reason stays.
    pub(super) fn set(&self, why: String) {
        self.why.get_or_init(|| why);
        self.told.notify_waiters();
    }

    pub(super) async fn wait(&self) -> String {
        loop {
            // Registered before the check, so that it misses no notification.
            let told = self.told.notified();
            if let Some(why) = self.get() {
                return why.clone();
            }
            told.await;
        }
    }
}
