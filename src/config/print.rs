//! The resolved tree as TOML: with the origin of every value for a reader, complete for a run folder.

use std::collections::BTreeSet;

use super::defaults::unused;
use super::keys::kind::show_bytes;
use super::keys::{Kind, Section};
use super::schema::ROOT;
use super::tree::{Node, Value, join_key, quote_key};

pub fn with_origins(tree: &Node) -> String {
    Printer::new(tree, true).print(tree)
}

pub fn complete(tree: &Node) -> String {
    let text = Printer::new(tree, false).print(tree);
    format!("# Resolved by taskloom: every value of the run, paths made absolute.\n\n{text}")
}

/// A value longer than this does not push the comments of its table to the right.
const ALIGNED_WIDTH: usize = 64;

struct Printer {
    /// Keys that act only beside another value: writing them down would be refused.
    unused: BTreeSet<String>,
    origins: bool,
    blocks: Vec<String>,
}

impl Printer {
    fn new(tree: &Node, origins: bool) -> Printer {
        Printer { unused: unused(tree).iter().map(|unused| unused.path()).collect(), origins, blocks: Vec::new() }
    }

    fn print(mut self, tree: &Node) -> String {
        self.section("", tree, &ROOT, false);
        self.blocks.join("\n")
    }

    /// `brief` leaves out defaults: a task has many, and they are the same for all.
    fn section(&mut self, path: &str, node: &Node, section: &'static Section, brief: bool) {
        let Some(table) = node.table() else { return };
        let mut lines = Vec::new();
        let mut inner = Vec::new();
        for key in section.keys.iter() {
            let Some(child) = table.get(key.name) else { continue };
            let child_path = join_key(path, key.name);
            match &key.kind {
                Kind::Section(section) => inner.push((child_path, child, section, key.name == "task_defaults")),
                Kind::Sections(section) => {
                    let entries = child.table().into_iter().flatten();
                    inner.extend(entries.map(|(name, entry)| (join_key(&child_path, name), entry, section, key.name == "tasks")));
                }
                _ if self.unused.contains(&child_path) || (brief && child.at.is_default()) => {}
                kind => lines.push((format!("{} = {}", quote_key(key.name), show(child, kind)), child)),
            }
        }
        if !path.is_empty() {
            self.block(path, &lines, !node.place().is_default());
        }
        for (path, node, section, is_task) in inner {
            self.section(&path, node, section, is_task && self.origins);
        }
    }

    /// `written` keeps a table that has no line to show: its name alone says something.
    fn block(&mut self, path: &str, lines: &[(String, &Node)], written: bool) {
        if lines.is_empty() && !written {
            return;
        }
        let width = |line: &str| line.chars().count();
        let column = lines.iter().map(|(line, _)| width(line)).filter(|width| *width <= ALIGNED_WIDTH).max().unwrap_or(0);
        let mut block = format!("[{path}]\n");
        for (line, node) in lines {
            block += line;
            if self.origins {
                let padding = " ".repeat(column.saturating_sub(width(line)));
                block += &format!("{padding}  # {}", node.at);
            }
            block.push('\n');
        }
        self.blocks.push(block);
    }
}

