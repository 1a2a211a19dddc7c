//! Signs requests as Lambda checks them (AWS, "Signature Version 4"), and keeps the credentials for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::Request;
use tokio::task::JoinSet;

use super::{CREDENTIALS_TIMEOUT, words_of};
use crate::clock::Clock;

/// Credentials are fetched anew this long before they expire, so that a signature is still valid when it arrives.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// Codes with which AWS refuses credentials, sorted. Fresh credentials may be accepted.
const REFUSED: &[&str] = &[
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

/// Credentials younger than this are not fetched again if AWS refuses them: their source has no better ones.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);

/// The time between two fetches while the cached credentials are still valid.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);

/// How long to cache credentials without an expiry time. The SDK uses the same time.
const KEPT_WITHOUT_EXPIRY: Duration = Duration::from_secs(15 * 60);

/// Signs with version 4. Encodes the path twice and hashes the payload (only S3 accepts unsigned payloads). The error
/// text says why there can be no signature.
pub(super) fn signed(
    request: &mut Request<Bytes>,
    credentials: Credentials,
    region: &str,
    time: SystemTime,
) -> Result<(), String> {
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("lambda")
        .time(time)
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| words_of(&error))?
        .into();
    let uri = request.uri().to_string();
    let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let method = request.method().as_str().to_owned();
    let signable = SignableRequest::new(&method, &uri, headers, SignableBody::Bytes(request.body()))
        .map_err(|error| words_of(&error))?;
    let (instructions, _signature) = sign(signable, &params).map_err(|error| words_of(&error))?.into_parts();
    instructions.apply_to_request_http1x(request);
    Ok(())
}

/// Everything except RFC 3986's unreserved characters, as the canonical form of a signature requires.
pub(super) fn percent_encode(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    encoded
}

/// The cached credentials of all clients. The provider itself would ask its source each time. Cheap to clone. All clones
/// share one cache.
///
/// Holds: one task at a time asks the source. While the cached credentials are valid, no call waits for it.
#[derive(Debug, Clone)]
pub(super) struct Keeper(Arc<Keeping>);

#[derive(Debug)]
struct Keeping {
    provider: Option<SharedCredentialsProvider>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: Option<Kept>,
    /// The request to the source in progress.
    asking: Option<Asking>,
    /// When the source may be asked again while the cached credentials are still valid.
    not_before: Option<SystemTime>,
    /// The task that asks. It ends with this value.
    task: JoinSet<()>,
}

type Asking = Shared<BoxFuture<'static, Result<Credentials, String>>>;

#[derive(Debug)]
struct Kept {
    credentials: Credentials,
    since: SystemTime,
    until: SystemTime,
}

impl Keeper {
    pub(super) fn new(provider: Option<SharedCredentialsProvider>, clock: Clock) -> Self {
        Self(Arc::new(Keeping { provider, clock, state: Mutex::default() }))
    }

    /// Returns the credentials, and fetches them if needed. A source that fails or hangs has no effect while the cached
    /// credentials are valid.
    pub(super) async fn get(&self) -> Result<Credentials, String> {
        let asking = {
            let mut state = self.0.state();
            let now = self.0.clock.wall();
            let valid = state.kept.as_ref().filter(|kept| now < kept.until);
            let valid = valid.map(|kept| (kept.credentials.clone(), now + EXPIRY_MARGIN < kept.until));
            match valid {
                Some((credentials, true)) => return Ok(credentials),
                Some((credentials, false)) => {
                    if state.not_before.is_none_or(|not_before| now >= not_before) {
                        // A separate task asks. This call does not wait for it.
                        drop(self.ask(&mut state));
                    }
                    return Ok(credentials);
                }
                None => self.ask(&mut state),
            }
        };
        asking.await
    }

    /// Records that AWS refuses the credentials in use. The next call fetches them again, unless they were fetched just now.
    pub(super) fn refused(&self, code: Option<&str>) {
        if code.is_none_or(|code| REFUSED.binary_search(&code).is_err()) {
            return;
        }
        let mut state = self.0.state();
        let now = self.0.clock.wall();
        let stale = |kept: &Kept| now.duration_since(kept.since).is_ok_and(|age| age >= REFUSED_PAUSE);
        if state.kept.as_ref().is_some_and(stale) {
            state.kept = None;
            tracing::warn!(code, "AWS refuses the credentials: fetching new ones");
        }
    }

    /// The request to the source in progress. Begins one if there is none.
    fn ask(&self, state: &mut State) -> Asking {
        if let Some(asking) = &state.asking {
            return asking.clone();
        }
        let keeping = Arc::clone(&self.0);
        let asking = async move {
            let fetched = keeping.fetch().await;
            keeping.answered(&fetched);
            fetched
        };
        let asking = asking.boxed().shared();
        while state.task.try_join_next().is_some() {}
        // Runs to its end even if the caller goes away, so that the next caller has the answer.
        let task = asking.clone();
        state.task.spawn(async move { drop(task.await) });
        state.asking = Some(asking.clone());
        asking
    }
}

