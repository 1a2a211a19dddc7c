//! Clients for regions other than the configured one.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The most clients kept. Beyond that, one is dropped: a client is cheap to make again, it only has to reconnect.
pub(super) const REGIONS_MAX: usize = 32;

/// One client for each region, made at first use.
#[derive(Debug)]
pub(super) struct RegionalClients<C>(Mutex<BTreeMap<String, C>>);

impl<C> Default for RegionalClients<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: Clone> RegionalClients<C> {
    pub(super) fn client(&self, region: &str, make: impl FnOnce() -> C) -> C {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(region) {
            return client.clone();
        }
        if clients.len() >= REGIONS_MAX {
            clients.pop_first();
        }
        let client = make();
        clients.insert(region.to_owned(), client.clone());
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_remembered_up_to_a_limit() {
        let clients = RegionalClients::default();
        for n in 0..REGIONS_MAX + 5 {
            assert_eq!(clients.client(&format!("eu-north-{n:02}"), || n), n);
        }
        assert_eq!(clients.0.lock().unwrap().len(), REGIONS_MAX);
        assert_eq!(clients.client("eu-north-36", || 0), 36, "made once");
        assert_eq!(clients.client("eu-north-00", || 100), 100, "made again");
    }
}
