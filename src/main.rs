//! Exit codes and error printing, nothing else.

use std::process::ExitCode;

use taskloom::{cli, failure, output};

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            let code = failure::exit_code(&error);
            if code != failure::DONE {
                output::message(format_args!("error: {error:#}"));
            }
            ExitCode::from(code)
        }
    }
}
