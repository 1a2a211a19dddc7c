//! Signing a request as Lambda checks it (AWS, "Signature Version 4"), and the credentials to do it with.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::Request;
use tokio::sync::Mutex;

use super::{CREDENTIALS_TIMEOUT, words_of};
use crate::clock::Clock;

/// How long before they expire credentials are fetched anew: a signature must outlast its way.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// How long credentials are kept that do not say when they expire: as long as the SDK keeps them.
const KEPT_WITHOUT_EXPIRY: Duration = Duration::from_secs(15 * 60);

/// Signs with version 4: the path encoded twice and the payload hashed (unsigned payloads are S3's alone). An error is
/// why there can be no signature, in words.
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
    let signable = SignableRequest::new("POST", &uri, headers, SignableBody::Bytes(request.body()))
        .map_err(|error| words_of(&error))?;
    let (instructions, _signature) = sign(signable, &params).map_err(|error| words_of(&error))?.into_parts();
    instructions.apply_to_request_http1x(request);
    Ok(())
}

/// All but RFC 3986's unreserved characters, as the signature's canonical form has it.
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

/// Credentials, kept until shortly before they expire: the provider asks its source anew each time.
#[derive(Debug)]
pub(super) struct Cached {
    provider: Option<SharedCredentialsProvider>,
    /// Locked while they are fetched, so that they are fetched once.
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    credentials: Credentials,
    until: SystemTime,
}

impl Cached {
    pub(super) fn new(provider: Option<SharedCredentialsProvider>) -> Self {
        Self { provider, kept: Mutex::new(None) }
    }

    /// The credentials, fetched if need be. While those at hand are still valid, a source that fails does no harm.
    pub(super) async fn get(&self, clock: &Clock) -> Result<Credentials, String> {
        let mut kept = self.kept.lock().await;
        let now = clock.wall();
        if let Some(kept) = kept.as_ref().filter(|kept| now + EXPIRY_MARGIN < kept.until) {
            return Ok(kept.credentials.clone());
        }
        match (self.fetch().await, kept.as_ref()) {
            (Ok(credentials), _) => {
                let until = credentials.expiry().unwrap_or(now + KEPT_WITHOUT_EXPIRY);
                *kept = Some(Kept { credentials: credentials.clone(), until });
                Ok(credentials)
            }
            (Err(_), Some(kept)) if now < kept.until => Ok(kept.credentials.clone()),
            (Err(why), _) => Err(why),
        }
    }

    async fn fetch(&self) -> Result<Credentials, String> {
        let provider = self.provider.as_ref().ok_or("there is no provider of credentials")?;
        tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials())
            .await
            .map_err(|_elapsed| format!("no credentials within {CREDENTIALS_TIMEOUT:?}"))?
            .map_err(|error| words_of(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use aws_credential_types::provider::error::CredentialsError;
    use aws_credential_types::provider::future;

    use super::*;
    use crate::clock::UnixMillis;

    /// Gives out credentials that expire 600 seconds after the epoch, a limited number of times.
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

    #[tokio::test(start_paused = true)]
    async fn credentials_are_fetched_once_and_again_before_they_expire() {
        let asked = Arc::new(AtomicU64::new(0));
        let source = Source { asked: Arc::clone(&asked), answers: 1 };
        let cached = Cached::new(Some(SharedCredentialsProvider::new(source)));
        let clock = Clock::seeded(UnixMillis(0), 1);
        for _ in 0..3 {
            assert_eq!(cached.get(&clock).await.unwrap().access_key_id(), "AK0");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        clock.sleep(Duration::from_secs(550)).await;
        assert_eq!(cached.get(&clock).await.unwrap().access_key_id(), "AK0", "still valid, whatever the source says");
        assert_eq!(asked.load(Ordering::Relaxed), 2, "a new one was asked for in time");
        clock.sleep(Duration::from_secs(60)).await;
        assert!(cached.get(&clock).await.unwrap_err().contains("not"), "expired");
    }

    #[test]
    fn only_unreserved_characters_stay_as_they_are() {
        assert_eq!(percent_encode("aZ09-._~"), "aZ09-._~");
        assert_eq!(percent_encode("a:b/$ é"), "a%3Ab%2F%24%20%C3%A9");
    }
}
