//! Output that cannot be written: messages are dropped, results are an error, and no run is lost.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use common::{Place, assert_same_files, checkpoints, final_checkpoint, outcome, taskloom, training};

/// A device on which every write fails as on a full disk.
fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").expect("there is a /dev/full")
}

/// The end for writing of a pipe that nobody reads.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().expect("a pipe").1
}

const NO_SPACE: &str = "error: cannot write the results to stdout: No space left";

#[test]
fn messages_that_cannot_be_written_are_dropped() {
    let place = Place::new();
    let config = place.bag();
    let reference = final_checkpoint(&place.train(&config, &[]));
    for (name, stderr) in [("full", Stdio::from(full())), ("unread", Stdio::from(unread()))] {
        let run = place.path(name);
        let trained = outcome(training(&config, &[], &run).env("TASKLOOM_LOG", "debug").stderr(stderr).output()).ok();
        assert!(trained.out.starts_with("dev\n"), "{}", trained.out);
        assert_same_files(&final_checkpoint(&run), &reference, name);
    }
    // The exit code says what the message would have said.
    for words in [&["train", "none.toml"][..], &["trian"], &["check", "none.toml"]] {
        assert_eq!(outcome(taskloom().args(words).stderr(full()).output()).code, Some(2), "{words:?}");
    }
}

#[test]
fn results_that_cannot_be_written_are_an_error() {
    let place = Place::new();
    let config = place.bag();
    let run = place.path("run");
    let trained = outcome(training(&config, &[], &run).stdout(full()).output());
    trained.failed(3, &[NO_SPACE]);
    assert_eq!(checkpoints(&run).len(), 2, "the run itself is whole");
    let (config, run) = (config.to_str().expect("UTF-8"), run.to_str().expect("UTF-8"));
    for words in [
        &["--help"][..],
        &["--version"],
        &["methods"],
        &["methods", "--json"],
        &["schema"],
        &["schema", "--workload"],
        &["plan", config],
        &["plan", config, "--json"],
        &["check", config, "--print"],
        &["eval", run],
        &["eval", run, "--json"],
        &["predict", run, "--task", "topic", "--text", "red"],
        &["report", run],
        &["simulate", "configs/workloads/burst.toml"],
    ] {
        outcome(taskloom().args(words).stdout(full()).output()).failed(3, &[NO_SPACE]);
        let closed = outcome(taskloom().args(words).stdout(unread()).output());
        assert_eq!((closed.code, &closed.err.contains("error")), (Some(0), &false), "{words:?}: {}", closed.err);
    }
}

/// As on a full disk: what a run has to write and cannot stops it.
#[test]
fn a_run_that_cannot_be_recorded_stops() {
    let place = Place::new();
    let config = place.bag();
    let run = place.path("run");
    std::fs::create_dir(&run).expect("can create");
    std::os::unix::fs::symlink("/dev/full", run.join("metrics.jsonl")).expect("can link");
    place.outcome_of_training(&config, &[], &run).failed(3, &["cannot write", "metrics.jsonl", "No space left"]);
}

/// `surgery < requests | head -1` ends with its reader.
#[test]
fn answers_stop_when_nobody_reads_them() {
    let mut child = taskloom().arg("surgery").stdin(Stdio::piped()).spawn().expect("the program starts");
    let request = b"{\"method\":\"sum\",\"jacobian\":[[1,2],[3,4]]}\n";
    let mut requests = child.stdin.take().expect("piped");
    requests.write_all(request).expect("it reads");
    let mut answers = BufReader::new(child.stdout.take().expect("piped"));
    answers.read_line(&mut String::new()).expect("it answers");
    drop(answers);
    // It ends at the first answer that it cannot write; until then it may read more.
    while requests.write_all(request).is_ok() {}
    let ended = outcome(child.wait_with_output());
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

/// Whoever reads the messages goes away, as `2>&1 | head -3` does, and then the run is interrupted.
#[test]
fn an_interruption_without_a_reader_has_its_checkpoint() {
    let place = Place::new();
    let run = place.path("run");
    let sets = ["checkpoint.every=end", "train.rounds=100000", "eval.every=end"];
    let mut child = training(&place.synthetic(), &sets, &run).spawn().expect("the program starts");
    let mut messages = BufReader::new(child.stderr.take().expect("piped"));
    messages.read_line(&mut String::new()).expect("it says something");
    drop((messages, child.stdout.take()));
    while common::rounds(&run, "round").is_empty() {
        assert_eq!(child.try_wait().expect("can be asked"), None, "the run goes on");
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("there is a kill command").success());
    assert_eq!(outcome(child.wait_with_output()).code, Some(130));
    assert_eq!(checkpoints(&run).len(), 1);
}

/// Memory that cannot be had is found out before there is a run folder.
#[test]
fn a_run_without_memory_leaves_no_folder() {
    let place = Place::new();
    let run = place.path("run");
    let sets = ["encoder.hidden=65536", "synthetic.features=8192", "synthetic.train=20", "synthetic.dev=2", "synthetic.test=2"];
    let training = training(&place.synthetic(), &sets, &run);
    let mut command = Command::new("sh");
    // 4 GiB of addresses; the run wants some tens.
    command.args(["-c", "ulimit -v 4194304; exec \"$@\"", "sh"]).arg(training.get_program()).args(training.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    outcome(command.output()).failed(2, &["cannot map"]);
    assert!(!run.exists());
}
