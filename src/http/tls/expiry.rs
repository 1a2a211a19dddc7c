//! Reads from when until when a certificate is valid. rustls and webpki check these fields but do not expose them.

use crate::clock::UnixMillis;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `notBefore` and `notAfter` of a certificate in DER (RFC 5280, sections 4.1 and 4.1.2.5). `None` means that they cannot be
/// read. The format ends with the year 9999, so the times fit in 64 bits.
pub(super) fn validity(certificate: &[u8]) -> Option<(UnixMillis, UnixMillis)> {
    let mut certificate = Der(Der(certificate).take(SEQUENCE)?);
    let mut signed = Der(certificate.take(SEQUENCE)?);
    if signed.0.first() == Some(&VERSION) {
        signed.take(VERSION)?;
    }
    signed.take(INTEGER)?;
    let (_algorithm, _issuer) = (signed.take(SEQUENCE)?, signed.take(SEQUENCE)?);
    let mut validity = Der(signed.take(SEQUENCE)?);
    Some((validity.time()?, validity.time()?))
}

/// The rest of a sequence of values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Takes the next value and returns its content if it has this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..0x80 => (usize::from(*first), rest),
            // No certificate has a length that takes more than 4 bytes.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            0x80 | 0x85..=0xff => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (*found == tag).then_some(content)
    }

    fn time(&mut self) -> Option<UnixMillis> {
        let tag = *self.0.first()?;
        let text = std::str::from_utf8(self.take(tag)?).ok()?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = text.split_at_checked(2)?;
                let century = if year.parse::<u8>().ok()? >= 50 { "19" } else { "20" };
                (format!("{century}{year}"), rest)
            }
            GENERALIZED_TIME => text.split_at_checked(4).map(|(year, rest)| (year.to_owned(), rest))?,
            _ => return None,
        };
        if rest.len() != 11 || !rest.is_ascii() {
            return None;
        }
        let two = |at: usize| &rest[at..at + 2];
        UnixMillis::read_rfc3339(&format!(
            "{year}-{}-{}T{}:{}:{}{}",
            two(0),
            two(2),
            two(4),
            two(6),
            two(8),
            &rest[10..]
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 2, 3);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_forms_of_time_are_read_and_torn_certificates_have_none() {
        for (year, written) in [(2027, "2027-02-03"), (2049, "2049-02-03"), (2050, "2050-02-03"), (4096, "4096-02-03")]
        {
            let (from, until) = validity(&certificate(year)).unwrap();
            assert_eq!(from.rfc3339().split_once('T').unwrap().0, "1975-01-01");
            assert_eq!(until.rfc3339().split_once('T').unwrap().0, written);
        }
        let whole = certificate(2027);
        for length in 0..200.min(whole.len()) {
            assert!(validity(&whole[..length]).is_none(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0_usize..400, byte in any::<u8>(), noise in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut changed = certificate(2027);
            let at = at % changed.len();
            changed[at] = byte;
            let _ = validity(&changed);
            let _ = validity(&noise);
        }
    }
}
