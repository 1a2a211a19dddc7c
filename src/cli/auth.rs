//! `sendoff auth`: makes secrets for the clients of a daemon.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};

use super::{Exit, Failure, out};

/// Make secrets for clients
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a new secret, for a line of a file with secrets
    ///
    /// It has 256 random bits in 43 letters, digits, - and _, so it fits in a path, a header, and
    /// AWS_SECRET_ACCESS_KEY.
    Mint(Mint),
}

#[derive(Debug, Args)]
struct Mint {
    /// Print the id of a key pair instead, for access_key_id and AWS_ACCESS_KEY_ID. The id is no secret
    #[arg(long)]
    access_key_id: bool,
}

/// The prefix of ids, so that nobody takes them for access keys of AWS.
const PREFIX: &str = "SOFF";

/// Base32 of RFC 4648.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

pub fn run(options: &Options) -> Result<(), Failure> {
    let Command::Mint(Mint { access_key_id }) = &options.command;
    let mut bits = [0; 32];
    // Not from `Clock`, whose generator suffices for jitter only.
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bits)
        .map_err(|_| Failure::saying(Exit::Internal, "the system gives no random numbers"))?;
    out::line(if *access_key_id { id(&bits[..16]) } else { BASE64_URL_SAFE_NO_PAD.encode(bits) })
}

fn id(bits: &[u8]) -> String {
    let letters = bits.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
    PREFIX.chars().chain(letters).collect()
}
