//! Calls through a pooler, such as PgBouncer in transaction mode: each transaction may meet another process of the server.
//!
//! So nothing of a session lasts there: no setting, and no prepared statement. Worse, a statement of the same name may be
//! another program's. Holds: through a pooler, each call is one transaction that sets all it needs, and prepares nothing by
//! name. It is sent in one piece, so no transaction waits for the daemon.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use futures_util::future::join3;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Row, SimpleQueryMessage};

use super::{Parameters, Session};
use crate::outbox::postgres::base::Trouble;

/// The types of all parameters of this engine.
const TYPES: [Type; 14] = [
    Type::BOOL,
    Type::INT2,
    Type::INT4,
    Type::INT8,
    Type::TEXT,
    Type::UUID,
    Type::BYTEA,
    Type::BOOL_ARRAY,
    Type::INT2_ARRAY,
    Type::INT4_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::UUID_ARRAY,
    Type::BYTEA_ARRAY,
];

/// The codes of the messages that a cancellation consists of, from the protocol of PostgreSQL.
const ASKS_FOR_TLS: i32 = 80_877_103;
const CANCELS: i32 = 80_877_102;

impl Session {
    /// Whether a pooler stands between. Then the process that answers is not the one that was named at the login.
    pub(super) async fn is_pooled(&self) -> Result<bool, Trouble> {
        let rows = self.client.simple_query("SELECT pg_backend_pid()").await.map_err(|error| self.trouble(&error))?;
        let answers = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i32>().ok(),
            SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
        });
        Ok(answers.is_none() || named_at_login(&self.client.cancel_token()).await != answers)
    }

    /// The beginning of each transaction. The settings are those of a session without a pooler, as far as they matter to a
    /// call.
    pub(super) fn beginning(&self) -> String {
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE; \
             SET LOCAL statement_timeout = {}; SET LOCAL client_min_messages = 'warning'; \
             SET LOCAL idle_in_transaction_session_timeout = '5s'; {}",
            self.statement_max.as_millis(),
            super::durable_commits(true)
        )
    }

    /// One call as one transaction. One at a time on a connection, so that no other call comes between its parts.
    pub(super) async fn query_pooled(
        &self,
        turn: &tokio::sync::Mutex<()>,
        sql: &'static str,
        types: &[Type],
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let typed: Vec<(&(dyn ToSql + Sync), Type)> = parameters.iter().copied().zip(types.iter().cloned()).collect();
        let beginning = self.beginning();
        let _turn = turn.lock().await;
        let (begun, rows, ended) = join3(
            self.client.batch_execute(&beginning),
            self.client.query_typed(sql, &typed),
            // After an error this rolls back.
            self.client.batch_execute("COMMIT"),
        )
        .await;
        begun?;
        let rows = rows?;
        ended?;
        Ok(rows)
    }

    /// The types of a statement's parameters: those that their values can be written as.
    pub(super) fn types(&self, sql: &'static str, parameters: Parameters<'_>) -> Result<Vec<Type>, Trouble> {
        let mut known = self.types.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(types) = known.get(sql) {
            return Ok(types.clone());
        }
        let types: Option<Vec<Type>> = parameters.iter().map(|parameter| type_of(*parameter)).collect();
        let types = types.ok_or_else(|| Trouble::Refused(format!("a parameter has an unknown type in: {sql}")))?;
        known.insert(sql, types.clone());
        Ok(types)
    }
}

fn type_of(parameter: &(dyn ToSql + Sync)) -> Option<Type> {
    let mut scratch = BytesMut::new();
    TYPES.iter().find(|known| parameter.to_sql_checked(known, &mut scratch).is_ok()).cloned()
}

/// The process that the server has named at the login. The client keeps it for cancellations only, so this has it write one
/// to a stream that leads nowhere, and reads it there.
async fn named_at_login(token: &CancelToken) -> Option<i32> {
    let (ours, theirs) = tokio::io::duplex(256);
    let (_, named) = tokio::join!(token.cancel_query_raw(ours, Plain), read_process(theirs));
    named.ok()
}

async fn read_process(mut stream: DuplexStream) -> io::Result<i32> {
    loop {
        let (_bytes, code) = (stream.read_i32().await?, stream.read_i32().await?);
        match code {
            ASKS_FOR_TLS => stream.write_all(b"S").await?,
            CANCELS => return stream.read_i32().await,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Pretends to encrypt a stream that leads nowhere.
struct Plain;

impl TlsConnect<DuplexStream> for Plain {
    type Stream = Unencrypted;
    type Error = io::Error;
    type Future = Ready<io::Result<Unencrypted>>;

    fn connect(self, stream: DuplexStream) -> Self::Future {
        ready(Ok(Unencrypted(stream)))
    }
}

struct Unencrypted(DuplexStream);

impl TlsStream for Unencrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Unencrypted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Unencrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn the_type_of_every_parameter_is_found_also_without_a_value() {
        let nothing: Option<i64> = None;
        let texts: Vec<Option<&str>> = vec![None];
        let bytes: Vec<Vec<u8>> = vec![vec![1]];
        let slices: Vec<&[u8]> = vec![&[1]];
        let none: Vec<Uuid> = Vec::new();
        for (parameter, expected) in [
            (&nothing as &(dyn ToSql + Sync), Type::INT8),
            (&true, Type::BOOL),
            (&3_i16, Type::INT2),
            (&3_i32, Type::INT4),
            (&"text", Type::TEXT),
            (&Uuid::nil(), Type::UUID),
            (&Some(&b"history"[..]), Type::BYTEA),
            (&texts, Type::TEXT_ARRAY),
            (&bytes, Type::BYTEA_ARRAY),
            (&slices, Type::BYTEA_ARRAY),
            (&none, Type::UUID_ARRAY),
            (&vec![Some(1_i64)], Type::INT8_ARRAY),
            (&vec![1_i16], Type::INT2_ARRAY),
        ] {
            assert_eq!(type_of(parameter), Some(expected), "{parameter:?}");
        }
        assert_eq!(type_of(&1.5_f64), None);
    }

    #[tokio::test]
    async fn the_process_of_a_cancellation_is_read_with_and_without_tls() {
        for tls in [false, true] {
            let (mut client, server) = tokio::io::duplex(256);
            let writes = async {
                if tls {
                    for number in [8, ASKS_FOR_TLS] {
                        client.write_i32(number).await?;
                    }
                    assert_eq!(client.read_u8().await?, b'S');
                }
                for number in [16, CANCELS, 4_711, 99] {
                    client.write_i32(number).await?;
                }
                io::Result::Ok(())
            };
            let (written, read) = tokio::join!(writes, read_process(server));
            written.unwrap();
            assert_eq!(read.unwrap(), 4_711);
        }
    }
}
