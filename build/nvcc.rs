//! Compiles kernels/*.cu into one fatbin when a CUDA compiler is at hand, and does without otherwise.
//!
//! Search order: NVCC, CUDA_HOME/bin, target/cuda-toolkit/bin (scripts/cuda-toolkit.sh), PATH. Into OUT_DIR go `kernels.fatbin`
//! (sm_80 and sm_90a machine code, and PTX for later cards; empty without nvcc) and `ptxas.txt`, the assembler's report with the size of
//! each kernel's machine code. TASKLOOM_CUDA_TARGETS=all adds machine code for the cards in between and after, as packages have it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};

/// Oldest nvcc the kernels are meant for, and release of CUDA whose driver has every function that is called.
const OLDEST: (u32, u32) = (12, 4);

/// Machine code for Ampere and Hopper, PTX that a driver compiles for anything newer, and the PTX of Hopper's own kernels.
const TARGETS: [&str; 4] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=compute_80",
    "arch=compute_90a,code=compute_90a",
];

/// Cards whose driver would otherwise take Ampere's machine code or compile the PTX when the program starts.
const MORE_TARGETS: [&str; 4] =
    ["arch=compute_80,code=sm_86", "arch=compute_80,code=sm_89", "arch=compute_80,code=sm_100", "arch=compute_80,code=sm_120"];

const FLAGS: [&str; 6] = ["-std=c++17", "-O3", "-fatbin", "--threads=0", "-Xptxas=-v", "-Werror=all-warnings"];

/// What became of the kernels.
pub struct Built {
    /// For `--version`.
    pub phrase: String,
    /// Release of CUDA that the driver must be for.
    pub oldest_driver: (u32, u32),
}

impl Built {
    /// Machine code runs on drivers for any release of its compiler's major version, and later ones.
    fn new((major, minor): (u32, u32), targets: &[&str]) -> Self {
        let codes = targets.iter().filter_map(|target| Some(target.split_once("code=")?.1));
        let cards: Vec<&str> = codes.filter(|code| code.starts_with("sm_")).collect();
        let phrase = format!("kernels for {} and PTX by nvcc {major}.{minor}", cards.join(", "));
        Self { phrase, oldest_driver: (major, 0).max(OLDEST) }
    }
}

/// Compiles the kernels.
pub fn build(kernels: &Path, out: &Path) -> Built {
    for variable in ["NVCC", "CUDA_HOME", "PATH", "TASKLOOM_CUDA_TARGETS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    match usable() {
        Ok((nvcc, release @ (major, minor))) => {
            let targets = targets(&nvcc);
            // Compiling takes most of a minute, and cargo asks whenever anything in kernels/ or build/ has changed.
            let inputs = format!("nvcc {major}.{minor} {FLAGS:?} {targets:?}\n{}", text(kernels));
            if fs::read_to_string(out.join("kernels.inputs")).is_ok_and(|last| last == inputs) {
                return Built::new(release, &targets);
            }
            match compile(&nvcc, &targets, kernels, out) {
                Ok(report) => {
                    write(out, "ptxas.txt", format!("nvcc {major}.{minor}\n{report}").as_bytes());
                    write(out, "kernels.inputs", inputs.as_bytes());
                    Built::new(release, &targets)
                }
                Err(error) => panic!("{} cannot compile the kernels:\n{error}", nvcc.display()),
            }
        }
        Err(reason) => {
            println!("cargo:warning=no CUDA kernels in this build: {reason} (scripts/cuda-toolkit.sh fetches a compiler)");
            write(out, "kernels.fatbin", b"");
            write(out, "ptxas.txt", b"");
            write(out, "kernels.inputs", b"");
            Built { phrase: format!("{reason}, no CUDA kernels"), oldest_driver: OLDEST }
        }
    }
}

