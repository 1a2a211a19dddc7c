//! Who operators are, what each may do, and how a caller proves to be one.
//!
//! Three ways prove it, and the first that is present decides: a bearer token, a name in a TLS certificate, the user of a
//! Unix socket. Holds: secrets are compared in constant time and never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};

use crate::auth::{Tokens, secret};
use crate::follow::Bad;
use crate::http::peer::Identity;

/// Names in logs and metrics of callers who are no operator of the configuration. No operator may be called so.
pub const ANYONE: &str = "anyone";
pub const UNKNOWN: &str = "unknown";
pub const ROOT: &str = "root";
pub const DAEMON: &str = "sendoff";

/// What an operator may do, besides reading the probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Look at everything but payloads.
    Read,
    /// Also change things.
    Operate,
}

impl Role {
    /// The word in the configuration and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

/// An operator, or another caller that may use the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    pub name: String,
    pub role: Role,
    /// May also see payloads.
    pub payloads: bool,
}

impl Operator {
    fn all(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), role: Role::Operate, payloads: true })
    }
}

/// The proofs that identify an operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    pub token_file: Option<PathBuf>,
    /// DNS names and URIs in the certificate.
    pub names: Vec<String>,
    /// Users on the Unix socket.
    pub uids: Vec<u32>,
}

/// All operators, and what holds for every caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operators {
    /// Callers must be operators, root or the daemon's own user.
    pub required: bool,
    /// Refuses every change by every caller.
    pub read_only: bool,
    /// Metrics require the right to read.
    pub metrics: bool,
    pub operators: Vec<(Operator, Ways)>,
}

impl Operators {
    /// Reads every file. Also returns a digest of the contents, which shows a change.
    pub fn load(&self) -> Result<([u8; 32], Directory), Bad> {
        let mut directory = Directory { required: self.required, ..Directory::default() };
        // The tables may change, too. They hold no secrets.
        let mut digest = Sha256::new_with_prefix(format!("{self:?}"));
        for (operator, ways) in &self.operators {
            let operator = Arc::new(operator.clone());
            if let Some(path) = &ways.token_file {
                let bad = |why| Bad { key: format!("operators.{}.token_file", operator.name), path: path.clone(), why };
                for secret in secret::read(path).map_err(bad)? {
                    digest.update([secret.expose(), b"\n"].concat());
                    if !directory.tokens.add(&secret, Arc::clone(&operator)) {
                        return Err(bad("has a secret that stands for an operator already; each needs its own".into()));
                    }
                }
                digest.update(b"\0");
            }
            directory.names.extend(ways.names.iter().map(|name| (name.clone(), Arc::clone(&operator))));
            directory.uids.extend(ways.uids.iter().map(|uid| (*uid, Arc::clone(&operator))));
        }
        Ok((digest.finalize().into(), directory))
    }
}

/// The operators with their secrets, as they were read.
#[derive(Default)]
pub struct Directory {
    required: bool,
    tokens: Tokens<Arc<Operator>>,
    names: BTreeMap<String, Arc<Operator>>,
    uids: BTreeMap<u32, Arc<Operator>>,
}

/// How a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    None,
    Token,
    Certificate,
    User,
}

impl Proof {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::User => "user",
        }
    }
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub operator: Arc<Operator>,
    pub proof: Proof,
}

/// Why a caller may not use the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unidentified {
    /// It shows no proof.
    Missing,
    /// No operator has the proof that it shows.
    Unknown,
}

impl Directory {
    /// Whether callers must be operators.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Identifies the caller who sends these headers over a connection of this peer. `own` is the daemon's own user.
    pub fn identify(&self, headers: &HeaderMap, peer: &Identity, own: u32) -> Result<Caller, Unidentified> {
        let known = |operator: &Arc<Operator>, proof| Caller { operator: Arc::clone(operator), proof };
        let is_asked = self.required || !self.tokens.is_empty();
        if let Some(token) = bearer(headers).filter(|_| is_asked) {
            let found = token.and_then(|token| self.tokens.find(token));
            return found.map(|operator| known(operator, Proof::Token)).ok_or(Unidentified::Unknown);
        }
        if let Some(operator) = peer.names.iter().find_map(|name| self.names.get(name)) {
            return Ok(known(operator, Proof::Certificate));
        }
        match peer.uid {
            Some(0) => return Ok(Caller { operator: Operator::all(ROOT), proof: Proof::User }),
            Some(uid) if uid == own => return Ok(Caller { operator: Operator::all(DAEMON), proof: Proof::User }),
            Some(uid) if self.uids.contains_key(&uid) => return Ok(known(&self.uids[&uid], Proof::User)),
            Some(_) | None => {}
        }
        match (self.required, peer.names.is_empty() && peer.uid.is_none()) {
            (false, _) => Ok(Caller { operator: Operator::all(ANYONE), proof: Proof::None }),
            (true, true) => Err(Unidentified::Missing),
            (true, false) => Err(Unidentified::Unknown),
        }
    }
}

