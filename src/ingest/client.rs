//! Who calls the ingest listener, and what that client may do.
//!
//! Five ways prove who a client is, and the first that is present decides: a secret in the path of the endpoint, a name in
//! its TLS certificate, its user on the Unix socket, a bearer token, an AWS signature by a key pair that was issued for
//! sendoff.
//! Holds: the client is known before anything beyond the head of a request is read. The one exception is a signature that
//! covers the body without naming its hash. Then the body is read within the usual limits, and used only once the signature
//! has been verified.
//! Limits: a request is compared once with every secret of every client.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::AUTHORIZATION;
use http::request::Parts as Head;
use http::uri::{PathAndQuery, Uri};
use sha2::{Digest as _, Sha256};

use crate::auth::{Secret, Tokens, secret};
use crate::clock::UnixMillis;
use crate::event::FunctionName;
use crate::event::name::{Home, Parts, percent_decode};
use crate::follow::Bad;
use crate::http::peer::Peer;
use crate::ingest::sigv4::{self, Claim, Flaw};

/// The prefix of a path with a secret in it: `/c/SECRET/2015-03-31/functions/...`.
pub const PATH: &str = "/c/";

/// A client, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    pub name: String,
    /// Patterns of the canonical names of functions that it may hand over events for.
    pub functions: Vec<String>,
    /// It may also make calls that pass through to Lambda.
    pub calls: bool,
    /// It may hand events over, as another sendoff does when it stops.
    pub hands_over: bool,
}

impl Client {
    /// Whether any of its patterns covers this function or one of its qualifiers.
    pub fn may_use(&self, function: &FunctionName) -> bool {
        self.functions.iter().any(|pattern| function.fits(pattern))
    }

    /// Whether no function is kept from it.
    pub fn may_use_all(&self) -> bool {
        self.functions.iter().any(|pattern| pattern == "*")
    }

    /// Whether it may make another operation of Lambda's API. An operation without a function in its path concerns all
    /// functions.
    pub fn may_pass(&self, method: &Method, uri: &Uri, home: &Home) -> bool {
        let may_use_each = |functions: Vec<FunctionName>| functions.iter().all(|function| self.may_use(function));
        self.calls && (self.may_use_all() || functions_of(method, uri, home).is_some_and(may_use_each))
    }
}

/// What follows the function's name in the path of the operations that read one version or alias: GetFunction,
/// GetFunctionConfiguration, GetPolicy, GetFunctionEventInvokeConfig, GetProvisionedConcurrencyConfig, GetFunctionUrlConfig,
/// GetRuntimeManagementConfig (the API reference of Lambda, parameter `Qualifier`).
const QUALIFIED: [&str; 7] = [
    "",
    "configuration",
    "policy",
    "event-invoke-config",
    "provisioned-concurrency",
    "url",
    "runtime-management-config",
];

/// The functions that an operation may be about: `/2015-03-31/functions/NAME/...`, each with a qualifier that the path or
/// the query names. Only Lambda knows which of several it would take. Most operations take no qualifier and are about the whole
/// function, whatever the query says: then that is among them.
fn functions_of(method: &Method, uri: &Uri, home: &Home) -> Option<Vec<FunctionName>> {
    let path = uri.path();
    let (version, rest) = path.strip_prefix('/')?.split_once("/functions/")?;
    // Deeper in a path, `functions/NAME` would be a part of something else.
    if version.contains('/') {
        return None;
    }
    // A proxy might resolve such a segment into the path of another function.
    if rest.split('/').any(|part| matches!(percent_decode(part).as_str(), "." | "..")) {
        return None;
    }
    let label = percent_decode(rest.split('/').next()?);
    let pairs = uri.query().unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let qualifiers = pairs.filter(|(name, _)| percent_decode(name).eq_ignore_ascii_case("qualifier"));
    let qualifiers: Vec<String> = qualifiers.map(|(_, qualifier)| percent_decode(qualifier)).collect();
    let plain = Parts::parse(&label)?;
    let own = plain.qualifier.map(str::to_owned);
    let whole = Parts { qualifier: None, ..plain }.canonical(None, home);
    if own.is_none() && qualifiers.is_empty() {
        return Some(vec![whole]);
    }
    let beyond = rest.split_once('/').map_or("", |(_, beyond)| beyond.trim_end_matches('/'));
    let is_of_one = *method == Method::GET && QUALIFIED.contains(&beyond);
    let whole = (!is_of_one).then_some(whole);
    let of = |qualifier: &String| {
        Parts::parse(&label).map(|parts| Parts { qualifier: None, ..parts }.canonical(Some(qualifier), home))
    };
    own.iter().chain(&qualifiers).map(of).chain(whole.map(Some)).collect()
}

/// The proofs that identify a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    pub path_token_file: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub access_key_id: Option<String>,
    pub secret_file: Option<PathBuf>,
    /// DNS names and URIs in its certificate.
    pub names: Vec<String>,
    /// Users on the Unix socket, by number.
    pub uids: Vec<u32>,
}

/// All clients, and whether callers must be one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clients {
    pub required: bool,
    /// The most that the time of a signature may differ from now.
    pub skew: Duration,
    pub clients: Vec<(Client, Ways)>,
}