/// What to compile for, as far as this nvcc knows it.
fn targets(nvcc: &Path) -> Vec<&'static str> {
    match env::var("TASKLOOM_CUDA_TARGETS").as_deref() {
        Ok("all") => {
            let known = Command::new(nvcc).arg("--list-gpu-code").output().map(|output| output.stdout).unwrap_or_default();
            let known = String::from_utf8_lossy(&known).into_owned();
            let knows = |target: &&&str| known.lines().any(|code| target.ends_with(&format!("code={code}")));
            TARGETS.iter().chain(MORE_TARGETS.iter().filter(knows)).copied().collect()
        }
        Ok("") | Err(_) => TARGETS.to_vec(),
        Ok(other) => panic!("TASKLOOM_CUDA_TARGETS is \"all\" or not set, found {other:?}"),
    }
}

fn usable() -> Result<(PathBuf, (u32, u32)), String> {
    let nvcc = find().ok_or("no nvcc")?;
    match version(&nvcc) {
        Some(found) if found >= OLDEST => Ok((nvcc, found)),
        Some(found) => Err(format!("nvcc {}.{} is older than {}.{}", found.0, found.1, OLDEST.0, OLDEST.1)),
        None => Err(format!("{} does not answer --version", nvcc.display())),
    }
}

fn find() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(nvcc.into());
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain([target.join("cuda-toolkit/bin")]).chain(env::split_paths(&path));
    let found = folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())?;
    Some(fs::canonicalize(&found).unwrap_or(found))
}

/// Reads `release 12.4,` out of `nvcc --version`.
fn version(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let release = text.split("release ").nth(1)?.split(',').next()?;
    let (major, minor) = release.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// All kernels as one translation unit, so that one module holds them; returns what ptxas reports.
fn compile(nvcc: &Path, targets: &[&str], kernels: &Path, out: &Path) -> Result<String, String> {
    let names = sources(kernels).into_iter().filter(|name| name.ends_with(".cu"));
    let unit: String = names.map(|name| format!("#include \"{name}\"\n")).collect();
    write(out, "kernels.cu", unit.as_bytes());
    let mut command = Command::new(nvcc);
    let keep = out.join("nvcc");
    let _ = fs::remove_dir_all(&keep);
    fs::create_dir(&keep).map_err(|error| error.to_string())?;
    command
        .args(FLAGS)
        .arg("--keep")
        .arg("--keep-dir")
        .arg(&keep)
        .arg("-I")
        .arg(kernels)
        .arg("-o")
        .arg(out.join("kernels.fatbin"))
        .arg(out.join("kernels.cu"));
    for target in targets {
        command.arg("-gencode").arg(target);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(report + &String::from_utf8_lossy(&output.stdout));
    }
    let sizes = code_sizes(&keep)?;
    let _ = fs::remove_dir_all(&keep);
    Ok(report + &sizes)
}

/// How long each kernel's machine code is, by target, from the assembler's files in a folder.
fn code_sizes(folder: &Path) -> Result<String, String> {
    let mut lines = Vec::new();
    for path in fs::read_dir(folder).map_err(|error| error.to_string())?.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".cubin") else { continue };
        let target = name.rsplit_once("sm_").map_or("sm_80".to_owned(), |(_, card)| format!("sm_{card}"));
        let bytes = fs::read(&path).map_err(|error| error.to_string())?;
        let file = ElfFile64::<Endianness>::parse(&*bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        for section in file.sections() {
            if let Some(kernel) = section.name().unwrap_or_default().strip_prefix(".text.") {
                lines.push(format!("machine code of '{kernel}' for '{target}': {} bytes\n", section.size()));
            }
        }
    }
    lines.sort();
    Ok(lines.concat())
}

/// All that nvcc reads of the tree.
fn text(kernels: &Path) -> String {
    sources(kernels).iter().map(|name| fs::read_to_string(kernels.join(name)).expect("kernels are UTF-8")).collect()
}

/// Names of kernels/*.cu and *.cuh, and of those in kernels/hopper and kernels/solve, sorted.
fn sources(kernels: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["", "hopper/", "solve/"] {
        let entries = fs::read_dir(kernels.join(folder)).expect("kernels/ can be read").flatten();
        names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()).map(|name| format!("{folder}{name}")));
    }
    names.retain(|name| name.ends_with(".cu") || name.ends_with(".cuh"));
    names.sort();
    names
}

fn write(out: &Path, name: &str, bytes: &[u8]) {
    fs::write(out.join(name), bytes).expect("OUT_DIR can be written");
}
