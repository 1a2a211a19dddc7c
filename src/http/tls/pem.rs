//! Reads PEM, and says in plain words what is wrong with it.

use rustls::pki_types::pem::{Error, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Some editors put it before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The most characters of a line that are shown.
const SHOWN_CHARS_MAX: usize = 80;

/// The certificates of a text, at least one. The error is what is wrong with the file.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_slice_iter(without_mark(text)).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|error| words(&error, "certificate"))?;
    if !read.is_empty() {
        return Ok(read);
    }
    // A certificate in DER is a sequence of more than 255 bytes.
    let is_der = text.starts_with(b"\x30\x82");
    Err(if is_der {
        "holds no certificate in PEM, but perhaps one in DER: `openssl x509 -inform der -in FILE` prints it in PEM"
            .to_owned()
    } else {
        words(&Error::NoItemsFound, "certificate")
    })
}

/// The first private key of a text. The error is what is wrong with the file, and shows nothing of a key.
pub fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let text = without_mark(text);
    let is_encrypted = text.windows(9).any(|window| window == b"ENCRYPTED");
    if is_encrypted {
        // PKCS #8 (BEGIN ENCRYPTED PRIVATE KEY), or the older header (Proc-Type: 4,ENCRYPTED).
        return Err(
            "is encrypted; sendoff takes a key without a passphrase: `openssl pkey -in FILE` prints it so".to_owned()
        );
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| words(&error, "private key"))
}

fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the errors are not ours, and grow")]
fn words(error: &Error, wanted: &str) -> String {
    match error {
        Error::NoItemsFound => format!("holds no {wanted} in PEM"),
        Error::MissingSectionEnd { end_marker } => {
            format!("is cut off: the line -----END {}----- is missing; copy the file again", shown(end_marker))
        }
        Error::IllegalSectionStart { line } => {
            format!("is not PEM: the line {:?} does not end with five hyphens", shown(line))
        }
        Error::Base64Decode(why) => format!("has a part that is not base64 ({why}); copy the file again"),
        error => format!("is not PEM: {error}"),
    }
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim().chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_byte_order_mark_and_text_around_are_no_fault() {
        for text in [CERTIFICATE.to_owned(), format!("\u{feff}{CERTIFICATE}"), format!("subject\r\n{CERTIFICATE}end")] {
            assert_eq!(certificates(text.as_bytes()).unwrap().len(), 1, "{text}");
        }
        let key = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY");
        assert!(private_key(format!("\u{feff}{key}").as_bytes()).is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_in_words_and_without_the_key() {
        let key = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY");
        let cut = |text: &str| text[..text.len() - 30].to_owned();
        for (text, why) in [
            ("nothing".to_owned(), "holds no certificate in PEM"),
            (key.clone(), "holds no certificate in PEM"),
            (cut(CERTIFICATE), "is cut off: the line -----END CERTIFICATE----- is missing"),
            (CERTIFICATE.replacen("E-----", "E---", 1), "the line \"-----BEGIN CERTIFICATE---\" does not end with"),
            (CERTIFICATE.replace("AAAA", "A!AA"), "has a part that is not base64"),
            ("\x30\u{82}".to_owned(), "holds no certificate in PEM"),
        ] {
            let said = certificates(text.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert!(certificates(b"\x30\x82\x01\x00").unwrap_err().contains("-inform der"));
        let traditional = key.replace("AAAA", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA");
        for (text, why) in [
            (CERTIFICATE.to_owned(), "holds no private key in PEM"),
            (key.replace("PRIVATE", "ENCRYPTED PRIVATE"), "is encrypted"),
            (traditional, "is encrypted"),
            (cut(&key), "is cut off: the line -----END PRIVATE KEY----- is missing"),
        ] {
            let said = private_key(text.as_bytes()).unwrap_err();
            assert!(said.contains(why) && !said.contains("AAAA"), "{text}: {said}");
        }
    }
}
