//! Passwords for databases on Amazon RDS and Aurora: signed URLs (AWS, "IAM database authentication"). Making one asks nobody.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::Request;

use super::sign::{Keeper, percent_encode};
use super::{Shared, words_of};
use crate::clock::Clock;

/// AWS accepts a token for so long, for the login only.
const VALID: Duration = Duration::from_secs(15 * 60);

/// Makes tokens with the credentials of this process.
#[derive(Debug, Clone)]
pub struct Tokens {
    credentials: Keeper,
    region: String,
    clock: Clock,
}

impl Tokens {
    /// The error says that no region is known.
    pub fn new(shared: &Shared, region: Option<&str>, clock: Clock) -> Result<Self, super::Error> {
        let region = region.or(shared.region()).ok_or(super::Error::NoRegion { service: "lambda" })?;
        Ok(Self { credentials: shared.credentials.clone(), region: region.to_owned(), clock })
    }

    /// A token for one login. The error says why there are no credentials.
    pub async fn token(&self, host: &str, port: u16, user: &str) -> Result<String, String> {
        let credentials = self.credentials.get().await?;
        token(credentials, &self.region, (host, port, user), self.clock.wall())
    }
}

fn token(
    credentials: Credentials,
    region: &str,
    (host, port, user): (&str, u16, &str),
    time: SystemTime,
) -> Result<String, String> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(VALID);
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(time)
        .settings(settings)
        .build()
        .map_err(|error| words_of(&error))?
        .into();
    let url = format!("https://{host}:{port}/?Action=connect&DBUser={}", percent_encode(user));
    let signable = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(&[]));
    let signed = sign(signable.map_err(|error| words_of(&error))?, &params).map_err(|error| words_of(&error))?;
    let (instructions, _signature) = signed.into_parts();
    let mut request = Request::get(&url).body(()).map_err(|error| error.to_string())?;
    instructions.apply_to_request_http1x(&mut request);
    let url = request.uri().to_string();
    Ok(url.strip_prefix("https://").unwrap_or(&url).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;

    const HOST: &str = "orders.cluster-x.eu-central-1.rds.amazonaws.com";

    fn parts(token: &str) -> std::collections::BTreeSet<&str> {
        token.split(['?', '&']).collect()
    }

    /// What `generate_db_auth_token` of boto3 makes at this time.
    #[test]
    fn a_token_is_the_one_that_the_sdk_for_python_makes() {
        // 2026-11-30T12:00:00Z
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(UnixMillis(1_796_040_000_000).0);
        let of_boto = |session: &str, signature: &str| {
            format!(
                "{HOST}:5432/?Action=connect&DBUser=my%20daemon%40x&X-Amz-Algorithm=AWS4-HMAC-SHA256\
                 &X-Amz-Credential=AKIDEXAMPLE%2F20261130%2Feu-central-1%2Frds-db%2Faws4_request\
                 &X-Amz-Date=20261130T120000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host{session}&X-Amz-Signature={signature}"
            )
        };
        let session = "&X-Amz-Security-Token=session%2Ftoken%2B%3D%3D";
        for (given, session, signature) in [
            (None, "", "e443da37df6343903ffda9c6c6bda3c68e60f1aaa00827339e0f975669c6a744"),
            (Some("session/token+=="), session, "b594fe35532d3e57ec7f1607a424a83f2ff9b7875d10bbb9019695f919af6803"),
        ] {
            let credentials = Credentials::new("AKIDEXAMPLE", "secret", given.map(str::to_owned), None, "test");
            let made = token(credentials, "eu-central-1", (HOST, 5_432, "my daemon@x"), time).unwrap();
            let expected = of_boto(session, signature);
            assert_eq!(parts(&made), parts(&expected));
        }
    }
}
