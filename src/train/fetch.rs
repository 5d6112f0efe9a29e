//! Fetches a model by its name from Hugging Face's hub into the cache that its own libraries use: `config.json`, weights as safetensors, and
//! the tokenizer.
//!
//! Environment, as these libraries have it: HF_ENDPOINT (another host), HF_HUB_OFFLINE (1: nothing is fetched), HF_TOKEN, and proxies.
//! The crate hf-hub does the same, but without limits on time: on a machine that has no way out it waits for minutes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::NamedTempFile;
use ureq::Agent;
use ureq::http::Response;

use crate::config::{cache_place, is_model_name};
use crate::observe::console::Console;

const HUB: &str = "https://huggingface.co";

/// A host that is not found or does not answer in this time is not there.
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// One file.
const LASTS_AT_MOST: Duration = Duration::from_secs(4 * 3600);

/// Largest file that is read into memory.
const MOST_TEXT: u64 = 64 << 20;

/// Why nothing is fetched, if the environment says so.
pub fn offline() -> Option<String> {
    let is_set = |name: &str| variable(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"));
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| is_set(name)).map(|name| format!("{name} is set"))
}

/// Where models come from.
pub fn endpoint() -> String {
    variable("HF_ENDPOINT").map_or_else(|| HUB.to_owned(), |url| url.trim_end_matches('/').to_owned())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Fetches the newest version of model `name` into `cache`; its folder there. A kill leaves no folder that counts as the model.
///
/// # Errors
/// A host that does not answer, a model that it does not have or does not give, files that cannot be written.
pub fn fetch(name: &str, cache: &Path, console: &Console) -> Result<PathBuf> {
    ensure!(is_model_name(name), "{name:?} is no model's name");
    let hub = Hub::new(name);
    let (config, commit) = hub.config()?;
    let folder = cache_place(name, cache).join("snapshots").join(&commit);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    console.say(&format!("fetching {name} from {} into {}", endpoint(), folder.display()));
    hub.weights(&commit, &folder, console)?;
    if !hub.save(&commit, "tokenizer.json", &folder, console)? {
        hub.save(&commit, "vocab.txt", &folder, console)?;
    }
    // The last file: with it the folder is a model.
    write(&folder.join("config.json"), config.as_bytes())?;
    let refs = cache_place(name, cache).join("refs");
    fs::create_dir_all(&refs).with_context(|| format!("cannot create {}", refs.display()))?;
    write(&refs.join("main"), commit.as_bytes())?;
    Ok(folder)
}

/// One model on its host.
struct Hub {
    agent: Agent,
    /// Of the model.
    url: String,
}

impl Hub {
    fn new(name: &str) -> Self {
        let config = Agent::config_builder()
            .timeout_resolve(Some(CONNECTS_WITHIN))
            .timeout_connect(Some(CONNECTS_WITHIN))
            .timeout_recv_response(Some(ANSWERS_WITHIN))
            .timeout_recv_body(Some(LASTS_AT_MOST))
            .http_status_as_error(false)
            .user_agent(concat!("taskloom/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), url: format!("{}/{name}/resolve", endpoint()) }
    }

    /// A file of a version, or none where the model has no such file.
    fn get(&self, version: &str, file: &str) -> Result<Option<Response<ureq::Body>>> {
        let url = format!("{}/{version}/{file}", self.url);
        let mut request = self.agent.get(&url);
        if let Some(token) = variable("HF_TOKEN") {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().with_context(|| url.clone())?;
        match response.status().as_u16() {
            200 => Ok(Some(response)),
            404 => Ok(None),
            401 | 403 => bail!("{url}: there is no such model, or it asks for a login: set HF_TOKEN"),
            status => bail!("{url}: the host answers {status}"),
        }
    }

    /// What `config.json` says, and the version that it is of.
    fn config(&self) -> Result<(String, String)> {
        let response = self.get("main", "config.json")?.with_context(|| format!("{}: there is no such model", self.url))?;
        let commit = response.headers().get("x-repo-commit").and_then(|commit| commit.to_str().ok()).unwrap_or("main").to_owned();
        ensure!(!commit.contains('/') && is_model_name(&commit), "{}: a strange version, {commit:?}", self.url);
        Ok((text(response)?, commit))
    }

    /// The weights, in one file or several.
    fn weights(&self, commit: &str, folder: &Path, console: &Console) -> Result<()> {
        if self.save(commit, "model.safetensors", folder, console)? {
            return Ok(());
        }
        let index = "model.safetensors.index.json";
        let found = self.get(commit, index)?.context("the model has no model.safetensors: only safetensors are read")?;
        let content = text(found)?;
        let parsed: Value = serde_json::from_str(&content).with_context(|| format!("{index} is no JSON"))?;
        let files = parsed["weight_map"].as_object().with_context(|| format!("{index} has no weight_map"))?;
        let files: BTreeSet<&str> = files.values().filter_map(Value::as_str).collect();
        for file in files {
            ensure!(!file.contains('/') && is_model_name(file), "{index} names a strange file, {file:?}");
            ensure!(self.save(commit, file, folder, console)?, "{index} names {file}, which is not there");
        }
        write(&folder.join(index), content.as_bytes())
    }

    /// Saves a file, if the model has it.
    fn save(&self, commit: &str, file: &str, folder: &Path, console: &Console) -> Result<bool> {
        let path = folder.join(file);
        if path.is_file() {
            // Of an attempt before: files are renamed when they are whole.
            return Ok(true);
        }
        let Some(response) = self.get(commit, file)? else { return Ok(false) };
        let expected = response.body().content_length();
        let bar = console.reading(expected.unwrap_or(0));
        bar.set_message(file.to_owned());
        let failed = || format!("cannot write {}", path.display());
        let mut out = NamedTempFile::new_in(folder).with_context(failed)?;
        let copied = io::copy(&mut bar.wrap_read(response.into_body().into_reader()), &mut out);
        bar.finish_and_clear();
        let copied = copied.with_context(|| format!("{}/{commit}/{file}, into {}", self.url, path.display()))?;
        if let Some(expected) = expected {
            ensure!(copied == expected, "{}/{commit}/{file} ended after {copied} of {expected} bytes", self.url);
        }
        out.as_file().sync_all().with_context(failed)?;
        out.persist(&path).with_context(failed)?;
        Ok(true)
    }
}

fn text(response: Response<ureq::Body>) -> Result<String> {
    let mut text = String::new();
    response.into_body().into_reader().take(MOST_TEXT).read_to_string(&mut text).context("what the host sends is no text")?;
    Ok(text)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new("."))).with_context(failed)?;
    io::Write::write_all(&mut file, bytes).with_context(failed)?;
    file.persist(path).map(|_| ()).with_context(failed)
}
