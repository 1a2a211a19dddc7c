//! Reads the `[handoff]` table: where events go when the disk goes away, and who may hand over to this daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::read::{Reader, Zero};
use super::{endpoint, queue};
use crate::handoff::{Address, RESERVE, Settings};
use crate::hop;
use crate::ingest::client;

const TO: &str = "handoff.to";
const URL_HINT: &str = "write it like \"http://sendoff.sendoff.svc:9477\": another sendoff's ingest listener, without a path; or name an SQS queue by its URL or ARN";
const RECEIVE_QUEUE: &str = "handoff.receive_queue";

/// Its order means nothing here, and it takes a tenth of the calls.
const FIFO: &str = "a FIFO queue";
const FIFO_HINT: &str = "use a standard queue";

/// The longest stop with a hand-off.
const WITHIN_MAX: Duration = Duration::from_secs(6 * 3_600);

pub fn read(r: &mut Reader, own: &[SocketAddr]) -> Option<Settings> {
    let to = targets(r, own);
    let on_stop = r.word("handoff.on_stop", &[("never", false), ("always", true)]);
    let within = r.duration("handoff.within", Zero::Refused);
    let keys = r.word("handoff.keys", &[("moved", false), ("all", true)]);
    let receive = r.boolean("handoff.receive");
    let receive_queue = receive_queue(r, own);
    let token_file = r.optional("handoff.token_file");
    let ca = r.optional("handoff.ca");
    if within.is_some_and(|within| within <= RESERVE) {
        let why = format!("not longer than {RESERVE:?}, the time that is kept for events of attempts in flight");
        r.refuse::<()>("handoff.within", &why, None);
    }
    if within.is_some_and(|within| within > WITHIN_MAX) {
        r.refuse::<()>("handoff.within", "more than 6h", None);
    }
    if on_stop == Some(true) && to.as_ref().is_some_and(Vec::is_empty) {
        r.refuse::<()>("handoff.on_stop", "there is no target", Some("name one as handoff.to"));
    }
    Some(Settings {
        to: to?,
        on_stop: on_stop?,
        within: within?,
        keys: keys?,
        receive: receive?,
        receive_queue: receive_queue?,
        token_file: token_file?.map(PathBuf::from),
        ca: ca?.map(PathBuf::from),
    })
}

fn targets(r: &mut Reader, own: &[SocketAddr]) -> Option<Vec<Address>> {
    let text = r.text(TO)?;
    let mut targets = Vec::new();
    for word in text.split_whitespace() {
        match target(word) {
            Ok(_) if own.iter().any(|own| hop::points_at(word, *own)) => {
                return r.refuse(TO, "sendoff's own address: it would hand over to itself", Some(URL_HINT));
            }
            Ok(address) if targets.contains(&address) => return r.refuse(TO, "names a target twice", None),
            Ok(address) => targets.push(address),
            Err(why) => return r.refuse(TO, why, Some(URL_HINT)),
        }
    }
    Some(targets)
}

fn receive_queue(r: &mut Reader, own: &[SocketAddr]) -> Option<Option<String>> {
    let queue = queue::read(r, RECEIVE_QUEUE, own)?;
    match queue {
        Some(queue) if is_fifo(&queue) => r.refuse(RECEIVE_QUEUE, FIFO, Some(FIFO_HINT)),
        queue => Some(queue),
    }
}

fn is_fifo(queue: &str) -> bool {
    queue.ends_with(".fifo")
}

/// Whether a text is meant to name a queue: by an ARN, or by a URL with an account, or the like, and a name.
fn means_a_queue(text: &str) -> bool {
    let path = text.parse::<Uri>().ok().map(|uri| uri.path().trim_matches('/').to_owned());
    text.starts_with("arn:") || path.is_some_and(|path| path.contains('/'))
}

/// The target that a text names. The error does not repeat the text, which may contain a password.
pub fn target(text: &str) -> Result<Address, &'static str> {
    if text.parse::<Uri>().is_ok_and(|uri| uri.path().starts_with(client::PATH)) {
        return Err(
            "a URL with a secret in its path: leave the path out, and name a file with the secret as handoff.token_file",
        );
    }
    if means_a_queue(text) {
        queue::check(text).map_err(|no| no.why)?;
        return if is_fifo(text) { Err(FIFO) } else { Ok(Address::Queue(text.to_owned())) };
    }
    endpoint::check(text)?;
    let uri: Uri = text.parse().map_err(|_| "not a URL")?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("a URL with a path");
    }
    Ok(Address::Peer(uri))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::Document;
    use crate::config::{Environment, Flags, Loaded, Problems, check_layers};

    fn load(text: &str) -> Result<Loaded, Problems> {
        let text = format!("[handoff]\n{text}");
        check_layers(
            Some(Document { name: "s.toml", text: &text }),
            &Environment::from_pairs(&[("HOME", "/h")]),
            &Flags::default(),
        )
    }

    #[test]
    fn targets_are_tried_in_the_order_in_which_they_are_written() {
        let settings = load("to = 'http://sendoff.sendoff.svc:9477  https://10.0.0.7:9477/'\non_stop = 'always'\n");
        let settings = settings.unwrap().config.handoff;
        let peer = |url: &str| Address::Peer(url.parse().unwrap());
        assert_eq!(settings.to, [peer("http://sendoff.sendoff.svc:9477/"), peer("https://10.0.0.7:9477/")]);
        assert!(settings.on_stop && settings.keys && !settings.receive);
        assert!(load("").unwrap().config.handoff.to.is_empty());
    }

    #[test]
    fn a_queue_is_a_target_beside_peers() {
        let (url, arn) =
            ("https://sqs.eu-central-1.amazonaws.com/123456789012/q", "arn:aws:sqs:eu-central-1:123456789012:q");
        let text = format!("to = 'http://a.test:9477 {url} {arn}'\nreceive_queue = '{arn}'\n");
        let settings = load(&text).unwrap().config.handoff;
        let queues = [url, arn].map(|queue| Address::Queue(queue.to_owned()));
        assert_eq!(settings.to[1..], queues);
        assert_eq!(settings.receive_queue.as_deref(), Some(arn));
        for (text, why) in [
            ("to = 'arn:aws:sqs:eu-central-1:123456789012:q.fifo'", "a FIFO queue"),
            ("receive_queue = 'https://sqs.eu-central-1.amazonaws.com/123456789012/q.fifo'", "use a standard queue"),
            ("to = 'arn:aws:sns:eu-central-1:123456789012:t'", "not the ARN of a queue"),
            ("to = 'https://sqs.eu-central-1.amazonaws.com/orders/q'", "not the URL of a queue"),
            ("receive_queue = 'http://127.0.0.1:9477/123456789012/q'", "sendoff's own address"),
            ("receive_queue = 'orders'", "write it like"),
        ] {
            let said = load(text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, why) in [
            ("on_stop = 'always'", "there is no target"),
            ("to = 'http://127.0.0.1:9477'", "sendoff's own address"),
            ("to = 'http://a.test:1/v1'", "a URL with a path"),
            ("to = 'https://a.test:1/c/0123456789abcdef0123456789abcdef'", "handoff.token_file"),
            ("to = 'a.test:9477'", "not an http:// or https:// URL"),
            ("to = 'http://a.test:1 http://a.test:1'", "names a target twice"),
            ("within = '5s'", "not longer than 5s"),
            ("within = '7h'", "more than 6h"),
        ] {
            let said = load(text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
        let said = load("to = 'http://me:secret@a.test'").unwrap_err().to_string();
        assert!(said.contains("credentials") && !said.contains("secret"), "{said}");
    }
}
