//! The one place that writes to stdout and stderr.
//!
//! stderr is for messages: one that cannot be written (a full disk, a closed terminal) is dropped, since no run is worth less than
//! what is said about it. stdout is for results: where they cannot be written, that is an error.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::Result;

use crate::failure::{ClosedPipe, Stopped};

/// A line on stderr.
pub fn message(text: impl Display) {
    let _ = Messages.write_all(format!("{text}\n").as_bytes());
}

/// stderr, as a writer that never fails.
pub struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a result as it is.
///
/// # Errors
/// [`ClosedPipe`] if nobody reads stdout any more, else [`Stopped`].
pub fn text(result: impl Display) -> Result<()> {
    written(write!(io::stdout(), "{result}"))
}

/// Writes a result and ends its line; fails as [`text`] does.
pub fn line(result: impl Display) -> Result<()> {
    text(format_args!("{result}\n"))
}

/// What it means that something was, or was not, written to stdout.
pub fn written(outcome: io::Result<()>) -> Result<()> {
    match outcome.and_then(|()| io::stdout().flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
        Err(error) => Err(Stopped(format!("cannot write the results to stdout: {error}")).into()),
    }
}

/// A line of comma-separated values.
pub fn csv<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let quoted = |field: &str| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    };
    format!("{}\n", fields.map(quoted).collect::<Vec<String>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_have_to_be() {
        assert_eq!(
            csv(["a b", "a,b", "say \"hi\"", "two\nlines", ""].into_iter()),
            "a b,\"a,b\",\"say \"\"hi\"\"\",\"two\nlines\",\n"
        );
    }
}
