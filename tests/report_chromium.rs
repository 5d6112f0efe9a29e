//! The pages of `taskloom report` in a browser: no errors, nothing loaded, a slider that moves the heat map, a legend that hides
//! curves. Runs where there is a `chromium`; structure is compared, not pixels.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, outcome, taskloom};
use scraper::{Html, Selector};
use serde_json::Value;

const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--dump-dom",
];

/// Before anything else on the page.
const LISTEN: &str = r#"<script>
  const problems = [];
  addEventListener("error", (event) => problems.push(String(event.message)));
  addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
  console.error = console.warn = (...words) => problems.push(words.join(" "));
</script>"#;

/// After everything else: uses the page as people do, and writes down what it did.
const USE: &str = r#"<script>
  const found = { charts: document.querySelectorAll("figure svg").length, heats: [], hidden: 0 };
  for (const heat of document.querySelectorAll(".heat")) {
    const colours = () => [...heat.querySelectorAll("tbody td")].map((cell) => getComputedStyle(cell).backgroundColor).join();
    const slider = heat.querySelector("input"), part = heat.querySelector("select");
    const last = colours();
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
    const first = colours(), round = heat.querySelector(".round").textContent;
    let other = first;
    if (part) {
      part.selectedIndex = part.options.length - 1;
      part.dispatchEvent(new Event("change"));
      other = colours();
    }
    heat.querySelector("tbody tr td:last-child").click();
    found.heats.push({ moves: first !== last, round, parts: part ? part.options.length : 1, differs: other !== first,
      readout: heat.querySelector(".readout").textContent, controls: getComputedStyle(heat.querySelector(".controls")).display });
  }
  const button = document.querySelector(".chart .legend button");
  button.click();
  found.hidden = document.querySelectorAll("figure .off").length;
  found.pressed = button.getAttribute("aria-pressed");
  button.click();
  found.shown = document.querySelectorAll("figure .off").length;
  found.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  found.problems = problems;
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = JSON.stringify(found);
  document.body.append(told);
</script>"#;

/// The first browser of the usual names.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
}

/// What using the page came to.
fn used(browser: &Path, place: &Place, page: &Path, width: u32) -> Value {
    let text = std::fs::read_to_string(page).expect("a page");
    let text = text.replacen("<head>", &format!("<head>{LISTEN}"), 1).replacen("</body>", &format!("{USE}</body>"), 1);
    let probe = place.write("probe.html", text);
    let profile = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(browser);
    command.args(FLAGS).arg(format!("--window-size={width},900")).arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("file://{}", probe.display()));
    let dom = place.path("dom.html");
    let file = std::fs::File::create(&dom).expect("can write");
    let mut child = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().expect("the browser starts");
    let started = Instant::now();
    while child.try_wait().expect("can be asked").is_none() {
        if started.elapsed() > Duration::from_secs(120) {
            child.kill().expect("can be killed");
            panic!("the browser has not ended after two minutes");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let html = Html::parse_document(&std::fs::read_to_string(&dom).expect("a document"));
    let found =
        html.select(&Selector::parse("#found").expect("a selector")).next().expect("the scripts ran").text().collect::<String>();
    serde_json::from_str(&found).expect("JSON")
}

fn written(place: &Place, runs: &[&Path], name: &str) -> PathBuf {
    let page = place.path(name);
    outcome(taskloom().arg("report").args(runs).arg("--out").arg(&page).output()).ok();
    page
}

/// No script failed, nothing was fetched, and nothing sticks out of the page.
fn is_sound(found: &Value) {
    assert_eq!(found["problems"], Value::Array(Vec::new()));
    assert_eq!(found["loaded"], Value::Array(Vec::new()));
    assert_eq!(found["wider"], 0, "the page is wider than its window");
    assert!(found["hidden"].as_u64() > Some(0) && found["shown"] == 0 && found["pressed"] == "false", "{found}");
}

#[test]
fn pages_work_in_a_browser() {
    let Some(browser) = chromium() else {
        println!("skipped: there is no chromium on the PATH");
        return;
    };
    let place = Place::new();
    let runs = ["pcgrad", "sum"].map(|method| {
        let method = format!("surgery.method={method}");
        place.train(&place.transformer(), &[&method, "observe.conflict_every=1", "eval.every=2"])
    });
    let page = written(&place, &[&runs[0]], "one.html");
    for width in [1280, 500] {
        let found = used(&browser, &place, &page, width);
        is_sound(&found);
        assert!(found["charts"].as_u64() > Some(10), "{found}");
        let heat = &found["heats"][0];
        assert_eq!(
            (&heat["moves"], &heat["differs"], heat["round"].as_str()),
            (&true.into(), &true.into(), Some("0")),
            "{found}"
        );
        assert_eq!(heat["controls"], "flex");
        assert!(heat["parts"].as_u64() > Some(2), "the whole encoder, its embedding and its layers: {found}");
        assert!(heat["readout"].as_str().is_some_and(|words| words.contains(" and ")), "{found}");
    }
    let folders: Vec<&Path> = runs.iter().map(PathBuf::as_path).collect();
    is_sound(&used(&browser, &place, &written(&place, &folders, "two.html"), 1280));
}