impl Keeping {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self) -> Result<Credentials, String> {
        let provider = self.provider.as_ref().ok_or("there is no provider of credentials")?;
        tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials())
            .await
            .map_err(|_elapsed| format!("their source gave no credentials within {CREDENTIALS_TIMEOUT:?}"))?
            .map_err(|error| words_of(&error))
    }

    fn answered(&self, fetched: &Result<Credentials, String>) {
        let now = self.clock.wall();
        let mut state = self.state();
        state.asking = None;
        state.not_before = Some(now + RENEWAL_PAUSE);
        match fetched {
            Ok(credentials) => {
                let until = credentials.expiry().unwrap_or(now + KEPT_WITHOUT_EXPIRY);
                state.kept = Some(Kept { credentials: credentials.clone(), since: now, until });
            }
            Err(why) if state.kept.as_ref().is_some_and(|kept| now < kept.until) => {
                tracing::warn!(why, "the credentials expire soon, and fetching new ones fails");
            }
            Err(_) => {}
        }
    }
}

impl ProvideCredentials for Keeper {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move {
            self.get().await.map_err(|why| CredentialsError::provider_error(std::io::Error::other(why)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::UnixMillis;

    /// Returns credentials that expire 600 seconds after the epoch, a limited number of times.
    #[derive(Debug)]
    struct Source {
        asked: Arc<AtomicU64>,
        answers: u64,
    }

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            future::ProvideCredentials::ready(if asked < self.answers {
                let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(600);
                Ok(Credentials::new(format!("AK{asked}"), "secret", None, Some(expiry), "test"))
            } else {
                Err(CredentialsError::not_loaded("none left"))
            })
        }
    }

    fn keeper(answers: u64) -> (Keeper, Arc<AtomicU64>, Clock) {
        let asked = Arc::new(AtomicU64::new(0));
        let source = Source { asked: Arc::clone(&asked), answers };
        let clock = Clock::seeded(UnixMillis(0), 1);
        (Keeper::new(Some(SharedCredentialsProvider::new(source)), clock.clone()), asked, clock)
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_fetched_once_and_again_before_they_expire() {
        let (keeper, asked, clock) = keeper(1);
        for _ in 0..3 {
            assert_eq!(keeper.get().await.unwrap().access_key_id(), "AK0");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        clock.sleep(Duration::from_secs(550)).await;
        assert_eq!(keeper.get().await.unwrap().access_key_id(), "AK0", "still valid, whatever the source says");
        clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2, "new ones were asked for in time");
        clock.sleep(Duration::from_secs(60)).await;
        assert!(keeper.get().await.unwrap_err().contains("not"), "expired");
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_aws_refuses_are_asked_for_anew_with_a_pause() {
        let (keeper, asked, clock) = keeper(9);
        keeper.get().await.unwrap();
        keeper.refused(Some("ExpiredTokenException"));
        keeper.get().await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1, "fetched just now");
        clock.sleep(REFUSED_PAUSE).await;
        keeper.refused(Some("AccessDeniedException"));
        keeper.refused(None);
        keeper.get().await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1, "another refusal says nothing of the credentials");
        keeper.refused(Some("ExpiredTokenException"));
        assert_eq!(keeper.get().await.unwrap().access_key_id(), "AK1");
        assert!(REFUSED.is_sorted(), "binary search relies on it");
    }

    /// Answers the first request only.
    #[derive(Debug)]
    struct Hanging {
        asked: AtomicU64,
    }

    impl ProvideCredentials for Hanging {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let first = self.asked.fetch_add(1, Ordering::Relaxed) == 0;
            let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
            future::ProvideCredentials::new(async move {
                if first {
                    Ok(Credentials::new("AK", "s", None, Some(expiry), "test"))
                } else {
                    std::future::pending().await
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_source_that_hangs_while_the_old_credentials_are_valid_nor_in_a_queue_after() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let source = SharedCredentialsProvider::new(Hanging { asked: AtomicU64::new(0) });
        let keeper = Keeper::new(Some(source), clock.clone());
        keeper.get().await.unwrap();
        clock.sleep(Duration::from_secs(60)).await;
        let began = clock.instant();
        assert_eq!(keeper.get().await.unwrap().access_key_id(), "AK");
        assert_eq!(began.elapsed(), Duration::ZERO);
        clock.sleep(Duration::from_secs(60)).await;
        let began = clock.instant();
        let waiting = futures_util::future::join_all((0..20).map(|_| keeper.get())).await;
        assert!(
            waiting.iter().all(|answer| answer.as_ref().is_err_and(|why| why.contains("within 15s"))),
            "{waiting:?}"
        );
        assert!(began.elapsed() <= CREDENTIALS_TIMEOUT, "{:?}: one question for all", began.elapsed());
    }

    #[test]
    fn only_unreserved_characters_stay_as_they_are() {
        assert_eq!(percent_encode("aZ09-._~"), "aZ09-._~");
        assert_eq!(percent_encode("a:b/$ é"), "a%3Ab%2F%24%20%C3%A9");
    }
}
