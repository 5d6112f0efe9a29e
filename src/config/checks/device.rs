//! What a device other than the CPU does not compute yet.

use super::super::schema::HeadKind;
use super::{Checker, task_key};
use crate::ops::storage::Storage;
use crate::surgery::methods::registry;

pub fn check(checker: &mut Checker) {
    let config = checker.config;
    let device = &config.run.device;
    if ["auto", "cpu"].contains(&device.as_str()) {
        return;
    }
    let help = "set run.device = \"cpu\"";
    let cpu_only = |what: &str| format!("{what} on the CPU only in this version, but run.device is \"{device}\"");
    for (name, _) in checker.known_tasks().iter().filter(|(_, task)| task.head == HeadKind::Mlm) {
        let key = format!("{}.head", task_key(name));
        checker.error(&[&key, "run.device"], cpu_only("\"mlm\" runs"), help);
    }
    if config.encoder.cache_frozen {
        checker.error(&["encoder.cache_frozen", "run.device"], cpu_only("states of frozen blocks are kept"), "remove the key");
    }
    if config.schedule.lanes > 1 {
        let message = format!("are the CPU's: a device has streams of its own, and run.device is \"{device}\"");
        checker.error(&["schedule.lanes", "run.device"], message, "remove the key");
    }
    if config.surgery.storage == Storage::Bf16 {
        let message = format!("\"bf16\" is for the CPU: J is f32 on a device in this version, but run.device is \"{device}\"");
        checker.error(&["surgery.storage", "run.device"], message, "set surgery.storage = \"f32\"");
    }
    let Ok(method) = registry::find(&config.surgery.method) else { return };
    if method.needs.row_state {
        let message = cpu_only(&format!("\"{}\" needs buffers of its own and runs", method.name));
        checker.error(&["surgery.method", "run.device"], message, help);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{errors, load_text, locations};

    #[test]
    fn what_a_device_lacks_is_said_of_the_key() {
        for device in ["cuda", "cuda:1", "emulated"] {
            let text = |rest: &str| format!("[run]\ndevice = \"{device}\"\n[train]\nrounds = 1\n[synthetic]\n{rest}");
            for method in ["moco", "excess_mtl"] {
                let errors = errors(&text(&format!("[encoder]\nkind = \"linear\"\n[surgery]\nmethod = \"{method}\"\n")));
                assert_eq!(locations(&errors), [(9, 10, "surgery.method")]);
                assert!(errors.diagnostics()[0].message.contains("runs on the CPU only"), "{method}");
            }
            for surgery in [
                "method = \"modo\"",
                "method = \"cagrad\"\ngranularity = \"tensor\"",
                "method = \"graddrop\"",
                "method = \"trimmed_mean\"",
            ] {
                let plain = text(&format!("[encoder]\nkind = \"linear\"\n[surgery]\n{surgery}\n"));
                assert!(load_text(&plain, &[]).is_ok(), "{surgery}");
            }
        }
        let text = "[run]\ndevice = \"cuda\"\n[encoder]\nkind = \"transformer\"\ntokenizer = \"vocab.txt\"\n\
                    freeze = [\"embeddings\"]\ncache_frozen = true\n[train]\nrounds = 1\n\
                    [tasks.a]\ntrain = \"main.toml\"\ntext = \"t\"\nhead = \"mlm\"\n";
        let errors = errors(text);
        for message in ["\"mlm\" runs on the CPU only", "states of frozen blocks are kept on the CPU only"] {
            assert!(errors.diagnostics().iter().any(|error| error.message.contains(message)), "{message}");
        }
    }
}