impl Clients {
    /// Whether there are any clients to recognise.
    pub fn matter(&self) -> bool {
        self.required || !self.clients.is_empty()
    }

    /// Reads every file. Also returns a digest of the contents, which shows a change.
    pub fn load(&self) -> Result<([u8; 32], Directory), Bad> {
        let matters = self.matter();
        let mut directory = Directory { required: self.required, skew: self.skew, matters, ..Directory::default() };
        // The tables may change, too. They hold no secrets.
        let mut digest = Sha256::new_with_prefix(format!("{self:?}"));
        for (client, ways) in &self.clients {
            let client = Arc::new(client.clone());
            let mut read = |key: &str, path: &PathBuf| {
                let bad = |why| Bad { key: format!("clients.{}.{key}", client.name), path: path.clone(), why };
                let secrets = secret::read(path).map_err(bad)?;
                for secret in &secrets {
                    digest.update([secret.expose(), b"\n"].concat());
                }
                digest.update(b"\0");
                Ok(secrets)
            };
            let taken = |key: &str, path: &PathBuf, why: &str| {
                Err(Bad { key: format!("clients.{}.{key}", client.name), path: path.clone(), why: why.to_owned() })
            };
            const TWICE: &str = "has a secret that stands for a client already; each client needs its own";
            let is_of_another = |of: &Tokens<Arc<Client>>, secret: &Secret| {
                of.find(secret.expose()).is_some_and(|other| other.name != client.name)
            };
            if let Some(path) = &ways.path_token_file {
                for secret in read("path_token_file", path)? {
                    if !secret.fits_a_path() {
                        return taken("path_token_file", path, "has characters other than letters, digits and -._~");
                    }
                    if is_of_another(&directory.bearers, &secret) || !directory.paths.add(&secret, Arc::clone(&client))
                    {
                        return taken("path_token_file", path, TWICE);
                    }
                }
            }
            if let Some(path) = &ways.token_file {
                for secret in read("token_file", path)? {
                    if is_of_another(&directory.paths, &secret) || !directory.bearers.add(&secret, Arc::clone(&client))
                    {
                        return taken("token_file", path, TWICE);
                    }
                }
            }
            if let (Some(id), Some(path)) = (&ways.access_key_id, &ways.secret_file) {
                let secrets = read("secret_file", path)?.into();
                directory.keys.insert(id.clone(), Key { client: Arc::clone(&client), secrets });
            }
            for name in &ways.names {
                directory.names.insert(name.clone(), Arc::clone(&client));
            }
            directory.uids.extend(ways.uids.iter().map(|uid| (*uid, Arc::clone(&client))));
        }
        Ok((digest.finalize().into(), directory))
    }
}

/// The clients with their secrets, as they were read.
#[derive(Default)]
pub struct Directory {
    required: bool,
    skew: Duration,
    matters: bool,
    paths: Tokens<Arc<Client>>,
    bearers: Tokens<Arc<Client>>,
    keys: BTreeMap<String, Key>,
    names: BTreeMap<String, Arc<Client>>,
    uids: BTreeMap<u32, Arc<Client>>,
}

/// An issued key pair.
#[derive(Clone)]
struct Key {
    client: Arc<Client>,
    secrets: Arc<[Secret]>,
}

/// Why a caller is not a known client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unidentified {
    /// It shows no proof.
    Missing,
    /// No client has the proof that the caller shows.
    Unknown,
    /// There is a signature by a known key, and something is wrong with it.
    Flawed(Flaw),
}

/// Who makes a request.
#[derive(Clone, Default)]
pub enum Caller {
    /// An unknown caller, where that is allowed.
    #[default]
    Anyone,
    Known(Arc<Client>),
    /// A client whose signature can be verified only with the body.
    Signing(Box<Signing>),
}

/// A signature that still needs the body.
#[derive(Clone)]
pub struct Signing {
    key: Key,
    claim: Claim,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.client().map(|client| &client.name)).finish()
    }
}

impl Caller {
    /// The client that this is, or claims to be.
    pub fn client(&self) -> Option<&Arc<Client>> {
        match self {
            Self::Anyone => None,
            Self::Known(client) => Some(client),
            Self::Signing(signing) => Some(&signing.key.client),
        }
    }

    /// Verifies the signature over the body. Call it before anything is done for the client.
    pub fn prove(&self, body: &[u8]) -> Result<(), Unidentified> {
        match self {
            Self::Anyone | Self::Known(_) => Ok(()),
            Self::Signing(signing) => {
                let hash = sigv4::sha256(body);
                // The signature covers the hash that the request names, and was verified with the head.
                let holds = match signing.claim.payload {
                    Some(named) => named == hash,
                    None => signing.key.signed(&signing.claim, &hash),
                };
                if holds { Ok(()) } else { Err(Unidentified::Flawed(Flaw::Mismatch)) }
            }
        }
    }
}

impl Key {
    fn signed(&self, claim: &Claim, payload: &[u8; 32]) -> bool {
        self.secrets.iter().any(|secret| claim.holds(secret.expose(), payload))
    }
}

