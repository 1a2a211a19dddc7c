//! The integration tests: the real binary between real parts.
//!
//! Clients are the AWS CLI, boto3 and raw sockets. The other side is the stand-in Lambda, MiniStack and moto's SQS.
//! Everything listens on 127.0.0.1 on a free port, uses a scratch directory, and ends with its test.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test measures real time and reads where its parts are installed")]

#[path = "../rig/mod.rs"]
mod rig;

mod parts;

mod outbox_sql;

mod fleet;

mod shared;

mod road;

mod restart;

mod refusals;

mod drain;

mod handoff;

mod disk;

mod strace;

mod emulator;

mod operate;

mod operator;

mod operators;

mod commands;

mod delivery;

mod loops;

mod outside;

mod console;

mod dead_letters;

mod handoff_queue;

mod clients;

mod native;

mod door;

mod logs;

mod streams;

mod guard;

mod place;

mod applications;
mod arguments;

mod hostile;

mod console_api;

mod history;

mod ending;

mod check_config;

mod tls;

mod idempotent;

mod identity;

mod tables;

mod matrix;

mod schemathesis;
