//! `taskloom doctor`: what this program and this machine can do, and whether a device computes what the CPU computes.

mod selftest;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::config::model_caches;
use crate::failure::Stopped;
use crate::limits::{MemoryLimits, cores};
use crate::machine::driver::open_emulated;
use crate::machine::memory::human_bytes;
use crate::machine::{CUDA_BUILD, Device};
use crate::output;
use crate::train::prefix;

/// Cards that are looked for.
const MOST_CARDS: usize = 64;

#[derive(clap::Args)]
pub struct Args {
    /// What the self-test tries: cpu, cuda, cuda:N, emulated [default: the first card, else the CPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    /// Not there, and the text says why; nothing is wrong.
    Absent,
    Failed,
}

fn there(name: &'static str, text: impl Into<String>) -> Finding {
    Finding { name, status: Status::Ok, text: text.into() }
}

fn absent(name: &'static str, text: impl Into<String>) -> Finding {
    Finding { name, status: Status::Absent, text: text.into() }
}

pub fn run(args: &Args) -> Result<()> {
    let mut findings = vec![there("version", env!("CARGO_PKG_VERSION")), there("build", CUDA_BUILD)];
    findings.extend([there("cpu", cpu()), there("memory", memory())]);
    let cards = cards();
    let has_card = cards.iter().any(|card| card.status == Status::Ok);
    findings.extend(cards);
    findings.extend([emulated(), cache(), models()]);
    let device = args.device.as_deref().unwrap_or(if has_card { "cuda:0" } else { "cpu" });
    findings.push(selftest::finding(device));
    let failed = findings.iter().filter(|finding| finding.status == Status::Failed).count();
    if args.json {
        output::line(format_args!("{:#}", json!({ "ok": failed == 0, "findings": findings })))?;
    } else {
        for Finding { name, status, text } in &findings {
            let mark = match status {
                Status::Ok => "ok",
                Status::Absent => "-",
                Status::Failed => "FAILED",
            };
            output::line(format_args!("{name:<14} {mark:<7} {text}"))?;
        }
    }
    if failed > 0 {
        return Err(Stopped(format!("{failed} of {} findings failed", findings.len())).into());
    }
    Ok(())
}

fn cpu() -> String {
    let cores = cores();
    let plural = if cores == 1 { "" } else { "s" };
    format!("{} with {}, {cores} core{plural} for this process", std::env::consts::ARCH, features().join(" "))
}

/// Instructions that products of matrices gain from.
#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    let names: Vec<&str> = found.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect();
    if names.is_empty() { vec!["neither AVX2 nor FMA: products of matrices will be slow"] } else { names }
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    vec!["its usual instructions"]
}

fn memory() -> String {
    let limits = MemoryLimits::read();
    let bytes = |bytes: Option<u64>| bytes.map_or("an unknown number".to_owned(), human_bytes);
    let group = match limits.group {
        Some(most) => format!("; the control group allows {}, {} of them taken", human_bytes(most), bytes(limits.group_used)),
        None => "; no limit by a control group".to_owned(),
    };
    format!("{} in all, {} available{group}", bytes(limits.total), bytes(limits.available))
}

/// The NVIDIA cards, or one sentence on why there are none.
fn cards() -> Vec<Finding> {
    let mut found = Vec::new();
    for number in 0..MOST_CARDS {
        match Device::Cuda(number).open() {
            Ok(Some(driver)) => {
                let memory = driver.memory().map_or_else(
                    |why| why.to_string(),
                    |memory| format!("{} of {} free", human_bytes(memory.free), human_bytes(memory.total)),
                );
                found.push(there("card", format!("{}, {memory}", driver.name())));
            }
            Ok(None) => break,
            Err(why) if number == 0 => return vec![absent("card", why.to_string())],
            // There are no more.
            Err(_) => break,
        }
    }
    found
}

fn emulated() -> Finding {
    match open_emulated(0) {
        Ok(_) => there("emulated", "the kernels as C++, for tests: run.device = \"emulated\""),
        Err(why) => absent("emulated", why.to_string()),
    }
}

/// Where `encoder.cache_frozen` keeps what it computed.
fn cache() -> Finding {
    let writable = prefix::folder().and_then(|folder| {
        tempfile::tempfile_in(&folder)?;
        Ok(folder)
    });
    match writable {
        Ok(folder) => there("cache", format!("{} (encoder.cache_frozen)", folder.display())),
        Err(why) => absent("cache", format!("{why:#}")),
    }
}

/// Models that `encoder.from` finds by their names.
fn models() -> Finding {
    let count = |folder: &std::path::Path| {
        let names = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with("models--")).count()
    };
    let caches = model_caches();
    let there_are = |folder: &std::path::PathBuf| {
        let models = folder.is_dir().then(|| count(folder))?;
        Some(format!("{models} model{} in {}", if models == 1 { "" } else { "s" }, folder.display()))
    };
    let found: Vec<String> = caches.iter().filter_map(there_are).collect();
    if found.is_empty() {
        let places: Vec<String> = caches.iter().map(|folder| folder.display().to_string()).collect();
        return absent("hugging face", format!("no fetched models: there is no {}", places.join(", ")));
    }
    there("hugging face", found.join(", "))
}
