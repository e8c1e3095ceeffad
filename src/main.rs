//! The `flyci` program: parse the command line, run it, say how it went.

fn main() -> std::process::ExitCode {
    flyci::cli::main()
}
