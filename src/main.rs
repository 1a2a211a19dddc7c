/// Less time than glibc's for the small, short-lived pieces that an event is made of (docs/performance.md).
#[global_allocator]
static ALLOCATOR: sendoff::MiMalloc = sendoff::MiMalloc;

fn main() -> std::process::ExitCode {
    sendoff::cli::main()
}
