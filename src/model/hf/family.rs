//! Encoders that compute what a BERT computes under other names: what config.json and the tensors call its parts. They are read as BERTs, and
//! exported as such.

/// Keys of config.json.
#[derive(Debug, PartialEq)]
pub struct Keys {
    pub hidden: &'static str,
    pub layers: &'static str,
    pub heads: &'static str,
    pub intermediate: &'static str,
    pub activation: &'static str,
}

#[derive(Debug, PartialEq)]
pub struct Family {
    /// In config.json.
    pub model_type: &'static str,
    pub keys: Keys,
    /// What names of tensors begin with in a model that has a head.
    prefix: &'static str,
    /// Pieces of tensors' names, and what BERT calls them.
    renamed: &'static [(&'static str, &'static str)],
    /// Rows of the table of token types. A second text is of the first's type where there is one row, and of none where there is no table.
    pub types: usize,
    /// Positions begin in the table's row behind that of the padding token's id.
    pub positions_behind_padding: bool,
}

const BERT_KEYS: Keys = Keys {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    intermediate: "intermediate_size",
    activation: "hidden_act",
};

/// The first is meant where config.json says nothing.
pub const FAMILIES: &[Family] = &[
    Family { model_type: "bert", keys: BERT_KEYS, prefix: "bert.", renamed: &[], types: 2, positions_behind_padding: false },
    Family { model_type: "roberta", keys: BERT_KEYS, prefix: "roberta.", renamed: &[], types: 1, positions_behind_padding: true },
    Family {
        model_type: "distilbert",
        keys: Keys { hidden: "dim", layers: "n_layers", heads: "n_heads", intermediate: "hidden_dim", activation: "activation" },
        prefix: "distilbert.",
        renamed: &[
            ("transformer.layer.", "encoder.layer."),
            (".attention.q_lin.", ".attention.self.query."),
            (".attention.k_lin.", ".attention.self.key."),
            (".attention.v_lin.", ".attention.self.value."),
            (".attention.out_lin.", ".attention.output.dense."),
            (".sa_layer_norm.", ".attention.output.LayerNorm."),
            (".ffn.lin1.", ".intermediate.dense."),
            (".ffn.lin2.", ".output.dense."),
            (".output_layer_norm.", ".output.LayerNorm."),
        ],
        types: 0,
        positions_behind_padding: false,
    },
];

impl Family {
    /// What BERT calls a tensor today: without the prefix, and with weight and bias of a LayerNorm.
    pub fn plain_name(&self, name: &str) -> String {
        let own = name.strip_prefix(self.prefix).unwrap_or(name);
        let name = self.renamed.iter().fold(own.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours));
        match name.rsplit_once('.') {
            Some((stem, "gamma")) => format!("{stem}.weight"),
            Some((stem, "beta")) => format!("{stem}.bias"),
            _ => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_old_and_new_checkpoints_meet() {
        for (family, name, plain) in [
            (&FAMILIES[0], "bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
            (&FAMILIES[0], "encoder.layer.0.output.LayerNorm.beta", "encoder.layer.0.output.LayerNorm.bias"),
            (&FAMILIES[0], "pooler.dense.weight", "pooler.dense.weight"),
            (&FAMILIES[1], "roberta.encoder.layer.1.output.dense.bias", "encoder.layer.1.output.dense.bias"),
            (&FAMILIES[2], "distilbert.transformer.layer.1.ffn.lin2.bias", "encoder.layer.1.output.dense.bias"),
            (&FAMILIES[2], "transformer.layer.0.output_layer_norm.weight", "encoder.layer.0.output.LayerNorm.weight"),
        ] {
            assert_eq!(family.plain_name(name), plain);
        }
    }
}
