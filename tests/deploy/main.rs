//! Tests everything in deploy/: each file is run, or checked by the tool that it is for.
//!
//! Tools that are large or need root may be missing. The test then prints `NOT RUN` and why. If TEST_REQUIRE_TOOLS is
//! set, it fails instead.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test measures real time and reads where its parts are installed")]

#[expect(dead_code, reason = "tests/it uses the rest")]
#[path = "../rig/mod.rs"]
mod rig;

mod tools;

mod files;

mod metrics;

mod prometheus;

mod systemd;

mod kubernetes;

mod helm;

mod container;

mod iam;

mod ecs;

mod online;

mod package;

mod operate;

mod operations;

mod handover;

mod known;
