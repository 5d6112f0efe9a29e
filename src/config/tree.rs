//! The configuration as a tree in which every value remembers where it was written.
//!
//! TOML text becomes a [`Node`]; files and `--set` are merged as nodes; defaults are nodes too. Only the finished tree is
//! turned into the structs of [`super::schema`], so that any value can be traced back to a line.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One configuration file of a chain of bases.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// 0 for the file that was loaded, 1 for its base, and so on.
    pub depth: usize,
    pub path: PathBuf,
}

/// Where a value comes from. Sorts as errors are read: the loaded file by line, its bases, `--set`, the rest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Line and column count from 1; the column counts characters.
    File {
        source: Arc<Source>,
        line: usize,
        column: usize,
    },
    /// The text given to `--set`.
    Set(Arc<str>),
    Default,
}

impl Origin {
    /// Larger wins: defaults < furthest base < ... < loaded file < `--set`.
    pub fn layer(&self) -> usize {
        match self {
            Origin::Default => 0,
            Origin::File { source, .. } => usize::MAX - 1 - source.depth,
            Origin::Set(_) => usize::MAX,
        }
    }

    pub fn is_default(&self) -> bool {
        matches!(self, Origin::Default)
    }
}

/// As `check --print` names it: `reviews.toml:12`, `--set` or `default`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { source, line, .. } => write!(f, "{}:{line}", source.path.display()),
            Origin::Set(_) => f.write_str("--set"),
            Origin::Default => f.write_str("default"),
        }
    }
}

pub type Table = BTreeMap<String, Node>;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Table),
    /// TOML that no key takes (a date, an integer beyond 64 bits), in words.
    Unusable(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub value: Value,
    /// Of the value; [`Node::place`] is what a message should point at.
    pub at: Origin,
    pub key_at: Origin,
    /// Already reported: `value` is a stand-in, and nothing that follows from it is worth reporting.
    pub flawed: bool,
    /// The key that was really written, when a task got this value from `task_defaults` or `tasks_from`.
    pub inherited: Option<String>,
}

impl Node {
    pub fn new(value: Value, at: Origin, key_at: Origin) -> Node {
        Node { value, at, key_at, flawed: false, inherited: None }
    }

    pub fn default(value: Value) -> Node {
        Node::new(value, Origin::Default, Origin::Default)
    }

    pub fn flawed(value: Value, place: Origin) -> Node {
        Node { flawed: true, ..Node::new(value, place.clone(), place) }
    }

    /// The header of a table, the value of anything else.
    pub fn place(&self) -> &Origin {
        match self.value {
            Value::Table(_) => &self.key_at,
            _ => &self.at,
        }
    }

    pub fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn table_mut(&mut self) -> Option<&mut Table> {
        match &mut self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        let (path, missing) = self.trail(key);
        if missing { None } else { path.last().copied() }
    }

    /// The nodes from the root towards `key`, as far as they exist, and whether some of `key` was left over.
    ///
    /// Task names may hold dots, so of several readings of `tasks.a.b` the longest name that exists is taken.
    pub fn trail(&self, key: &str) -> (Vec<&Node>, bool) {
        let segments = split_key(key);
        let mut path = vec![self];
        let mut rest = &segments[..];
        while !rest.is_empty() {
            let here = path[path.len() - 1];
            let step = (1..=rest.len()).rev().find_map(|n| Some((n, here.table()?.get(&rest[..n].join("."))?)));
            let Some((taken, node)) = step else { return (path, true) };
            path.push(node);
            rest = &rest[taken..];
        }
        (path, false)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        let segments = split_key(key);
        let mut here = self;
        let mut rest = &segments[..];
        while !rest.is_empty() {
            let table = here.table_mut()?;
            let taken = (1..=rest.len()).rev().find(|n| table.contains_key(&rest[..*n].join(".")))?;
            here = table.get_mut(&rest[..taken].join("."))?;
            rest = &rest[taken..];
        }
        Some(here)
    }

    pub fn to_toml(&self) -> toml::Value {
        match &self.value {
            Value::Bool(value) => toml::Value::Boolean(*value),
            Value::Int(value) => toml::Value::Integer(*value),
            Value::Float(value) => toml::Value::Float(*value),
            Value::Text(value) | Value::Unusable(value) => toml::Value::String(value.clone()),
            Value::List(items) => toml::Value::Array(items.iter().map(Node::to_toml).collect()),
            Value::Table(table) => toml::Value::Table(table.iter().map(|(name, node)| (name.clone(), node.to_toml())).collect()),
        }
    }
}

/// `upper` over `lower`: tables merge key by key, everything else is replaced.
pub fn merge(lower: Node, upper: Node) -> Node {
    match (lower.value, upper.value) {
        (Value::Table(mut below), Value::Table(above)) => {
            for (name, node) in above {
                let merged = match below.remove(&name) {
                    Some(old) => merge(old, node),
                    None => node,
                };
                below.insert(name, merged);
            }
            // A table's errors belong to its header; `--set` inside it has none.
            let from_set = matches!(upper.key_at, Origin::Set(_));
            let (at, key_at) = if from_set { (lower.at, lower.key_at) } else { (upper.at, upper.key_at) };
            Node::new(Value::Table(below), at, key_at)
        }
        (_, value) => Node::new(value, upper.at, upper.key_at),
    }
}

