fn main() -> std::process::ExitCode {
    sendoff::cli::main()
}
