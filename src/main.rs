/// An event consists of many small, short-lived allocations. mimalloc serves these faster than glibc does
/// (docs/performance.md).
#[global_allocator]
static ALLOCATOR: sendoff::MiMalloc = sendoff::MiMalloc;

fn main() -> std::process::ExitCode {
    sendoff::cli::main()
}
