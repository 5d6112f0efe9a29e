//! What the assembler says about every kernel: no spills, no local memory, nothing missing, and docs/kernels.md shows it.
//!
//! The report is there if the build found nvcc (`scripts/cuda-toolkit.sh`). TASKLOOM_WRITE_DOCS=1 writes the table;
//! TASKLOOM_REQUIRE_NVCC=1 forbids a build without kernels.

use std::collections::BTreeMap;
use std::path::Path;

const REPORT: &str = include_str!(concat!(env!("OUT_DIR"), "/ptxas.txt"));
const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];
/// The release whose report stands in docs/kernels.md.
const DOCUMENTED: &str = "nvcc 13.0";
/// Little more than an instruction cache of 128 KiB holds: the code of a kernel is loops, not all that they do written out.
const MOST_INSTRUCTIONS: u32 = 9000;
const MARKS: [&str; 2] = ["<!-- ptxas: begin -->\n", "<!-- ptxas: end -->"];

/// One kernel on one target.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    registers: u32,
    /// Static; the dynamic part is the launch's.
    shared: u32,
    stack: u32,
    spilled: u32,
    /// Of 16 bytes each.
    instructions: u32,
}

/// The number right before `unit`, 0 if it is not named.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().filter(|before| before.len() < line.len());
    before.and_then(|text| text.split_whitespace().next_back()?.parse().ok()).unwrap_or(0)
}

/// (kernel, target) -> usage
fn parse(report: &str) -> BTreeMap<(String, String), Usage> {
    let mut found: BTreeMap<(String, String), Usage> = BTreeMap::new();
    let mut current = None;
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut names = rest.split('\'');
            let kernel = names.next().unwrap_or_default().to_owned();
            current = Some((kernel, names.nth(1).unwrap_or_default().to_owned()));
        }
        if let Some(rest) = line.strip_prefix("machine code of '") {
            let names: Vec<&str> = rest.split('\'').collect();
            let key = (names[0].to_owned(), names[2].to_owned());
            found.entry(key).or_default().instructions = number_before(line, " bytes") / 16;
            continue;
        }
        let Some(key) = &current else { continue };
        let usage = found.entry(key.clone()).or_default();
        usage.stack = usage.stack.max(number_before(line, " bytes stack frame"));
        usage.spilled += number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        usage.registers = usage.registers.max(number_before(line, " registers"));
        usage.shared = usage.shared.max(number_before(line, " bytes smem"));
    }
    found
}

/// The kernels of kernels/hopper, which macros write; they are there for sm_90a only.
const HOPPER: [&str; 2] = ["hopper/attention.cu", "hopper/gemm.cu"];

fn hopper() -> Vec<(String, String)> {
    let tiles = include_str!("../kernels/hopper/gemm.cu").lines();
    let tiles = tiles.filter_map(|line| line.strip_prefix("TASKLOOM_PRODUCTS(")?.strip_suffix(')'));
    let products = tiles.flat_map(|tile| {
        let tile = tile.replace(", ", "_");
        ["forward", "input", "weight"].map(|product| format!("gemm_{product}_hopper_{tile}"))
    });
    let attention = include_str!("../kernels/hopper/attention.cu").lines();
    let attention = attention.filter_map(|line| Some(line.strip_prefix("ATTENTION_")?.split_once('(')?.1.split_once(',')?.0));
    let [first, second] = HOPPER.map(str::to_owned);
    let attention = attention.map(|name| (first.clone(), name.to_owned()));
    attention.chain(products.map(|name| (second.clone(), name))).collect()
}

/// Kernels by file, as the sources name them.
fn kernels() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("kernels/ can be read").flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("kernels are UTF-8");
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for line in text.lines().filter(|line| line.starts_with("extern \"C\" __global__ void ")) {
            let rest = line.trim_start_matches("extern \"C\" __global__ void ");
            let rest = if rest.starts_with("__launch_bounds__") { rest.split_once(") ").expect("bounds end").1 } else { rest };
            found.push((file.clone(), rest.split('(').next().unwrap_or_default().to_owned()));
        }
    }
    found.extend(hopper());
    found
}

