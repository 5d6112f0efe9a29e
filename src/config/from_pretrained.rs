//! Values that a file settles which a key names: the sizes of a pretrained encoder.

use std::path::Path;

use super::keys::Kind;
use super::keys::kind::describe;
use super::schema::ROOT;
use super::tree::{Node, Value};
use super::{Resolved, synthetic};

/// A value as the file has it.
#[derive(Clone, Debug)]
pub enum Settled {
    Size(u64),
    Number(f64),
    Text(String),
}

/// Why a key does not take a file's value.
#[derive(Debug, PartialEq)]
pub enum Unsettled {
    /// It is not what the key may hold, which is this.
    Outside(String),
    /// Another value was written, which is this.
    Written(String),
}

impl Resolved {
    /// Gives `section.name` the value from the file that the key `from` names. Written values stay, and have to be the same.
    pub fn settle(&mut self, section: &str, name: &str, value: Settled, from: &str) -> Result<(), Unsettled> {
        let kind = ROOT.find(section).and_then(|key| match key.kind {
            Kind::Section(keys) => keys.find(name).map(|key| key.kind.clone()),
            _ => None,
        });
        let kind = kind.unwrap_or(Kind::Text);
        let value = match value {
            // What is too large for TOML is outside of every range.
            Settled::Size(size) => i64::try_from(size).map_or(Value::Unusable(String::new()), Value::Int),
            Settled::Number(number) => Value::Float(number),
            Settled::Text(text) => Value::Text(text),
        };
        let value = kind.read(&value).map_err(|_| Unsettled::Outside(kind.describe()))?;
        let written = self.tree.get(&format!("{section}.{name}")).filter(|node| !node.at.is_default());
        if let Some(node) = written {
            return if node.value == value { Ok(()) } else { Err(Unsettled::Written(describe(&node.value))) };
        }
        let place = self.locate(from);
        let table = self.tree.get_mut(section).and_then(Node::table_mut);
        table.map(|table| table.insert(name.to_owned(), Node::new(value, place.clone(), place)));
        self.read_again();
        Ok(())
    }

    /// Puts the folder that a name turned out to mean in the name's place.
    pub fn place(&mut self, section: &str, name: &str, folder: &Path) {
        let table = self.tree.get_mut(section).and_then(Node::table_mut);
        if let Some(node) = table.and_then(|table| table.get_mut(name)) {
            node.value = Value::Text(folder.to_string_lossy().into_owned());
        }
        self.read_again();
    }

    /// Makes the configuration of the tree.
    fn read_again(&mut self) {
        // Fails only where a key takes what its field does not.
        if let Ok(mut config) = self.tree.to_toml().try_into() {
            synthetic::mark(&mut config, &self.tree);
            self.config = config;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::load_text;
    use super::*;

    const TEXT: &str = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\n";

    #[test]
    fn a_default_gives_way_and_is_printed_with_its_place() {
        let mut resolved = load_text(TEXT, &[]).unwrap();
        assert_eq!(resolved.settle("encoder", "hidden", Settled::Size(16), "encoder.kind"), Ok(()));
        assert_eq!(resolved.config.encoder.hidden, 16);
        let printed = resolved.print();
        assert!(printed.lines().any(|line| line.starts_with("hidden = 16") && line.ends_with("main.toml:2")), "{printed}");
        assert_eq!(resolved.settle("encoder", "tokenizer", Settled::Text("/v.txt".into()), "encoder.kind"), Ok(()));
        assert_eq!(resolved.config.encoder.tokenizer.as_deref(), Some("/v.txt"));
    }

    #[test]
    fn what_was_written_has_to_be_the_same() {
        let mut resolved = load_text(TEXT, &["encoder.hidden=3"]).unwrap();
        assert_eq!(resolved.settle("encoder", "hidden", Settled::Size(3), "encoder.kind"), Ok(()));
        let other = resolved.settle("encoder", "hidden", Settled::Size(4), "encoder.kind");
        assert_eq!(other, Err(Unsettled::Written("3".into())));
    }

    #[test]
    fn a_value_is_in_the_keys_range() {
        let mut resolved = load_text(TEXT, &[]).unwrap();
        for size in [0, 1025, u64::MAX] {
            let outside = resolved.settle("encoder", "layers", Settled::Size(size), "encoder.kind");
            assert_eq!(outside, Err(Unsettled::Outside("an integer from 1 to 1024".into())));
        }
    }
}
