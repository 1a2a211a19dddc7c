//! Headers that change the meaning of a body's bytes.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, TRANSFER_ENCODING};

use crate::ingest::refusal::Refusal;

/// Whether the body is sent unencoded. sendoff does not decompress bodies, and neither does Lambda: a function receives
/// the bytes that its caller sent, and a small body could become a very large one.
pub fn is_plain(headers: &HeaderMap) -> Result<(), Refusal> {
    let codings =
        [(&CONTENT_ENCODING, "Content-Encoding", "identity"), (&TRANSFER_ENCODING, "Transfer-Encoding", "chunked")];
    for (name, header, plain) in codings {
        for value in headers.get_all(name) {
            let value = String::from_utf8_lossy(value.as_bytes());
            let mut given = value.split(',').map(str::trim).filter(|coding| !coding.is_empty());
            if let Some(coding) = given.find(|coding| !coding.eq_ignore_ascii_case(plain)) {
                return Err(Refusal::Encoded { header, coding: coding.to_owned() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::HeaderName;

    use super::*;

    #[test]
    fn only_a_body_that_is_sent_as_it_is_counts_as_plain() {
        for (name, value, refused) in [
            ("content-encoding", "", None),
            ("content-encoding", "Identity", None),
            ("content-encoding", "gzip", Some("gzip")),
            ("content-encoding", "identity, br", Some("br")),
            ("content-encoding", "aws-chunked", Some("aws-chunked")),
            ("content-encoding", "x\u{e9}", Some("x\u{e9}")),
            ("transfer-encoding", "chunked", None),
            ("transfer-encoding", "gzip, chunked", Some("gzip")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("content-encoding", HeaderValue::from_static("identity"));
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value);
            let expected = match refused {
                Some(coding) => {
                    let header = if name == "content-encoding" { "Content-Encoding" } else { "Transfer-Encoding" };
                    Err(Refusal::Encoded { header, coding: coding.to_owned() })
                }
                None => Ok(()),
            };
            assert_eq!(is_plain(&headers), expected);
        }
    }
}
