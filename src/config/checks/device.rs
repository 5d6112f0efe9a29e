//! What a device other than the CPU does not compute yet.

use super::Checker;

pub fn check(checker: &mut Checker) {
    let config = checker.config;
    let device = &config.run.device;
    if ["auto", "cpu"].contains(&device.as_str()) {
        return;
    }
    if config.schedule.lanes > 1 {
        let message = format!("are the CPU's: a device has streams of its own, and run.device is \"{device}\"");
        checker.error(&["schedule.lanes", "run.device"], message, "remove the key");
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{errors, load_text, locations};

    #[test]
    fn what_a_device_lacks_is_said_of_the_key() {
        for device in ["cuda", "cuda:1", "emulated"] {
            let text = |rest: &str| format!("[run]\ndevice = \"{device}\"\n[train]\nrounds = 1\n[synthetic]\n{rest}");
            let errors = errors(&text("[encoder]\nkind = \"linear\"\n[schedule]\nlanes = 2\n"));
            assert_eq!(locations(&errors), [(9, 9, "schedule.lanes")]);
            for surgery in [
                "storage = \"bf16\"",
                "method = \"moco\"",
                "method = \"excess_mtl\"\ngranularity = \"layer\"",
                "method = \"modo\"",
                "method = \"cagrad\"\ngranularity = \"tensor\"",
                "method = \"graddrop\"",
                "method = \"trimmed_mean\"",
            ] {
                let plain = text(&format!("[encoder]\nkind = \"linear\"\n[surgery]\n{surgery}\n"));
                assert!(load_text(&plain, &[]).is_ok(), "{surgery}");
            }
        }
    }
}
