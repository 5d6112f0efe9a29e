//! Models by name: found in the cache, or fetched into it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::common::{self, Place};
use crate::{FIXTURE, config, copy};

/// Copies the fixture to where Hugging Face's libraries would have put it.
fn fetched(place: &Place) -> PathBuf {
    let model = place.path("hub/models--org--small");
    let snapshot = model.join("snapshots/0123abc");
    std::fs::create_dir_all(&snapshot).expect("a folder");
    std::fs::create_dir_all(model.join("refs")).expect("a folder");
    std::fs::write(model.join("refs/main"), "0123abc").expect("a reference");
    let own = copy(place);
    for entry in std::fs::read_dir(own).expect("the copy") {
        let path = entry.expect("an entry").path();
        std::fs::rename(&path, snapshot.join(path.file_name().expect("a name"))).expect("moved");
    }
    snapshot
}

#[test]
fn a_fetched_model_is_found_by_its_name() {
    let place = Place::new();
    let snapshot = fetched(&place);
    let config = config(&place, Path::new("org/small"));
    let train = |run_dir: &str, home: &Path| {
        let mut command = common::training(&config, &[], &place.path(run_dir));
        common::outcome(command.env_remove("HF_HUB_CACHE").env("HF_HOME", home).output())
    };
    train("by-name", &place.path("")).ok();
    let stored = std::fs::read_to_string(place.path("by-name/config.toml")).expect("a configuration");
    assert!(stored.contains(&format!("from = {:?}", snapshot.display().to_string())), "{stored}");
    let by_path = place.train(&config, &[&format!("encoder.from={}", snapshot.display())]);
    common::assert_same_files(&common::final_checkpoint(&place.path("by-name")), &common::final_checkpoint(&by_path), "by name");
    // Where it is not, every place is named.
    let missing = place.path("elsewhere/hub/models--org--small").display().to_string();
    let parts = ["encoder.from: no such folder", &missing, "HF_HUB_OFFLINE is set", "hf download org/small"];
    train("refused", &place.path("elsewhere")).failed(2, &parts);
}

/// What a hub that has the fixture as `org/small` answers to each request.
#[derive(Clone, Copy, PartialEq)]
enum Hub {
    Whole,
    /// The second of the weights' files ends halfway.
    Broken,
    /// Nothing without a login.
    Closed,
}

/// A hub on this machine, as long as the test runs: its address. Weights lie elsewhere, as on the real one.
fn hub(kind: Hub) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(kind, stream)));
    format!("http://{address}")
}

fn answer(kind: Hub, mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    // The rest of it.
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let file = path.strip_prefix("/org/small/resolve/").and_then(|rest| Some(rest.split_once('/')?.1));
    let mut send = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        // A client may have gone.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    let name = file.or(path.strip_prefix("/elsewhere/")).unwrap_or_default();
    let content = std::fs::read(Path::new(FIXTURE).join(name)).unwrap_or_default();
    match file {
        Some(_) if kind == Hub::Closed => send("401 Unauthorized", "", 0, b""),
        _ if content.is_empty() => send("404 Not Found", "", 0, b""),
        Some(file) if file.ends_with(".safetensors") => {
            send("302 Found", &format!("Location: /elsewhere/{file}\r\n"), 0, b"");
        }
        None if kind == Hub::Broken && name.contains("-00002-") => {
            send("200 OK", "", content.len(), &content[..content.len() / 2])
        }
        _ => send("200 OK", "X-Repo-Commit: 0123abcd\r\n", content.len(), &content),
    }
}

#[test]
fn a_model_is_fetched_by_its_name() {
    let place = Place::new();
    let config = config(&place, Path::new("org/small"));
    let train = |run_dir: &str, endpoint: &str| {
        let mut command = common::training(&config, &[], &place.path(run_dir));
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", place.path("home")).env("HF_HUB_OFFLINE", "0");
        common::outcome(command.env("HF_ENDPOINT", endpoint).output())
    };
    let cache = place.path("home/hub/models--org--small");
    let snapshot = cache.join("snapshots/0123abcd");
    // What does not come whole is not there.
    train("nobody", "http://127.0.0.1:1").failed(2, &["encoder.from", "http://127.0.0.1:1 does not give it", "hf download"]);
    train("closed", &hub(Hub::Closed)).failed(2, &["no such model, or it asks for a login: set HF_TOKEN"]);
    train("broken", &hub(Hub::Broken)).failed(2, &["encoder.from", "model-00002-of-00003.safetensors"]);
    assert!(!snapshot.join("config.json").exists() && !cache.join("refs").exists());
    // The next attempt goes on.
    let first = train("first", &hub(Hub::Whole)).ok();
    assert!(first.err.contains("fetching org/small from http://127.0.0.1:"), "{}", first.err);
    for file in std::fs::read_dir(&snapshot).expect("the snapshot").map(|entry| entry.expect("an entry").path()) {
        let original = std::fs::read(Path::new(FIXTURE).join(file.file_name().expect("a name"))).expect("of the fixture");
        assert!(std::fs::read(&file).expect("a file") == original, "{}", file.display());
    }
    // And then nobody is asked any more.
    let second = train("second", "http://127.0.0.1:1").ok();
    assert!(!second.err.contains("fetching"), "{}", second.err);
    let [first, second] = ["first", "second"].map(|run| common::final_checkpoint(&place.path(run)));
    common::assert_same_files(&first, &second, "fetched and found");
}