impl Directory {
    /// Whether there are any clients to recognise.
    pub fn matters(&self) -> bool {
        self.matters
    }

    /// Identifies the caller by the head of a request. Removes a secret from the path, so that nothing later sees it. `behind`
    /// is the daemon's own user if the request comes by a Unix socket.
    pub fn identify(&self, head: &mut Head, now: UnixMillis, behind: Option<u32>) -> Result<Caller, Unidentified> {
        if let Some(client) = self.by_path(head)? {
            return Ok(Caller::Known(client));
        }
        let peer = head.extensions.get::<Peer>().map(Peer::identity);
        let names = peer.map(|peer| peer.names.as_slice()).unwrap_or_default();
        if let Some(client) = names.iter().find_map(|name| self.names.get(name)) {
            return Ok(Caller::Known(Arc::clone(client)));
        }
        let uid = peer.and_then(|peer| peer.uid);
        if let Some(client) = uid.and_then(|uid| self.uids.get(&uid)) {
            return Ok(Caller::Known(Arc::clone(client)));
        }
        let required = self.required && !behind.is_some_and(|own| self.is_let_in(uid, own));
        let authorization = head.headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let several = head.headers.get_all(AUTHORIZATION).iter().nth(1).is_some();
        match authorization {
            // Which one counts would be a guess. A signature says so in its own words.
            Some(text) if several && !sigv4::is_signature(text) => {
                if required {
                    Err(Unidentified::Unknown)
                } else {
                    Ok(Caller::Anyone)
                }
            }
            Some(text) if sigv4::is_signature(text) => self.by_signature(head, now, required),
            Some(text) if !self.bearers.is_empty() && is_bearer(text) => {
                let token = text["Bearer ".len()..].trim_ascii();
                let client = self.bearers.find(token).ok_or(Unidentified::Unknown)?;
                Ok(Caller::Known(Arc::clone(client)))
            }
            Some(_) if required => Err(Unidentified::Unknown),
            None if required => Err(Unidentified::Missing),
            Some(_) | None => Ok(Caller::Anyone),
        }
    }

    /// Whether a user of the socket needs no other proof, because the permissions of its file say who may connect. Once a
    /// client has a `uid`, only root and the daemon's own user need none: they can read the store in any case.
    fn is_let_in(&self, uid: Option<u32>, own: u32) -> bool {
        self.uids.is_empty() || uid.is_some_and(|uid| uid == 0 || uid == own)
    }

    /// The client whose secret the path begins with. Removes the secret from the path.
    fn by_path(&self, head: &mut Head) -> Result<Option<Arc<Client>>, Unidentified> {
        let path = head.uri.path();
        let Some(rest) = path.strip_prefix(PATH).filter(|_| !self.paths.is_empty()) else { return Ok(None) };
        let token = rest.split('/').next().unwrap_or_default();
        let client = Arc::clone(self.paths.find(token.as_bytes()).ok_or(Unidentified::Unknown)?);
        // The SDK for JavaScript writes two slashes after an endpoint that ends with one.
        let path = rest[token.len()..].trim_start_matches('/');
        let target = head.uri.query().map_or_else(|| format!("/{path}"), |query| format!("/{path}?{query}"));
        let mut parts = head.uri.clone().into_parts();
        // Cannot fail: the rest of a valid path is valid.
        parts.path_and_query = PathAndQuery::try_from(target).ok();
        head.uri = Uri::from_parts(parts).map_err(|_| Unidentified::Unknown)?;
        Ok(Some(client))
    }

    /// The client whose key has signed the request. If proofs are not required, a signature by an unknown key is ignored,
    /// because every SDK signs with the credentials that it has.
    fn by_signature(&self, head: &Head, now: UnixMillis, required: bool) -> Result<Caller, Unidentified> {
        let key = sigv4::key_id(head).map(|id| self.keys.get(id));
        let key = match key {
            Some(Some(key)) => key.clone(),
            Some(None) if required => return Err(Unidentified::Unknown),
            // This error says what is wrong.
            None if required && !self.keys.is_empty() => {
                return match Claim::read(head, now, self.skew) {
                    Err(flaw) => Err(Unidentified::Flawed(flaw)),
                    Ok(_) => Err(Unidentified::Unknown),
                };
            }
            None if required => return Err(Unidentified::Unknown),
            Some(None) | None => return Ok(Caller::Anyone),
        };
        if head.headers.contains_key(sigv4::SECURITY_TOKEN) {
            return Err(Unidentified::Unknown);
        }
        let claim = Claim::read(head, now, self.skew).map_err(Unidentified::Flawed)?;
        let claim = claim.ok_or(Unidentified::Unknown)?;
        match claim.payload {
            Some(hash) if !key.signed(&claim, &hash) => Err(Unidentified::Flawed(Flaw::Mismatch)),
            Some(_) | None => Ok(Caller::Signing(Box::new(Signing { key, claim }))),
        }
    }
}

fn is_bearer(authorization: &[u8]) -> bool {
    authorization.get(.."Bearer ".len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"Bearer "))
}

#[cfg(test)]
mod tests;
