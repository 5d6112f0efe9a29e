//! `taskloom doctor`, `completions` and `man`.

mod common;

use common::{Place, outcome, run, taskloom};

fn names(findings: &serde_json::Value) -> Vec<&str> {
    findings["findings"].as_array().expect("a list").iter().filter_map(|finding| finding["name"].as_str()).collect()
}

#[test]
fn a_machine_is_told_and_tried() {
    let told =
        outcome(taskloom().args(["doctor", "--device", "cpu", "--json"]).env("CUDA_VISIBLE_DEVICES", "").output()).ok().json();
    assert_eq!(told["ok"], true, "{told}");
    let names = names(&told);
    for name in ["version", "build", "cpu", "memory", "card", "emulated", "cache", "hugging face", "self-test"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let test = told["findings"].as_array().expect("a list").last().expect("the self-test").clone();
    let text = test["text"].as_str().unwrap_or_default();
    assert!(text.starts_with("60 rounds on cpu agree with the CPU to 0.0e0"), "{text}");
}

#[test]
fn the_emulated_device_is_tried_where_it_is() {
    if !common::device::is_there() {
        return;
    }
    let told = run(&["doctor", "--device", "emulated"]).ok().out;
    assert!(told.contains("self-test      ok      60 rounds on emulated agree with the CPU"), "{told}");
}

#[test]
fn a_device_that_is_not_there_fails_the_test() {
    let told = run(&["doctor", "--device", "cuda:900"]).ended(3, &["1 of ", "findings failed"]);
    assert!(told.out.contains("self-test      FAILED  cuda:900: "), "{}", told.out);
    run(&["doctor", "--device", "banana"]).ended(3, &["failed"]);
}

#[test]
fn models_that_were_fetched_are_counted() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("hub/models--org--small")).expect("can make a folder");
    let told = outcome(taskloom().arg("doctor").args(["--device", "cpu"]).env("HF_HOME", place.path("")).output()).ok().out;
    assert!(told.contains(&format!("1 model in {}", place.path("hub").display())), "{told}");
}

#[test]
fn shells_and_man_know_every_command() {
    let help = run(&["--help"]).ok().out;
    let commands =
        help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1).take_while(|line| line.starts_with("  "));
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(commands.contains(&"train") && commands.contains(&"completions"), "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(&["completions", shell]).ok().out;
        assert!(commands.iter().all(|command| script.contains(command)), "{shell}");
    }
    run(&["completions", "csh"]).failed(2, &["invalid value 'csh'", "bash"]);
    let place = Place::new();
    let out = place.path("man");
    run(&["man", "--out", out.to_str().expect("a plain name")]).ok();
    for command in &commands {
        assert!(out.join(format!("taskloom-{command}.1")).is_file(), "{command}");
    }
    assert!(run(&["man"]).ok().out.contains(".TH taskloom 1"));
}
