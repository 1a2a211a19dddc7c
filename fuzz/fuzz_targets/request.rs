//! One request of any bytes (see one_request.rs).
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../one_request.rs"]
mod one_request;

thread_local! {
    static BENCH: one_request::Bench = one_request::Bench::new();
}

fuzz_target!(|input: &[u8]| {
    BENCH.with(|bench| bench.check(input));
});
