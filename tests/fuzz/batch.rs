//! Inputs in processes of their own, under limits: what a process cannot see of itself (an abort, a hang, memory) is seen here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::child::{JOB, KEEP, MARK};

/// What one input may take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Of the processors; on a busy machine the clock may go on for [`PATIENCE`] times as long.
    pub time: Duration,
    /// Private writable memory of the process, touched or not.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // Beside the two GiB of an input, what a process has at its start.
        Self { time: Duration::from_secs(10), bytes: (2 << 30) + (128 << 20) }
    }
}

/// By the clock, as a multiple of the time that an input may take: other processes may want the processors, too.
const PATIENCE: u32 = 6;

/// Beginning of what is said of an input that took too long.
pub const NO_END: &str = "no end";

/// An input that did harm.
#[derive(Clone, Debug)]
pub struct Finding {
    pub target: String,
    pub number: u64,
    /// What happened, and where if that is known.
    pub what: String,
    /// It happens again in a process that meets this input alone.
    pub alone: bool,
    /// Inputs with the same outcome, this one included.
    pub times: u64,
}

/// What inputs came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub inputs: u64,
    pub accepted: u64,
    pub slowest: Duration,
    pub slowest_input: u64,
    /// Largest resident memory of a process.
    pub peak_bytes: u64,
    /// By target and what happened.
    pub findings: BTreeMap<(String, String), Finding>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.inputs += other.inputs;
        self.accepted += other.accepted;
        if other.slowest > self.slowest {
            (self.slowest, self.slowest_input) = (other.slowest, other.slowest_input);
        }
        self.peak_bytes = self.peak_bytes.max(other.peak_bytes);
        for (key, finding) in other.findings {
            let times = finding.times;
            self.findings.entry(key).and_modify(|known| known.times += times).or_insert(finding);
        }
    }

    fn note(&mut self, target: &str, number: u64, what: String) {
        let key = (target.to_owned(), kind_of(&what));
        let new = || Finding { target: target.to_owned(), number, what, alone: false, times: 0 };
        self.findings.entry(key).or_insert_with(new).times += 1;
    }
}

/// What happened without what differs from input to input: the place of a panic, any words without their numbers.
fn kind_of(what: &str) -> String {
    let is_panic = what.starts_with("panic at ");
    let what = if is_panic { what.split(": ").next().unwrap_or(what) } else { what };
    what.chars().filter(|c| is_panic || !c.is_ascii_digit()).collect()
}

/// Meets `count` inputs from `first` on; after one that ended the process the next process goes on behind it.
pub fn run(target: &str, first: u64, count: u64, limits: Limits) -> Tally {
    let (mut tally, mut next, end) = (Tally::default(), first, first + count);
    while next < end {
        next = run_until_death(target, next, end, limits, None, &mut tally);
    }
    tally
}

/// Meets the finding's input alone, and leaves it in the folder that is returned.
pub fn repeat(finding: &mut Finding, limits: Limits) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fuzz").join(format!("{}-{}", finding.target, finding.number));
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir_all(&folder).expect("a folder for findings");
    let mut tally = Tally::default();
    run_until_death(&finding.target, finding.number, finding.number + 1, limits, Some(&folder), &mut tally);
    finding.alone = !tally.findings.is_empty();
    let again = format!("scripts/fuzz.sh again {} {}", finding.target, finding.number);
    let text = format!("{}\nagain: {again}\nalone: {}\n", finding.what, finding.alone);
    std::fs::write(folder.join("finding.txt"), text).expect("can write a finding");
    folder
}

/// The number of the first input that was not met.
fn run_until_death(target: &str, first: u64, end: u64, limits: Limits, keep: Option<&Path>, tally: &mut Tally) -> u64 {
    let mut stderr = tempfile::tempfile().expect("a temporary file");
    let mut child = start(target, first, end - first, limits, keep, stderr.try_clone().expect("a second handle"));
    let lines = lines_of(&mut child);
    // Until the first input stands the time is the seeds'.
    let mut at: Option<(u64, Instant)> = None;
    let (started, mut busy_before) = (Instant::now(), Duration::ZERO);
    let what = loop {
        match lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => {
                let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
                match (word, at) {
                    ("at", _) => {
                        at = rest.parse().ok().map(|number| (number, Instant::now()));
                        busy_before = busy(&child);
                    }
                    ("peak", _) => {
                        tally.peak_bytes = tally.peak_bytes.max(rest.parse().unwrap_or(0));
                        at = None;
                    }
                    (_, Some((number, since))) => {
                        tally.inputs += 1;
                        tally.accepted += u64::from(word == "accepted");
                        if since.elapsed() > tally.slowest {
                            (tally.slowest, tally.slowest_input) = (since.elapsed(), number);
                        }
                        if word == "panic" {
                            tally.note(target, number, format!("panic at {rest}"));
                        }
                    }
                    _ => {}
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let since = at.map_or(started, |(_, since)| since);
                let is_busy = at.is_some() && busy(&child) - busy_before >= limits.time;
                if is_busy || since.elapsed() >= limits.time * PATIENCE {
                    end_group(&mut child);
                    break Some(format!("{NO_END} after {} s", limits.time.as_secs()));
                }
            }
            Err(RecvTimeoutError::Disconnected) => break None,
        }
    };
    let status = child.wait().expect("the child can be waited for");
    match (at, what) {
        (None, None) if status.success() => end,
        (at, what) => {
            let number = at.map_or(first, |(number, _)| number);
            let last_words = || format!("ended by {}: {}", describe(status), tail(&mut stderr));
            tally.note(target, number, what.unwrap_or_else(last_words));
            tally.inputs += 1;
            number + 1
        }
    }
}

fn start(target: &str, first: u64, count: u64, limits: Limits, keep: Option<&Path>, stderr: std::fs::File) -> Child {
    let script = format!("ulimit -c 0 && ulimit -d {} && exec \"$@\"", limits.bytes >> 10);
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash"]).arg(std::env::current_exe().expect("this program has a path"));
    command.args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(JOB, format!("{target} {first} {count}")).env("RAYON_NUM_THREADS", "2").env("RUST_BACKTRACE", "0");
    // A changed name of a model is fetched from nowhere.
    command.env("HF_HUB_OFFLINE", "1");
    if let Some(folder) = keep {
        command.env(KEEP, folder);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
    command.spawn().expect("the child starts")
}

/// What the child says to its parent, until it ends.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let output = child.stdout.take().expect("stdout is a pipe");
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if let Some(line) = line.strip_prefix(MARK)
                && sender.send(line.to_owned()).is_err()
            {
                return;
            }
        }
    });
    receiver
}

/// Time of the processors that the child has taken.
fn busy(child: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // Behind the name, which may hold blanks: user and system time are the 12th and 13th, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

/// With whatever it has started.
fn end_group(child: &mut Child) {
    let group = format!("-{}", child.id());
    drop(Command::new("kill").args(["-9", "--", &group]).status());
    drop(child.kill());
}

fn describe(status: std::process::ExitStatus) -> String {
    status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"))
}

/// The last lines of what was said.
fn tail(file: &mut std::fs::File) -> String {
    let mut bytes = Vec::new();
    drop(file.rewind().and_then(|()| file.read_to_end(&mut bytes)));
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut said = String::new();
    for line in &lines[lines.len().saturating_sub(2)..] {
        said += &format!("{line} ");
    }
    said.trim().chars().take(300).collect()
}
