//! Compiles the kernels as C++ for the emulated device, if there is a C++ compiler: one object per `.cu` file, archived.
//!
//! Each file is wrapped in a translation unit of its own that lists its kernels, so that they can be launched by name.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiler flags: every load and store is instrumented, nothing is contracted or reordered.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-g0",
    "-w",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-stack-protector",
    "-fno-threadsafe-statics",
    "-ffp-contract=off",
    "-fsanitize=thread",
    "-DTASKLOOM_EMULATED",
];

/// A fault that tests plant in the kernels of a file; `suffix` ends the names of those that have it.
struct Fault {
    file: &'static str,
    suffix: &'static str,
    /// What stands before the file.
    before: &'static str,
    /// What of its text is written otherwise, where the file has it once.
    instead: Option<(&'static str, &'static str)>,
}

const FAULTS: &[Fault] = &[
    Fault { file: "gemm", suffix: "without_barriers", before: "#include \"mma.cuh\"\n#define __syncthreads()\n", instead: None },
    Fault {
        file: "gemm",
        suffix: "without_waits",
        before: "#include \"mma.cuh\"\ntemplate <int> void no_wait() {}\n#define copy_async_wait no_wait\n",
        instead: None,
    },
    Fault {
        file: "gemm",
        suffix: "off_by_one",
        before: "",
        instead: Some(("row + r < operand.rows", "row + r <= operand.rows")),
    },
    Fault {
        file: "attention",
        suffix: "without_barriers",
        before: "#include \"mma.cuh\"\n#define __syncthreads()\n",
        instead: None,
    },
    Fault {
        file: "attention_backward",
        suffix: "without_one_barrier",
        before: "",
        instead: Some(("__syncthreads();\n            bf16* out = dq", "bf16* out = dq")),
    },
    Fault {
        file: "gram",
        suffix: "without_barriers",
        before: "#include \"common.cuh\"\n#define __syncthreads()\n",
        instead: None,
    },
    Fault {
        file: "activation",
        suffix: "off_by_one",
        before: "",
        instead: Some(("item < count; item += stride", "item <= count; item += stride")),
    },
];

/// Compiles and links; otherwise says in one sentence what is missing.
pub fn build(kernels: &Path, out: &Path) -> Result<(), String> {
    println!("cargo:rerun-if-env-changed=CXX");
    let target = env::var("TARGET").unwrap_or_default();
    if !(target.starts_with("x86_64-") && target.contains("linux")) {
        return Err(format!("the emulated device runs on x86-64 Linux, this build is for {target}"));
    }
    let compiler = compiler().ok_or("the build found no C++ compiler (CXX, c++, g++, clang++)")?;
    let mut objects = Vec::new();
    let mut lists = Vec::new();
    for source in sources(kernels) {
        let text = fs::read_to_string(&source).map_err(|error| format!("{}: {error}", source.display()))?;
        let names = kernel_names(&text);
        if names.is_empty() {
            continue;
        }
        let stem = source.file_stem().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        let mut units = vec![(stem.clone(), wrapper(&stem, &source, &names, "", ""))];
        for Fault { file, suffix, before, instead } in FAULTS.iter().filter(|fault| fault.file == stem) {
            let unit = format!("{file}_{suffix}");
            let source = match instead {
                Some(change) => changed(&text, change, &out.join(format!("{unit}.cu"))),
                None => source.clone(),
            };
            units.push((unit.clone(), wrapper(&unit, &source, &names, suffix, before)));
        }
        for (unit, wrapper) in units {
            objects.push(compile(&compiler, kernels, out, &unit, &wrapper)?);
            lists.push((unit, names.len()));
        }
    }
    objects.push(compile(&compiler, kernels, out, "registry", &registry(&lists))?);
    let archive = out.join("libtaskloom_kernels.a");
    let _ = fs::remove_file(&archive);
    run(Command::new(env::var_os("AR").unwrap_or_else(|| "ar".into())).arg("crs").arg(&archive).args(&objects))?;
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=taskloom_kernels");
    println!("cargo:rustc-link-lib=m");
    Ok(())
}

