//! Exit codes and error printing, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    match taskloom::cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(taskloom::failure::exit_code(&error))
        }
    }
}
