//! The operator's API, as the commands about dead letters call it.

use http::{Method, StatusCode, Uri};
use serde_json::Value;

use crate::cli::operator::{Operator, words};
use crate::deadletter::Trouble;

/// A daemon's admin listener, whose answers are JSON.
#[derive(Debug, Clone)]
pub struct AdminClient {
    operator: Operator,
}

impl AdminClient {
    pub fn new(endpoint: &Uri) -> Self {
        Self { operator: Operator::at(endpoint) }
    }

    pub async fn get(&self, path: &str) -> Result<Value, Trouble> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, Trouble> {
        self.call(Method::DELETE, path, None).await
    }

    /// The answer's JSON. A refusal is a trouble, which may pass if the daemon is not there, starting or stopping.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let answered = self.operator.ask(method, path, body.map(Value::to_string)).await;
        let (status, body) = answered.map_err(|failure| Trouble {
            code: "unreachable".to_owned(),
            message: failure.to_string(),
            transient: true,
        })?;
        if status == StatusCode::OK {
            return Ok(serde_json::from_slice(&body).unwrap_or_default());
        }
        let message = words(status, &body).chars().take(200).collect();
        Err(Trouble { code: status.as_u16().to_string(), message, transient: status.is_server_error() })
    }
}