/// A copy of a kernel file with something written otherwise.
fn changed(text: &str, (of, by): &(&str, &str), path: &Path) -> PathBuf {
    assert_eq!(text.matches(of).count(), 1, "a fault is planted where the kernel says `{of}`, once");
    fs::write(path, text.replace(of, by)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path.to_owned()
}

/// The translation unit of a kernel file, and the list of its kernels, whose names end in `suffix`.
fn wrapper(unit: &str, source: &Path, names: &[String], suffix: &str, before: &str) -> String {
    let suffix = if suffix.is_empty() { String::new() } else { format!("_{suffix}") };
    let renamed = names.iter().filter(|_| !suffix.is_empty()).map(|name| format!("#define {name} {name}{suffix}\n"));
    let renamed: String = renamed.collect();
    let entry = |name: &String| format!("    TaskloomCall<&{name}{suffix}>::entry(\"{name}{suffix}\"),\n");
    let entries: String = names.iter().map(entry).collect();
    format!(
        "#include \"emulated.h\"\n#include \"registry.h\"\n{renamed}namespace {{\n{before}#include \"{}\"\n}}\n\
         extern \"C\" const TaskloomKernel taskloom_kernels_of_{unit}[] = {{\n{entries}}};\n",
        source.display()
    )
}

/// Names of `extern "C" __global__ void NAME(`, in order; a `__launch_bounds__(..)` may stand anywhere before the name.
pub fn kernel_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in text.split("extern \"C\" __global__").skip(1) {
        let mut rest = part.trim_start().trim_start_matches("void").trim_start();
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            rest = bounds.split_once(')').map_or("", |(_, rest)| rest).trim_start();
            rest = rest.trim_start_matches("void").trim_start();
        }
        let name = rest.split('(').next().unwrap_or_default().trim();
        if !name.is_empty() {
            names.push(name.to_owned());
        }
    }
    names
}

/// The list of lists that the device looks names up in.
fn registry(lists: &[(String, usize)]) -> String {
    let mut text = String::from("#include \"registry.h\"\nextern \"C\" {\n");
    for (stem, count) in lists {
        text += &format!("extern const TaskloomKernel taskloom_kernels_of_{stem}[{count}];\n");
    }
    text += "struct TaskloomList { const TaskloomKernel* kernels; uint64_t count; };\n";
    text += "extern const TaskloomList taskloom_kernel_lists[] = {\n";
    for (stem, count) in lists {
        text += &format!("    {{taskloom_kernels_of_{stem}, {count}}},\n");
    }
    text + &format!("}};\nextern const uint64_t taskloom_kernel_list_count = {};\n}}\n", lists.len())
}

fn compile(compiler: &OsStr, kernels: &Path, out: &Path, stem: &str, wrapper: &str) -> Result<PathBuf, String> {
    let source = out.join(format!("emulated_{stem}.cpp"));
    let object = out.join(format!("emulated_{stem}.o"));
    fs::write(&source, wrapper).map_err(|error| format!("{}: {error}", source.display()))?;
    let mut command = Command::new(compiler);
    command.args(FLAGS).arg("-I").arg(kernels).arg("-I").arg(kernels.join("emulation"));
    run(command.arg("-c").arg(&source).arg("-o").arg(&object))?;
    Ok(object)
}

/// `.cu` files of the kernels and of the emulation, sorted.
fn sources(kernels: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in [kernels.to_path_buf(), kernels.join("emulation")] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path()).filter(|path| path.extension() == Some(OsStr::new("cu"))));
    }
    found.sort();
    found
}

fn compiler() -> Option<std::ffi::OsString> {
    let asked = env::var_os("CXX").into_iter();
    let candidates = asked.chain(["c++", "g++", "clang++"].map(Into::into));
    candidates.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// Runs a tool; a kernel that does not compile is an error of the tree, so its messages are shown.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("{message}");
    panic!("{command:?} failed:\n{message}");
}
