//! The request reader, with any bytes: it neither panics nor takes what it would have to refuse as our own fault.
//!
//! Input: a path, a line end, header lines, an empty line, a body. What is no HTTP never reaches the reader.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sendoff::clock::UnixMillis;
use sendoff::ingest::Settings;
use sendoff::ingest::events_api::{lines, read_event};
use sendoff::ingest::lambda_api::{check_payload, read_head};

fn settings() -> Settings {
    let second = std::time::Duration::from_secs(1);
    Settings {
        connections_max: 1,
        request_bytes_max: 8 << 20,
        headers_max: 64,
        header_bytes_max: 16 << 10,
        header_timeout: second,
        body_timeout: second,
        region: Some("eu-central-1".to_owned()),
        account_id: Some("123456789012".to_owned()),
    }
}

fuzz_target!(|input: &[u8]| {
    let split = input.windows(2).position(|two| two == b"\n\n").unwrap_or(input.len());
    let (head, body) = (&input[..split], input.get(split + 2..).unwrap_or_default());
    let mut head_lines = head.split(|byte| *byte == b'\n');
    let mut request = http::Request::builder().method("POST").uri(head_lines.next().unwrap_or_default());
    for line in head_lines {
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            request = request.header(&line[..colon], &line[colon + 1..]);
        }
    }
    let body = Bytes::copy_from_slice(body);
    if let Ok(request) = request.body(()) {
        let (head, ()) = request.into_parts();
        match read_head(&head, &settings()) {
            Ok(invoke) => {
                drop(check_payload(&body));
                let key = invoke.keys.choose(&body, None, || 0);
                assert!((1..=255).contains(&key.value.chars().count()));
            }
            Err(refusal) => assert!(refusal.status_and_code().0.is_client_error()),
        }
    }
    if let Ok(text) = std::str::from_utf8(&body) {
        for line in lines(None, text).unwrap_or_else(|| vec![text]) {
            if let Err(refusal) = read_event(line, &body, None, UnixMillis(1_790_000_000_000), &settings()) {
                assert!(refusal.status_and_code().0.is_client_error());
            }
        }
    }
});
