//! JSON and TOML as a tree that can hold what no good document does: keys twice, numbers of any size, nesting of any depth.

use serde_json::Value;

use crate::mutate;
use crate::random::Random;

#[derive(Clone, Debug)]
pub enum Tree {
    /// As it stands in the text: a number, true, null.
    Literal(String),
    Text(String),
    List(Vec<Tree>),
    Table(Vec<(String, Tree)>),
}

const NUMBERS: [&str; 34] = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "100",
    "255",
    "65535",
    "65536",
    "1000000",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "1099511627776",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "99999999999999999999",
    "0.0",
    "-0.0",
    "0.5",
    "-0.5",
    "1.0",
    "1e-320",
    "1e-30",
    "1e10",
    "1e19",
    "1e30",
    "3.5e38",
    "1e308",
    "-1e308",
];

const OTHER_LITERALS: [&str; 8] = ["true", "false", "null", "nan", "inf", "-inf", "1e999", "1979-05-27"];

const TEXTS: [&str; 20] = [
    "",
    " ",
    "a",
    "true",
    "0",
    "-1",
    "NaN",
    "1KiB",
    "18446744073709551615GiB",
    "-1GiB",
    "1e30GiB",
    "..",
    "/",
    "/dev/zero",
    "/dev/full",
    "\u{0}",
    "é\u{301}",
    "a.b",
    "\"",
    "[UNK]",
];

