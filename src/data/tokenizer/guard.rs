//! The library panics over some files and texts, e.g. where a normalizer's pattern matches nothing. Here that is an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use anyhow::{Result, bail};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns; a panic's message becomes the error and is not printed.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                usual(panic);
            }
        }));
    });
    GUARDED.set(true);
    // What a panic leaves half done goes away with the error.
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(false);
    done.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        bail!("the tokenizers library cannot work with this file: {}", message.unwrap_or("it panics"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let places: [u8; 0] = [];
        let place = std::hint::black_box(3);
        let error = guarded(|| Ok(places[place])).unwrap_err().to_string();
        assert!(error.contains("index out of bounds"), "{error}");
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
    }
}