/// The bearer token of a request. The inner `None` means that there are several, and then none counts.
fn bearer(headers: &HeaderMap) -> Option<Option<&[u8]>> {
    const SCHEME: &[u8] = b"bearer ";
    let of = |value: &'_ http::HeaderValue| -> bool {
        value.as_bytes().get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
    };
    let mut found = headers.get_all(AUTHORIZATION).iter().filter(|value| of(value));
    let first = found.next()?;
    Some(found.next().is_none().then(|| first.as_bytes()[SCHEME.len()..].trim_ascii()))
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("operators")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "one-0123456789012345678901234567";

    fn directory(required: bool) -> Directory {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("token");
        std::fs::write(&file, TOKEN).unwrap();
        let operator = |name: &str| Operator { name: name.to_owned(), role: Role::Read, payloads: false };
        let ways = [
            (operator("a"), Ways { token_file: Some(file), ..Ways::default() }),
            (operator("b"), Ways { names: vec!["b.test".to_owned()], ..Ways::default() }),
            (operator("c"), Ways { uids: vec![7, 8], ..Ways::default() }),
        ];
        Operators { required, operators: ways.into(), ..Operators::default() }.load().unwrap().1
    }

    fn of(
        directory: &Directory,
        token: Option<&str>,
        names: &[&str],
        uid: Option<u32>,
    ) -> Result<String, Unidentified> {
        let mut headers = HeaderMap::new();
        for token in token.into_iter().flat_map(|token| token.split('|')) {
            headers.append(AUTHORIZATION, token.parse().unwrap());
        }
        let peer = Identity { names: names.iter().map(|&name| name.to_owned()).collect(), uid, address: None };
        let caller = directory.identify(&headers, &peer, 1000)?;
        Ok(format!("{} by {}", caller.operator.name, caller.proof.as_str()))
    }

    #[test]
    fn the_first_proof_that_is_present_decides() {
        let bearer = format!("Bearer {TOKEN}");
        let found = |token: Option<&str>, names: &[&str], uid| of(&directory(true), token, names, uid);
        assert_eq!(found(Some(&bearer), &["b.test"], Some(0)), Ok("a by token".into()));
        assert_eq!(found(Some(&format!("bearer  {TOKEN}")), &[], None), Ok("a by token".into()));
        assert_eq!(found(None, &["x.test", "b.test"], Some(0)), Ok("b by certificate".into()));
        assert_eq!(found(None, &["x.test"], Some(0)), Ok("root by user".into()));
        assert_eq!(found(None, &[], Some(1000)), Ok("sendoff by user".into()));
        assert_eq!(found(None, &[], Some(8)), Ok("c by user".into()));
        for wrong in ["Bearer", "Bearer ", "Bearer x", &format!("{bearer}x"), &format!("{bearer}|{bearer}")] {
            let said = found(Some(wrong), &[], None);
            assert!(said == Err(Unidentified::Unknown) || wrong == "Bearer", "{wrong}: {said:?}");
        }
        assert_eq!(
            found(Some("Bearer x"), &["b.test"], Some(0)),
            Err(Unidentified::Unknown),
            "a wrong one is no other"
        );
        assert_eq!(found(Some("Basic eA=="), &[], None), Err(Unidentified::Missing));
        assert_eq!(found(None, &[], None), Err(Unidentified::Missing));
        assert_eq!(found(None, &["x.test"], None), Err(Unidentified::Unknown));
        assert_eq!(found(None, &[], Some(9)), Err(Unidentified::Unknown));
    }

    #[test]
    fn where_nobody_must_prove_anything_a_known_operator_is_still_known() {
        let found = |token: Option<&str>, uid| of(&directory(false), token, &[], uid);
        assert_eq!(found(None, None), Ok("anyone by none".into()));
        assert_eq!(found(None, Some(9)), Ok("anyone by none".into()));
        assert_eq!(found(Some(&format!("Bearer {TOKEN}")), None), Ok("a by token".into()));
        assert_eq!(found(Some("Bearer x"), None), Err(Unidentified::Unknown));
        let nobody = Operators::default().load().unwrap().1;
        assert_eq!(of(&nobody, Some("Bearer of a proxy"), &[], None), Ok("anyone by none".into()));
    }

    #[test]
    fn a_secret_stands_for_one_operator_and_is_not_shown() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("token");
        std::fs::write(&file, TOKEN).unwrap();
        let operator = |name: &str| Operator { name: name.to_owned(), role: Role::Read, payloads: false };
        let ways = || Ways { token_file: Some(file.clone()), ..Ways::default() };
        let operators = vec![(operator("a"), ways()), (operator("b"), ways())];
        let bad = Operators { operators, ..Operators::default() }.load().unwrap_err().to_string();
        assert!(bad.contains("operators.b.token_file") && !bad.contains(TOKEN), "{bad}");
    }
}
