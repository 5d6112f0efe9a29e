//! The process that meets the inputs: it says which one it is at, so that whoever watches knows which one ended it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use taskloom::machine::memory::peak_resident;

use crate::random::Random;
use crate::targets::{self, Target};

/// Before every line that is for the parent; what the library prints stands between them.
pub const MARK: &str = "fuzz: ";
/// `TARGET FIRST COUNT`
pub const JOB: &str = "FUZZ_CHILD";
/// A folder in which the input is left, where somebody wants to see it.
pub const KEEP: &str = "FUZZ_KEEP";

/// Where the first panic of an input was, and what it said; also one on a thread whose end nobody looks at.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn panic_seen() -> std::sync::MutexGuard<'static, Option<String>> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn run(job: &str) {
    let words: Vec<&str> = job.split(' ').collect();
    let [name, first, count] = words[..] else { panic!("{JOB}={job}") };
    let (first, count): (u64, u64) = (first.parse().expect("a number"), count.parse().expect("a number"));
    let target = targets::find(name).unwrap_or_else(|| panic!("there is no target {name}"));
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let words = info.payload().downcast_ref::<&str>().copied();
        let words = words.or_else(|| info.payload().downcast_ref::<String>().map(String::as_str));
        let message = words.unwrap_or("a panic without words");
        panic_seen().get_or_insert_with(|| format!("{place}: {message}"));
    }));
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let kept = std::env::var_os(KEEP);
    let root = kept.as_ref().map_or(scratch.path(), Path::new);
    for number in first..first + count {
        say(&format!("at {number}"));
        let place = root.join("input");
        drop(std::fs::remove_dir_all(&place));
        let answer = catch_unwind(AssertUnwindSafe(|| meet(target, number, &place)));
        let answer = panic_seen().take().map_or(answer.unwrap_or_default(), |message| format!("panic {message}"));
        say(&answer.replace('\n', " ").chars().take(1000).collect::<String>());
    }
    say(&format!("peak {}", peak_resident()));
}

/// Whether the input was accepted, or why it was not.
fn meet(target: &Target, number: u64, place: &Path) -> String {
    let input = (target.make)(&mut Random::new(target.name, number));
    for (name, content) in &input.files {
        let path = place.join(name);
        std::fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
    }
    match (target.run)(place, &input.words) {
        Ok(()) => "accepted".to_owned(),
        Err(error) => format!("refused {error:#}"),
    }
}

fn say(line: &str) {
    // What was printed before may have left its line open.
    println!("\n{MARK}{line}");
}
