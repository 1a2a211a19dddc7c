//! Connections to AWS: the SDK's connector, and whom it trusts.

use std::sync::LazyLock;
use std::time::Duration;

use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpClient};

/// How long an idle connection is kept: shorter than what lies between keeps it, so that few requests meet a connection
/// that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the SDK's clients connect with, for http and https.
pub(super) fn http_client() -> SharedHttpClient {
    let builder = Builder::new().pool_idle_timeout(IDLE_TIMEOUT).tls_provider(Provider::Rustls(CryptoMode::Ring));
    match nobody() {
        Some(nobody) => builder.tls_context(nobody).build_https(),
        None => builder.build_https(),
    }
}

/// The same connector without a client around it.
pub(super) fn connector(settings: HttpConnectorSettings) -> Connector {
    let builder = Connector::builder()
        .connector_settings(settings)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tls_provider(Provider::Rustls(CryptoMode::Ring));
    match nobody() {
        Some(nobody) => builder.tls_context(nobody).build(),
        None => builder.build(),
    }
}

/// Whether this machine has CA certificates, as rustls finds them: `SSL_CERT_FILE` and `SSL_CERT_DIR`, else the system's.
pub(super) fn has_authorities() -> bool {
    static ANY: LazyLock<bool> = LazyLock::new(|| !rustls_native_certs::load_native_certs().certs.is_empty());
    *ANY
}

/// What to trust where there are no certificates: nobody. The connector asserts that it finds some unless it is told so.
fn nobody() -> Option<TlsContext> {
    (!has_authorities()).then(|| {
        // Only a list of further names could fail to be built.
        TlsContext::builder().with_trust_store(TrustStore::empty()).build().unwrap_or_default()
    })
}