fn show(node: &Node, kind: &Kind) -> String {
    match (kind, &node.value) {
        (Kind::Bytes, Value::Int(bytes)) => show_bytes(*bytes).map_or_else(|| bytes.to_string(), |size| format!("\"{size}\"")),
        // TOML's own writer would spell 1e-8 out.
        (_, Value::Float(float)) => format!("{float:?}"),
        _ => node.to_toml().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Folder, load_text};
    use super::super::{Resolved, load};

    const RUN: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n";

    /// Writes what was resolved into another folder and loads it there.
    fn again(text: &str) -> Resolved {
        let folder = Folder::new(&[("run/config.toml", text)]);
        load(&folder.path("run/config.toml"), &[]).unwrap()
    }

    fn round_trips(resolved: &Resolved) {
        assert_eq!(again(&resolved.to_toml()).config, resolved.config, "{}", resolved.to_toml());
        assert_eq!(again(&resolved.print()).config, resolved.config, "{}", resolved.print());
        assert_eq!(again(&resolved.to_toml()).to_toml(), resolved.to_toml());
    }

    #[test]
    fn defaults_round_trip() {
        round_trips(&load_text(&format!("{RUN}[synthetic]\n"), &[]).unwrap());
    }

    #[test]
    fn synthetic_tasks_with_settings_round_trip() {
        let text = format!("{RUN}[synthetic]\nnoise = 0.25\n[tasks.alone_1]\n[tasks.agree_1a]\nweight = 3\nmemory = \"1GiB\"\n");
        let resolved = load_text(&text, &["optimizer.eps=1e-12", "run.name=x"]).unwrap();
        assert_eq!(resolved.config.tasks.len(), 2);
        round_trips(&resolved);
    }

    #[test]
    fn discovered_tasks_round_trip() {
        let text = "[encoder]\nkind = \"bag\"\ntokenizer = \"tok/vocab.txt\"\n[train]\nepochs = 2\n[data]\nroot = \"sets\"\n\
                    [sampler]\nkind = \"explicit\"\n[eval]\nevery = 50\n[eval.slices.clean]\ncolumn = \"clean\"\nequals = \"1\"\n\
                    [task_defaults]\ntext = \"text\"\nlabel = \"label\"\nclasses = [\"neg \\\"x\\\"\", \"pos\\n\"]\nshare = 2\n\
                    [tasks_from]\nfile = \"a.tsv.gz\"\nsplit = \"split\"\n\
                    [tasks.books]\nweight = 2\n[tasks.\"a.b\"]\ntrain = \"b.jsonl\"\nhead = \"regression\"\nmetrics = \"mse\"\n";
        let files = [("main.toml", text), ("sets/a.tsv.gz", ""), ("sets/b.jsonl", ""), ("sets/tok/vocab.txt", "")];
        let folder = Folder::new(&files);
        let resolved = folder.load(&[]).unwrap();
        assert!(resolved.config.tasks["a.b"].split.is_none());
        round_trips(&resolved);
    }

    #[test]
    fn parameters_out_of_use_round_trip() {
        let text = format!("{RUN}[synthetic]\n[surgery]\norder = \"fixed\"\n[optimizer]\nbeta1 = 0.5\n");
        round_trips(&load_text(&text, &["surgery.method=sum", "optimizer.kind=sgd"]).unwrap());
    }

    #[test]
    fn each_line_names_its_origin() {
        let folder = Folder::new(&[
            ("main.toml", &format!("base = \"base.toml\"\n{RUN}[synthetic]\n")),
            ("base.toml", "[run]\nname = \"x\"\n"),
        ]);
        let printed = folder.load(&["run.seed=7"]).unwrap().print();
        let line = |start: &str| printed.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(line("name = \"x\"").ends_with(&format!("  # {}:2", folder.path("base.toml").display())));
        assert!(line("rounds = 1").ends_with(&format!("  # {}:5", folder.path("main.toml").display())));
        assert!(line("seed = 7").ends_with("  # --set"));
        assert!(line("threads = 0").ends_with("  # default"));
        assert!(printed.lines().all(|line| line.is_empty() || line.starts_with('[') || line.contains("  # ")));
    }

    #[test]
    fn origins_stand_in_one_column() {
        let printed = load_text(&format!("{RUN}[synthetic]\n"), &["run.out=/x"]).unwrap().print();
        let block = printed.split("\n\n").find(|block| block.starts_with("[run]")).unwrap();
        let columns: Vec<_> = block.lines().skip(1).map(|line| line.find("  # ")).collect();
        assert!(columns.iter().all(|column| column == &columns[0]), "{block}");
    }

    #[test]
    fn a_task_is_printed_without_its_defaults() {
        let printed = load_text(&format!("{RUN}[synthetic]\n[tasks.alone_1]\nweight = 2\n"), &[]).unwrap().print();
        let block = printed.split("\n\n").find(|block| block.starts_with("[tasks.alone_1]")).unwrap();
        assert_eq!(block.lines().count(), 2, "{block}");
        assert!(!printed.contains("[task_defaults]"));
    }

    #[test]
    fn sizes_keep_their_unit() {
        let printed = load_text(&format!("{RUN}[synthetic]\n[memory]\ndevice = \"8GiB\"\n"), &[]).unwrap().print();
        assert!(printed.contains("device = \"8GiB\""));
    }
}
