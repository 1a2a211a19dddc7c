//! Who makes a request, what that client may do, and how it is counted.

use std::sync::Arc;

use http::request::Parts as Head;
use tokio::sync::watch;

use super::Door;
use crate::event::FunctionName;
use crate::event::check::echo;
use crate::ingest::client::{Caller, Client, Directory};
use crate::ingest::lambda_api::{InvocationType, Invoke};
use crate::ingest::refusal::{NotAllowed, Refusal};
use crate::trace;

/// Lambda's permission to invoke, for Events too.
const INVOKE: &str = "lambda:InvokeFunction";

/// The label in metrics for callers that are not known clients.
const UNKNOWN: &str = "unknown";

/// The clients that the door recognises.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// `None` if no clients are configured.
    directory: Option<watch::Receiver<Arc<Directory>>>,
    /// The daemon's own user, behind a Unix socket.
    behind: Option<u32>,
}

impl Known {
    /// The latest clients. `None` if no clients are configured.
    fn directory(&self) -> Option<Arc<Directory>> {
        let directory = Arc::clone(&self.directory.as_ref()?.borrow());
        directory.matters().then_some(directory)
    }
}

impl<O, P> Door<O, P> {
    /// The same door, with clients to recognise.
    pub fn knowing(self, directory: Option<watch::Receiver<Arc<Directory>>>) -> Self {
        Self { known: Known { directory, ..self.known }, ..self }
    }

    /// The same door behind a Unix socket. The kernel names the user of each connection. `own` is the daemon's own user.
    pub fn behind_a_file(self, own: u32) -> Self {
        Self { known: Known { behind: Some(own), ..self.known }, ..self }
    }

    /// Identifies the caller of a request. Removes a secret from its path.
    pub(super) fn caller(&self, head: &mut Head) -> Result<Caller, Refusal> {
        let Some(directory) = self.known.directory() else { return Ok(Caller::Anyone) };
        let now = self.shared.clock.wall_millis();
        let caller = directory.identify(head, now, self.known.behind).map_err(Refusal::Unidentified)?;
        if let Some(client) = caller.client() {
            trace::is_by(&client.name);
            self.shared.metrics.ingest_client_requests.with_label_values(&[&client.name]).inc();
        }
        Ok(caller)
    }

    /// Counts a refusal if clients are configured.
    pub(super) fn note_refused(&self, caller: &Caller, refusal: &Refusal) {
        if self.known.directory().is_some() {
            // Whoever fails to prove to be a client only claims its name.
            let proven = caller.client().filter(|_| !matches!(refusal, Refusal::Unidentified(_)));
            let client = proven.map_or(UNKNOWN, |client| &client.name);
            self.shared.metrics.ingest_client_refused.with_label_values(&[client, refusal.reason()]).inc();
        }
    }

    /// Whether the caller may hand over events for a function, or ask about them.
    pub(super) fn may_use(&self, caller: &Caller, function: &FunctionName) -> Result<(), Refusal> {
        match caller.client() {
            Some(client) if !client.may_use(function) => Err(not_allowed(client, function.as_str(), "functions")),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the caller may make this invocation.
    pub(super) fn may_invoke(&self, caller: &Caller, invoke: &Invoke) -> Result<(), Refusal> {
        self.may_use(caller, &invoke.function.name)?;
        match (caller.client(), invoke.invocation_type) {
            (Some(client), InvocationType::RequestResponse | InvocationType::DryRun) if !client.calls => {
                Err(not_allowed(client, invoke.function.name.as_str(), "calls"))
            }
            (_, InvocationType::RequestResponse | InvocationType::DryRun | InvocationType::Event) => Ok(()),
        }
    }

    /// Whether the caller may have another operation of Lambda's API passed through.
    pub(super) fn may_pass(&self, caller: &Caller, head: &Head) -> Result<(), Refusal> {
        match caller.client() {
            Some(client) if !client.may_pass(&head.method, &head.uri, &self.shared.settings.home) => {
                let key = if client.calls { "functions" } else { "calls" };
                let denied = denied(client, head.uri.path(), key);
                Err(Refusal::NotAllowed(NotAllowed { action: "this operation", ..denied }))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn not_allowed(client: &Client, resource: &str, key: &'static str) -> Refusal {
    Refusal::NotAllowed(denied(client, resource, key))
}

fn denied(client: &Client, resource: &str, key: &'static str) -> NotAllowed {
    NotAllowed { client: client.name.clone(), action: INVOKE, resource: echo(resource), key }
}
