//! Measures the figures of docs/performance.md: `make bench`, or `cargo bench --bench bench -- NAME --help`.
//!
//! Every figure stands beside one of something simpler, measured in the same round on the same machine. Only the ratio
//! counts: machines are shared and noisy, so absolute figures of two runs cannot be compared.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod accept;

mod backlog;

mod call;

mod client;

mod daemon;

mod guarded;

mod hand_over;

mod lag;

mod micro;

mod process;

mod report;

mod road;

mod roles;

/// The program's allocator, so that what it is compared with has it, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Benches of sendoff
#[derive(Debug, Parser)]
struct Options {
    /// Passed by cargo to every bench
    #[arg(long, hide = true, global = true)]
    bench: bool,
    /// Number of rounds. Each measures every system once, and the median counts
    #[arg(long, default_value_t = 3, global = true)]
    rounds: usize,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From the request to the durable 202, compared with a listener that stores nothing and a bare append + fdatasync
    Accept(accept::Options),
    /// From the request to the durable 202 over TLS and with each proof of a client, compared with neither
    Guarded(guarded::Options),
    /// From the first request to the last arrival, compared with bare aws-sdk-lambda calls and hand-signed ones
    Road(road::Options),
    /// From the request to the first attempt on an idle daemon, compared with a bare fdatasync and SDK call
    Lag(lag::Options),
    /// Start, memory and drain rate with a large backlog, compared with a small one
    Backlog(backlog::Options),
    /// From SIGTERM until a queue, or a peer, has the whole store
    HandOver(hand_over::Options),
    /// Each step of an event alone
    Micro(micro::Options),
    /// A process of a bench
    #[command(hide = true, subcommand)]
    Role(roles::Role),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ran = match options.what {
        Some(What::Role(role)) => roles::run(role),
        Some(What::Micro(micro)) => micro::run(&micro, options.rounds),
        what => run(what, options.rounds),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: Option<What>, rounds: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match what {
            Some(What::Accept(options)) => accept::run(&options, rounds).await,
            Some(What::Guarded(options)) => guarded::run(&options, rounds).await,
            Some(What::Road(options)) => road::run(&options, rounds).await,
            Some(What::Lag(options)) => lag::run(&options, rounds).await,
            Some(What::Backlog(options)) => backlog::run(&options, rounds).await,
            Some(What::HandOver(options)) => hand_over::run(&options, rounds).await,
            Some(What::Micro(_) | What::Role(_)) => Ok(()),
            None => {
                micro::run(&micro::Options::default(), rounds)?;
                accept::run(&accept::Options::default(), rounds).await?;
                guarded::run(&guarded::Options::default(), rounds).await?;
                road::run(&road::Options::default(), rounds).await?;
                lag::run(&lag::Options::default(), rounds).await?;
                backlog::run(&backlog::Options::default(), 1).await?;
                hand_over::run(&hand_over::Options::default(), 1).await
            }
        }
    })?;
    Ok(())
}
