//! Checks what names a queue: its URL (an endpoint with a path), or its ARN.

use std::net::SocketAddr;

use super::endpoint;
use super::read::Reader;
use crate::{aws, hop};

const URL_EXAMPLE: &str = "write it like \"https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq\"";
const ARN_EXAMPLE: &str = "write it like \"arn:aws:sqs:eu-central-1:123456789012:orders-dlq\"";

/// Why a text cannot name a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoQueue {
    pub why: &'static str,
    /// What to write instead.
    pub hint: &'static str,
}

/// Whether a text can name a queue. The error does not repeat the text, which may contain a password.
pub fn check(text: &str) -> Result<(), NoQueue> {
    if text.starts_with("arn:") {
        let no = NoQueue { why: "not the ARN of a queue", hint: ARN_EXAMPLE };
        return if aws::sqs::is_queue_arn(text) { Ok(()) } else { Err(no) };
    }
    endpoint::check(text).map_err(|why| NoQueue { why, hint: URL_EXAMPLE })?;
    if names_a_queue(text) { Ok(()) } else { Err(NoQueue { why: "not the URL of a queue", hint: URL_EXAMPLE }) }
}

pub(super) fn read(r: &mut Reader, key: &str, own: &[SocketAddr]) -> Option<Option<String>> {
    let Some(queue) = r.optional(key)? else { return Some(None) };
    if !queue.starts_with("arn:") {
        // Reports what is wrong with an endpoint, without repeating it.
        r.endpoint(key)?;
    }
    if let Err(NoQueue { why, hint }) = check(&queue) {
        return r.refuse(key, why, Some(hint));
    }
    if own.iter().any(|own| hop::points_at(&queue, *own)) {
        let hint = "write the queue's own URL or ARN, and the address of an emulator as sqs.endpoint_url";
        return r.refuse(key, "sendoff's own address, not a queue", Some(hint));
    }
    Some(Some(queue))
}

/// Whether the path of a URL ends with a queue's name. On hosts of SQS, the path is the account and the name.
fn names_a_queue(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let parts: Vec<&str> = uri.path().split('/').skip(1).collect();
    let is_account = |part: &str| part.len() == 12 && part.bytes().all(|byte| byte.is_ascii_digit());
    let host = uri.host().unwrap_or_default();
    match parts.as_slice() {
        [account, name] if host.contains("amazonaws.com") => is_account(account) && !name.is_empty(),
        _ if host.contains("amazonaws.com") => false,
        [.., name] => !name.is_empty() && !is_account(name),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_named_by_its_url_or_its_arn() {
        for queue in [
            "https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq",
            "http://127.0.0.1:9324/queue/orders-dlq",
            "arn:aws:sqs:eu-central-1:123456789012:orders-dlq.fifo",
        ] {
            assert_eq!(check(queue), Ok(()), "{queue}");
        }
        for queue in [
            "",
            "nonsense",
            "orders-dlq",
            "arn:aws:sns:eu-central-1:123456789012:topic",
            "https://sqs.eu-central-1.amazonaws.com/123456789012",
            "http://me:secret@127.0.0.1:9324/queue/orders-dlq",
        ] {
            let no = check(queue).unwrap_err();
            assert!(!no.why.contains("secret") && no.hint.starts_with("write it like"), "{queue}: {no:?}");
        }
    }
}