/// Whether there is code of this file's kernels for a target.
fn built(file: &str, target: &str) -> bool {
    !HOPPER.contains(&file) || target == "sm_90a"
}

fn table(usage: &BTreeMap<(String, String), Usage>) -> String {
    let mut text =
        String::from("| kernel | file | registers sm_80 | sm_90a | instructions sm_80 | sm_90a | static shared bytes |\n");
    text += "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n";
    for (file, kernel) in kernels() {
        let none = Usage::default();
        let of = |target: &str| usage.get(&(kernel.clone(), target.to_owned())).unwrap_or(&none);
        let (old, new) = (of("sm_80"), of("sm_90a"));
        let shared = old.shared.max(new.shared);
        let [registers, instructions] = [old.registers, old.instructions]
            .map(|number| if built(&file, "sm_80") { number.to_string() } else { "-".to_owned() });
        let (own, code) = (new.registers, new.instructions);
        text += &format!("| `{kernel}` | {file} | {registers} | {own} | {instructions} | {code} | {shared} |\n");
    }
    text
}

#[test]
fn every_kernel_is_named_in_the_docs() {
    let docs = include_str!("../docs/kernels.md");
    let missing: Vec<_> = kernels().into_iter().filter(|(_, kernel)| !docs.contains(&format!("`{kernel}`"))).collect();
    assert!(missing.is_empty() && kernels().len() > 20, "not in docs/kernels.md: {missing:?}");
}

#[test]
fn no_kernel_spills_or_uses_local_memory() {
    if REPORT.is_empty() {
        assert!(std::env::var_os("TASKLOOM_REQUIRE_NVCC").is_none(), "this build holds no kernels: run scripts/cuda-toolkit.sh");
        eprintln!("no nvcc in this build: nothing to check");
        return;
    }
    let usage = parse(REPORT);
    for (file, kernel) in kernels() {
        for target in TARGETS.into_iter().filter(|target| built(&file, target)) {
            let key = (kernel.clone(), target.to_owned());
            let usage = usage.get(&key).unwrap_or_else(|| panic!("{kernel} is missing for {target}"));
            assert!(usage.registers > 0 && usage.registers <= 255, "{kernel} {target}: {usage:?}");
            assert!(usage.instructions > 0 && usage.instructions <= MOST_INSTRUCTIONS, "{kernel} {target}: {usage:?}");
            assert_eq!((usage.stack, usage.spilled), (0, 0), "{kernel} uses local memory on {target}: {usage:?}");
        }
    }
    if REPORT.starts_with(DOCUMENTED) {
        compare(&table(&usage));
    }
}

fn compare(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md");
    let docs = std::fs::read_to_string(&path).expect("docs/kernels.md can be read");
    let (before, rest) = docs.split_once(MARKS[0]).expect("docs/kernels.md has the table's first mark");
    let (old, after) = rest.split_once(MARKS[1]).expect("docs/kernels.md has the table's last mark");
    if std::env::var_os("TASKLOOM_WRITE_DOCS").is_some() {
        let text = format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]);
        std::fs::write(&path, text).expect("docs/kernels.md can be written");
        return;
    }
    assert!(old == table, "docs/kernels.md is old: TASKLOOM_WRITE_DOCS=1 cargo test --release --test ptxas");
}

#[test]
fn reports_are_read() {
    let report = "ptxas info    : Compiling entry function 'a' for 'sm_80'\nptxas info    : Function properties for a\n    \
                  16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\nptxas info    : Used 40 registers, used 1 \
                  barriers, 128 bytes smem, 400 bytes cmem[0]\nmachine code of 'a' for 'sm_80': 640 bytes\n";
    let usage = parse(report);
    let expected = Usage { registers: 40, shared: 128, stack: 16, spilled: 12, instructions: 40 };
    assert_eq!(usage[&("a".to_owned(), "sm_80".to_owned())], expected);
}