impl Tree {
    pub fn from_json(value: &Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::from_json).collect()),
            Value::Object(map) => Self::Table(map.iter().map(|(key, value)| (key.clone(), Self::from_json(value))).collect()),
            literal => Self::Literal(literal.to_string()),
        }
    }

    pub fn from_toml(value: &toml::Value) -> Self {
        match value {
            toml::Value::String(text) => Self::Text(text.clone()),
            toml::Value::Array(items) => Self::List(items.iter().map(Self::from_toml).collect()),
            toml::Value::Table(map) => {
                Self::Table(map.iter().map(|(key, value)| (key.clone(), Self::from_toml(value))).collect())
            }
            literal => Self::Literal(literal.to_string()),
        }
    }

    pub fn parse_json(text: &str) -> Self {
        Self::from_json(&serde_json::from_str(text).expect("a seed is JSON"))
    }

    pub fn parse_toml(text: &str) -> Self {
        Self::from_toml(&toml::Value::Table(text.parse().expect("a seed is TOML")))
    }

    pub fn json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, ": ");
        out
    }

    /// Tables of the first two levels under headers, deeper ones inline.
    pub fn toml(&self) -> String {
        let Self::Table(entries) = self else { return self.json() };
        let (mut out, mut sections) = (String::new(), String::new());
        for (key, value) in entries {
            let Self::Table(inner) = value else {
                value.assign(key, &mut out);
                continue;
            };
            sections += &format!("[{}]\n", quoted(key));
            let (tables, plain): (Vec<_>, Vec<_>) = inner.iter().partition(|(_, value)| matches!(value, Self::Table(_)));
            plain.iter().for_each(|(key, value)| value.assign(key, &mut sections));
            for (name, value) in tables {
                sections += &format!("[{}.{}]\n", quoted(key), quoted(name));
                let Self::Table(inner) = value else { continue };
                inner.iter().for_each(|(key, value)| value.assign(key, &mut sections));
            }
        }
        out + &sections
    }

    fn assign(&self, key: &str, out: &mut String) {
        *out += &format!("{} = ", quoted(key));
        self.write(out, " = ");
        out.push('\n');
    }

    fn write(&self, out: &mut String, between: &str) {
        match self {
            Self::Literal(text) => *out += text,
            Self::Text(text) => *out += &quoted(text),
            Self::List(items) => {
                out.push('[');
                for (number, item) in items.iter().enumerate() {
                    *out += if number > 0 { ", " } else { "" };
                    item.write(out, between);
                }
                out.push(']');
            }
            Self::Table(entries) => {
                out.push('{');
                for (number, (key, value)) in entries.iter().enumerate() {
                    *out += if number > 0 { ", " } else { "" };
                    *out += &quoted(key);
                    *out += between;
                    value.write(out, between);
                }
                out.push('}');
            }
        }
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Tree> {
        let Self::Table(entries) = self else { return None };
        entries.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Replaces a key, or adds it.
    pub fn set(&mut self, key: &str, value: Tree) {
        match self.get_mut(key) {
            Some(old) => *old = value,
            None => {
                if let Self::Table(entries) = self {
                    entries.push((key.to_owned(), value));
                }
            }
        }
    }

    fn count(&self) -> usize {
        1 + match self {
            Self::List(items) => items.iter().map(Tree::count).sum(),
            Self::Table(entries) => entries.iter().map(|(_, value)| value.count()).sum::<usize>(),
            _ => 0,
        }
    }

    /// The node of a number in the order of the text.
    fn node(&mut self, mut number: usize) -> Result<&mut Tree, usize> {
        if number == 0 {
            return Ok(self);
        }
        number -= 1;
        let children: Vec<&mut Tree> = match self {
            Self::List(items) => items.iter_mut().collect(),
            Self::Table(entries) => entries.iter_mut().map(|(_, value)| value).collect(),
            _ => return Err(number),
        };
        for child in children {
            match child.node(number) {
                Ok(found) => return Ok(found),
                Err(left) => number = left,
            }
        }
        Err(number)
    }

    fn any(&mut self, random: &mut Random) -> &mut Tree {
        let number = random.below(self.count());
        self.node(number).unwrap_or_else(|_| unreachable!("fewer nodes than counted"))
    }

    /// A table or list in which something can be put, in half of the cases the root's own.
    fn any_holder(&mut self, random: &mut Random) -> &mut Tree {
        for _ in 0..8 {
            let number = random.below(self.count());
            if matches!(self.node(number), Ok(Self::List(_) | Self::Table(_))) {
                return self.node(number).unwrap_or_else(|_| unreachable!("found before"));
            }
        }
        self
    }
}

/// One to five changes, mostly few: a document that is wrong everywhere is refused at the first. `pool` are other documents of the same kind, whose parts fit in.
pub fn mutate(random: &mut Random, tree: &mut Tree, pool: &[Tree]) {
    for _ in 0..=random.size(4).min(random.size(4)) {
        change(random, tree, pool);
    }
}

fn change(random: &mut Random, tree: &mut Tree, pool: &[Tree]) {
    match random.below(24) {
        0..=11 => {
            let node = tree.any(random);
            *node = tweaked(random, node);
        }
        12 => *tree.any(random) = scalar(random),
        13 => {
            let part = part(random, tree, pool);
            *tree.any(random) = part;
        }
        14..=16 if !pool.is_empty() => {
            let other = &pool[random.below(pool.len())];
            adopt(random, tree, other);
        }
        17 => {
            let (key, part) = entry(random, tree, pool);
            match tree.any_holder(random) {
                Tree::List(items) => items.insert(random.below(items.len() + 1), part),
                Tree::Table(entries) => entries.insert(random.below(entries.len() + 1), (key, part)),
                _ => {}
            }
        }
        18 | 19 => match tree.any_holder(random) {
            Tree::List(items) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
            Tree::Table(entries) if !entries.is_empty() => drop(entries.remove(random.below(entries.len()))),
            _ => {}
        },
        20 => match tree.any_holder(random) {
            Tree::List(items) if !items.is_empty() => {
                let item = items[random.below(items.len())].clone();
                let room = mutate::MOST_BYTES / 4 / item.json().len().max(1);
                items.extend(std::iter::repeat_n(item, (1 + random.size(10_000)).min(room)));
            }
            Tree::Table(entries) if !entries.is_empty() => {
                let again = entries[random.below(entries.len())].clone();
                entries.push(again);
            }
            _ => {}
        },
        21 | 22 => {
            if let Tree::Table(entries) = tree.any_holder(random)
                && !entries.is_empty()
            {
                let at = random.below(entries.len());
                entries[at].0 = text(random, &entries[at].0.clone());
            }
        }
        _ => {
            let node = tree.any(random);
            let depth = 1 + random.size(2000);
            let key = random.once_in(2).then(|| "a".to_owned());
            let wrap = |inner| match &key {
                Some(key) => Tree::Table(vec![(key.clone(), inner)]),
                None => Tree::List(vec![inner]),
            };
            *node = (0..depth).fold(scalar(random), |inner, _| wrap(inner));
        }
    }
}

/// Takes a key from the same place of another document, where it has a meaning.
fn adopt(random: &mut Random, mut tree: &mut Tree, mut other: &Tree) {
    loop {
        let Tree::Table(theirs) = other else { return };
        let Some((key, value)) = theirs.get(random.below(theirs.len())) else { return };
        if !matches!(value, Tree::Table(_)) || tree.get_mut(key).is_none() {
            return tree.set(key, value.clone());
        }
        let Some(ours) = tree.get_mut(key) else { return };
        (tree, other) = (ours, value);
    }
}

/// A little different from what it was.
fn tweaked(random: &mut Random, node: &Tree) -> Tree {
    match node {
        Tree::Text(old) => Tree::Text(text(random, old)),
        Tree::Literal(old) => match old.parse::<f64>() {
            Ok(value) if random.once_in(2) => {
                let changed = match random.below(5) {
                    0 => value + 1.0,
                    1 => value - 1.0,
                    2 => value * 2.0,
                    3 => -value,
                    _ => value * 1000.0,
                };
                let whole = changed.fract() == 0.0 && !old.contains('.') && changed.abs() < 1e15;
                Tree::Literal(if whole { format!("{changed:.0}") } else { format!("{changed:?}") })
            }
            _ => Tree::Literal(random.pick(&NUMBERS).to_owned()),
        },
        _ => scalar(random),
    }
}

fn scalar(random: &mut Random) -> Tree {
    match random.below(8) {
        0..=3 => Tree::Literal(random.pick(&NUMBERS).to_owned()),
        4 => Tree::Literal(random.pick(&OTHER_LITERALS).to_owned()),
        5 => Tree::Text(text(random, "a")),
        6 => Tree::List(Vec::new()),
        _ => Tree::Table(Vec::new()),
    }
}

fn text(random: &mut Random, old: &str) -> String {
    match random.below(6) {
        0..=2 => random.pick(&TEXTS).to_owned(),
        3 => random.pick(&["a", "é", "[", ".", "\\", " "]).repeat(1 + random.size(50_000)),
        _ => {
            let mut bytes = old.as_bytes().to_vec();
            mutate::bytes(random, &mut bytes);
            bytes.truncate(100_000);
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}

/// A part of this document or of another one.
fn part(random: &mut Random, tree: &mut Tree, pool: &[Tree]) -> Tree {
    if pool.is_empty() || random.once_in(2) {
        return tree.any(random).clone();
    }
    pool[random.below(pool.len())].clone().any(random).clone()
}

/// A key and value as they stand together in one of the documents.
fn entry(random: &mut Random, tree: &mut Tree, pool: &[Tree]) -> (String, Tree) {
    let mut from = if pool.is_empty() { tree.clone() } else { pool[random.below(pool.len())].clone() };
    let mut holder = from.any_holder(random).clone();
    match &mut holder {
        Tree::Table(entries) if !entries.is_empty() => entries.swap_remove(random.below(entries.len())),
        other => ("a".to_owned(), other.clone()),
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}
