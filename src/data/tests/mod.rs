//! The room as a whole: files in, a corpus or one clear error out.

mod errors;
mod held_out;
mod loading;
mod memory;
mod readers;
mod real;
mod sources;
mod support;
mod writers;
