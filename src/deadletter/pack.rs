//! Compresses a body that is too large for its queue: gzip (RFC 1952) in base64, because SQS carries text. Pure.

use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};

/// The value of the attribute `ContentEncoding`.
pub const ENCODING: &str = "gzip+base64";

/// The most bytes of an unpacked body: a record with 1 MiB of payload, every byte escaped. A few KiB of gzip can unpack
/// to gigabytes, and anybody may have written the messages of a queue.
const UNPACKED_BYTES_MAX: u64 = 8 << 20;

pub fn pack(bytes: &[u8]) -> io::Result<String> {
    let mut packed = Vec::new();
    GzEncoder::new(bytes, Compression::default()).read_to_end(&mut packed)?;
    Ok(STANDARD.encode(packed))
}

/// The error says what is wrong with the text.
pub fn unpack(text: &str) -> Result<Vec<u8>, String> {
    let packed = STANDARD.decode(text).map_err(|error| format!("the body is not base64: {error}"))?;
    let mut bytes = Vec::new();
    let mut unpacked = GzDecoder::new(&packed[..]).take(UNPACKED_BYTES_MAX + 1);
    unpacked.read_to_end(&mut bytes).map_err(|error| format!("the body is not gzip: {error}"))?;
    if bytes.len() as u64 > UNPACKED_BYTES_MAX {
        return Err(format!("the body unfolds to more than {UNPACKED_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_byte_for_byte(bytes in prop::collection::vec(any::<u8>(), 0..5_000)) {
            prop_assert_eq!(unpack(&pack(&bytes).unwrap()).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_torn_foreign_or_a_bomb_is_an_error_in_words() {
        let whole = pack(b"{\"order\": 17}").unwrap();
        let torn = STANDARD.encode(&STANDARD.decode(&whole).unwrap()[..20]);
        let bomb = pack(&vec![0; 9 << 20]).unwrap();
        assert!(bomb.len() < 20_000, "{}", bomb.len());
        for (text, why) in
            [("%", "not base64"), ("aGVsbG8=", "not gzip"), (&torn, "not gzip"), (&bomb, "unfolds to more than")]
        {
            let said = unpack(text).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