/// ScheduleSetup byte spans of one text into origins.
pub enum Spans<'a> {
    File {
        source: Arc<Source>,
        text: &'a str,
        /// Byte offsets.
        line_starts: Vec<usize>,
    },
    Set(Arc<str>),
    Default,
}

impl<'a> Spans<'a> {
    pub fn file(source: Arc<Source>, text: &'a str) -> Spans<'a> {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Spans::File { source, text, line_starts }
    }

    pub fn origin(&self, span: Range<usize>) -> Origin {
        match self {
            Spans::File { source, text, line_starts } => {
                let line = line_starts.partition_point(|start| *start <= span.start);
                let before = text.get(line_starts[line - 1]..span.start).unwrap_or("");
                Origin::File { source: source.clone(), line, column: before.chars().count() + 1 }
            }
            Spans::Set(text) => Origin::Set(text.clone()),
            Spans::Default => Origin::Default,
        }
    }

    pub fn node(&self, key: Range<usize>, value: &Spanned<DeValue<'_>>) -> Node {
        Node::new(self.value(value.get_ref()), self.origin(value.span()), self.origin(key))
    }

    pub fn table(&self, table: &DeTable<'_>) -> Table {
        table.iter().map(|(key, value)| (key.get_ref().to_string(), self.node(key.span(), value))).collect()
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(int) => match i64::from_str_radix(int.as_str(), int.radix()) {
                Ok(int) => Value::Int(int),
                Err(_) => Value::Unusable(format!("{int}, which is beyond 64 bits")),
            },
            DeValue::Float(float) => match float.as_str().parse() {
                Ok(float) => Value::Float(float),
                Err(_) => Value::Unusable(format!("the float {float}")),
            },
            DeValue::Boolean(bool) => Value::Bool(*bool),
            DeValue::Datetime(date) => Value::Unusable(format!("the date {date}")),
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.node(item.span(), item)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        }
    }
}

/// A key as it is written in TOML: quoted where it must be.
pub fn quote_key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { format!("\"{}\"", name.escape_debug()) }
}

/// `parent.name`, for messages and lookups.
pub fn join_key(parent: &str, name: &str) -> String {
    if parent.is_empty() { quote_key(name) } else { format!("{parent}.{}", quote_key(name)) }
}

fn split_key(key: &str) -> Vec<String> {
    if key.is_empty() {
        return Vec::new();
    }
    let mut segments = vec![String::new()];
    let mut quote = None;
    for c in key.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '.') => segments.push(String::new()),
            _ => segments.last_mut().into_iter().for_each(|segment| segment.push(c)),
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(depth: usize, text: &str) -> Node {
        let source = Arc::new(Source { depth, path: PathBuf::from(format!("{depth}.toml")) });
        let spans = Spans::file(source, text);
        let table = DeTable::parse(text).unwrap();
        let root = spans.origin(0..0);
        Node::new(Value::Table(spans.table(table.get_ref())), root.clone(), root)
    }

    fn position(origin: &Origin) -> (usize, usize, usize) {
        match origin {
            Origin::File { source, line, column } => (source.depth, *line, *column),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_and_keys_know_their_line_and_column() {
        let tree = parse(0, "# é\n[a]\n  x = 1\n  \"é.\" = \"x\"\n");
        let node = tree.get("a.x").unwrap();
        assert_eq!((position(&node.key_at), position(&node.at)), ((0, 3, 3), (0, 3, 7)));
        assert_eq!(position(&tree.get("a.\"é.\"").unwrap().at), (0, 4, 10));
    }

    #[test]
    fn headers_are_where_tables_are() {
        let tree = parse(0, "\n[a.b]\nc = 1");
        assert_eq!(position(tree.get("a.b").unwrap().place()), (0, 2, 4));
    }

    #[test]
    fn tables_merge_and_arrays_are_replaced() {
        let merged = merge(parse(1, "[a]\nx = 1\ny = [1, 2]"), parse(0, "[a]\ny = [3]"));
        assert_eq!(merged.get("a.x").unwrap().value, Value::Int(1));
        assert_eq!(position(&merged.get("a.x").unwrap().at), (1, 2, 5));
        let Value::List(items) = &merged.get("a.y").unwrap().value else { panic!() };
        assert_eq!(items.len(), 1);
    }

    #[test]
    fn names_with_dots_are_found_quoted_or_not() {
        let tree = parse(0, "[tasks.\"a.b\"]\nweight = 1");
        assert!(tree.get("tasks.a.b.weight").is_some());
        assert!(tree.get("tasks.\"a.b\".weight").is_some());
        assert!(tree.get("tasks.a").is_none());
    }

    #[test]
    fn integers_of_every_radix_are_read() {
        let tree = parse(0, "a = 0x1F\nb = 1_000\nc = -5\nd = +5\ne = 99999999999999999999");
        let int = |key| tree.get(key).unwrap().value.clone();
        assert_eq!([int("a"), int("b"), int("c"), int("d")], [31, 1000, -5, 5].map(Value::Int));
        assert!(matches!(int("e"), Value::Unusable(_)));
    }

    #[test]
    fn keys_are_quoted_only_where_they_must_be() {
        assert_eq!(join_key("tasks", "a-b"), "tasks.a-b");
        assert_eq!(join_key("tasks", "a.b"), "tasks.\"a.b\"");
    }
}
