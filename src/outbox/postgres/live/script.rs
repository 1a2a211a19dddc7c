//! Running the scripts of a migration, and looking at what a database has.

use tokio_postgres::SimpleQueryMessage;

use super::{CONNECT_MAX, STATEMENT_MAX, Session};
use crate::outbox::postgres::Server;
use crate::outbox::postgres::base::Trouble;

/// A connection for one command.
pub(in crate::outbox::postgres) struct Scripts {
    session: Session,
}

impl Scripts {
    pub(in crate::outbox::postgres) async fn open(server: &Server) -> Result<Self, Trouble> {
        let opened = tokio::time::timeout(CONNECT_MAX, Session::open(server, STATEMENT_MAX)).await;
        let session = opened.unwrap_or_else(|_| Err(Trouble::Away(format!("{} does not answer", server.shown()))))?;
        Ok(Self { session })
    }

    /// Whether a pooler stands between.
    pub(in crate::outbox::postgres) fn is_pooled(&self) -> bool {
        self.session.pooled.is_some()
    }

    /// Runs a script. Its statements share a transaction, unless the script says otherwise.
    pub(in crate::outbox::postgres) async fn run(&self, script: &str) -> Result<(), Trouble> {
        self.session.client.batch_execute(script).await.map_err(|error| self.session.trouble(&error))
    }

    /// The rows of a query, as text.
    pub(in crate::outbox::postgres) async fn ask(&self, query: &str) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        let messages = self.session.client.simple_query(query).await.map_err(|error| self.session.trouble(&error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|nth| row.get(nth).map(str::to_owned)).collect::<Vec<_>>())
            }
            SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
        });
        Ok(rows.collect())
    }
}
