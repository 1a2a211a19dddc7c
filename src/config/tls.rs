//! Reads the `[tls]` table: the certificate of the listeners.

use std::path::PathBuf;

use super::read::Reader;
use crate::http::tls::pair::Files;

/// Which listeners speak TLS, and with which files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub files: Files,
    /// Whether every client of the ingest listener must present a certificate.
    pub client_required: bool,
    pub on_ingest: bool,
    pub on_admin: bool,
}

/// The inner `None` means that there is no certificate, so every listener speaks plain HTTP.
pub fn read(r: &mut Reader) -> Option<Option<Tls>> {
    let [cert, key, client_ca] = ["tls.cert", "tls.key", "tls.client_ca"].map(|key| r.optional(key));
    let client_required = r.boolean("tls.client_required");
    let listeners = listeners(r);
    let (cert, key, client_ca, client_required) = (cert?, key?, client_ca?, client_required?);
    if client_required && client_ca.is_none() {
        let hint = "name the file of the authority whose certificates count as tls.client_ca";
        return r.refuse("tls.client_required", "there is no tls.client_ca", Some(hint));
    }
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) if client_ca.is_none() => {
            listeners?;
            return Some(None);
        }
        (None, _) => return r.refuse("tls.cert", "empty", Some("name the file of the certificate, in PEM")),
        (Some(_), None) => return r.refuse("tls.key", "empty", Some("name the file of the private key, in PEM")),
    };
    let (on_ingest, on_admin) = listeners?;
    if client_required && !on_ingest {
        let hint = "add \"ingest\" to tls.listeners";
        return r.refuse("tls.client_required", "ingest does not speak TLS", Some(hint));
    }
    let files = Files { cert: cert.into(), key: key.into(), client_ca: client_ca.map(PathBuf::from) };
    Some(Some(Tls { files, client_required, on_ingest, on_admin }))
}

/// Whether ingest is listed, and whether admin is.
fn listeners(r: &mut Reader) -> Option<(bool, bool)> {
    const KEY: &str = "tls.listeners";
    let text = r.text(KEY)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() || words.iter().any(|word| !matches!(*word, "ingest" | "admin")) {
        return r.refuse(KEY, "must be \"ingest\", \"admin\" or \"ingest admin\"", None);
    }
    Some((words.contains(&"ingest"), words.contains(&"admin")))
}
