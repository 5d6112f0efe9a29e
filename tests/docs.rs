//! Generated pages are what the program says today. `TASKLOOM_WRITE_DOCS=1 cargo test --release --test docs` rewrites them.

use std::path::Path;

fn up_to_date(page: &str, content: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    if std::env::var_os("TASKLOOM_WRITE_DOCS").is_some() {
        std::fs::write(&path, content).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == content, "docs/{page} is out of date; run this test with TASKLOOM_WRITE_DOCS=1");
}

#[test]
fn configuration_reference() {
    up_to_date("configuration.md", &taskloom::config::reference());
}

#[test]
fn schemas() {
    up_to_date("schema/run.json", &taskloom::config::run_schema());
    up_to_date("schema/sweep.json", &taskloom::config::sweep_schema());
    up_to_date("schema/workload.json", &taskloom::config::workload_schema());
}
