//! The `[listen]` table: addresses, and host names that listeners answer.

use std::net::SocketAddr;

use super::read::Reader;
use super::{Listen, unix};
use crate::http::host::Hosts;

/// Which listeners accept only callers who prove who they are. TLS protects the proof.
pub struct Guarded {
    pub ingest: bool,
    pub admin: bool,
}

pub fn read(r: &mut Reader, guarded: &Guarded) -> Option<Listen> {
    let ingest = r.addresses("listen.ingest");
    let admin = r.address("listen.admin");
    let unix = unix::read(r, "listen.unix");
    let admin_unix = unix::read(r, "listen.admin_unix");
    let health = r.optional_address("listen.health");
    let ingest_hosts = hosts(r, "listen.ingest_hosts");
    let admin_hosts = hosts(r, "listen.admin_hosts");
    let admin_prefix = prefix(r, "listen.admin_prefix");
    let remote_allowed = r.boolean("listen.allow_unauthenticated_remote")?;
    let of_ingest = "everyone who reaches the port uses sendoff's rights: set tls.cert, tls.key and auth.ingest = \"required\", or, \
                     if you trust the network, listen.allow_unauthenticated_remote = true";
    let of_admin = "everyone who reaches the port can read payloads and remove events: set tls.cert, tls.key and \
                    auth.admin = \"required\", or, if you trust the network, listen.allow_unauthenticated_remote = true";
    let is_remote = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    for (key, addresses, is_guarded, hint) in [
        ("listen.ingest", ingest.as_deref(), guarded.ingest, of_ingest),
        ("listen.admin", admin.as_slice().into(), guarded.admin, of_admin),
    ] {
        if addresses.unwrap_or_default().iter().any(is_remote) && !is_guarded && !remote_allowed {
            r.refuse::<()>(key, "not a loopback address", Some(hint));
        }
    }
    let (ingest, admin, health) = (ingest?, admin?, health?);
    let keys =
        [("listen.ingest", ingest.clone()), ("listen.admin", vec![admin]), ("listen.health", Vec::from_iter(health))];
    for (at, (key, addresses)) in keys.iter().enumerate() {
        for (before, others) in &keys[..at] {
            if addresses.iter().any(|address| others.iter().any(|other| meet(*address, *other))) {
                r.contradiction(key, "is the same address as", before, Some("give it another port"));
            }
        }
    }
    let (unix, admin_unix) = (unix?, admin_unix?);
    if let (Some(unix), Some(admin)) = (&unix, &admin_unix)
        && unix.path == admin.path
    {
        r.contradiction(admin.key, "is the same path as", unix.key, Some("give it another path"));
    }
    let (ingest_hosts, admin_hosts, admin_prefix) = (ingest_hosts?, admin_hosts?, admin_prefix?);
    Some(Listen { ingest, admin, health, unix, admin_unix, ingest_hosts, admin_hosts, admin_prefix })
}

/// Whether two listeners cannot both bind their addresses.
fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let any = |address: SocketAddr| address.ip().is_unspecified();
    // `::ffff:127.0.0.1` is 127.0.0.1 for the kernel.
    let is_same = one.ip().to_canonical() == other.ip().to_canonical();
    one.port() != 0 && one.port() == other.port() && (is_same || any(one) || any(other))
}

/// The addresses of our own listeners, if they are valid.
pub fn own_addresses(r: &Reader) -> Vec<SocketAddr> {
    let written = |key| r.values().find(key).map(|entry| entry.value.to_string()).unwrap_or_default();
    let all = ["listen.ingest", "listen.admin", "listen.health"].map(written).join(" ");
    all.split_whitespace().filter_map(|address| address.parse().ok()).collect()
}

fn hosts(r: &mut Reader, key: &str) -> Option<Hosts> {
    let text = r.text(key)?;
    Hosts::parse(&text).ok().or_else(|| {
        let hint = "separate names by spaces and leave out ports, like \"sendoff.example.com *.sendoff.svc\"";
        r.refuse(key, "not a list of host names", Some(hint))
    })
}

/// The longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 256;

fn prefix(r: &mut Reader, key: &str) -> Option<String> {
    let text = r.text(key)?;
    if is_prefix(&text) {
        return Some(text);
    }
    let hint = "write it like \"/ops/sendoff\": a slash first, none at the end; letters, digits, - _ . ~";
    r.refuse(key, "not a path to serve below", Some(hint))
}

/// Whether this is empty or a path to serve below. Only characters that no proxy and no browser writes in another way.
fn is_prefix(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
    let is_part = |part: &str| !part.is_empty() && part.chars().all(is_plain) && !part.chars().all(|c| c == '.');
    let is_path = text.strip_prefix('/').is_some_and(|path| path.split('/').all(is_part));
    text.is_empty() || is_path && text.len() <= PREFIX_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_plain_path() {
        for good in ["", "/ops", "/ops/sendoff-1.x_~"] {
            assert!(is_prefix(good), "{good}");
        }
        for bad in ["/", "ops", "/ops/", "//ops", "/../x", "/./x", "/a b", "/%41", "/a?b", "/\u{e4}"] {
            assert!(!is_prefix(bad), "{bad}");
        }
        assert!(!is_prefix(&format!("/{}", "x".repeat(PREFIX_BYTES_MAX))));
    }
}
