//! One shape for every refusal of the operator's API: `{"message": ...}`, also where axum refuses a request by itself
//! (an unknown route or method, a query or body that does not parse).

use axum::Json;
use axum::body::to_bytes;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{ALLOW, CONTENT_TYPE};

use super::api::Message;

/// Bytes of a text of axum's that are read at most. They repeat a part of the request.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// What an application that calls the operator's listener by mistake has to do.
const ELSEWHERE: &str = "GET /v1/openapi.json describes what there is. This is the admin listener: to send events, name the ingest \
                         listener (listen.ingest, --endpoint, AWS_ENDPOINT_URL_LAMBDA)";

/// A refusal in the API's shape. Everything else stays as it is.
pub(super) async fn in_json(response: Response) -> Response {
    let is_refusal = response.status().is_client_error() || response.status().is_server_error();
    let is_json =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !is_refusal || is_json {
        return response;
    }
    let (head, body) = response.into_parts();
    let text = to_bytes(body, TEXT_BYTES_MAX).await.unwrap_or_default();
    let message = match head.status {
        StatusCode::NOT_FOUND if text.is_empty() => format!("the operator's API has no such path; {ELSEWHERE}"),
        StatusCode::METHOD_NOT_ALLOWED => format!("this path of the operator's API takes other methods; {ELSEWHERE}"),
        _ => String::from_utf8_lossy(&text).into_owned(),
    };
    // axum tells a body that is no JSON from JSON of another shape. To an operator both are a request to correct.
    let status = if head.status == StatusCode::UNPROCESSABLE_ENTITY { StatusCode::BAD_REQUEST } else { head.status };
    let mut response = (status, Json(Message { message })).into_response();
    if let Some(allow) = head.headers.get(ALLOW) {
        response.headers_mut().insert(ALLOW, allow.clone());
    }
    response
}
