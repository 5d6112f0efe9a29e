//! The room as a whole: files in, a corpus or one clear error out.

mod errors;
mod loading;
mod memory;
mod readers;
mod real;
mod sources;
mod support;
