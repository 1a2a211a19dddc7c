//! What the writer tells whoever waits: that lanes have changed, or that the store is lost.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The version that the store has come to. Who waits for a later one is woken in turn: a watch channel of tokio leaves the
/// order to chance, and the simulation could not repeat itself.
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
            // Before the look at the version: it hears of all that is told from here on.
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
            // Before the look: it hears of all that is told from here on.
            let told = self.told.notified();
            if let Some(why) = self.get() {
                return why.clone();
            }
            told.await;
        }
    }
}
