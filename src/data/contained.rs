//! Panics of libraries, turned into errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// A panic on this thread will be an error.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what a library makes of somebody's file, where the library panics at files that it should refuse: a panic on this thread is
/// an error with its words, and nothing is printed. What `work` has changed must not be used afterwards.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                usual(info);
            }
        }));
    });
    let before = CONTAINED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    done.map_err(|payload| {
        let words = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        words.unwrap_or("no reason given").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contained_panic_is_an_error_with_its_words() {
        assert_eq!(contained(|| 1), Ok(1));
        assert_eq!(contained(|| panic!("{} bytes", 3)), Err::<(), _>("3 bytes".to_owned()));
        assert_eq!(contained(|| contained(|| panic!("inner"))), Ok(Err::<(), _>("inner".to_owned())));
        assert!(!CONTAINED.get());
    }
}
