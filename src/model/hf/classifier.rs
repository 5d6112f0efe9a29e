//! One task's head as transformers' BertForSequenceClassification has it.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::HeadFile;
use crate::model::Parameters;
use crate::model::network::Network;
use crate::model::spec::HeadKind;
use crate::model::transformer::Pooling;

/// The head's layer, in the numbers that labels have.
pub struct Classifier {
    kind: HeadKind,
    labels: Vec<String>,
    /// (outputs x hidden)
    pub weight: Vec<f32>,
    /// (outputs)
    pub bias: Vec<f32>,
}

impl Classifier {
    /// Of the network's task number `task`. Only a head over the pooler's output has that form.
    pub fn new(network: &Network, parameters: &Parameters, task: usize, head: &HeadFile) -> Result<Self> {
        ensure!(
            head.kind != HeadKind::Mlm,
            "a language model's head is none of BertForSequenceClassification: export without --task"
        );
        ensure!(
            head.kind != HeadKind::Similarity,
            "a task that compares texts has no head, so there is no BertForSequenceClassification: export without --task"
        );
        let pooling = head.pooling.map_or("every token", Pooling::name);
        ensure!(
            head.pooling == Some(Pooling::Pooler),
            "BertForSequenceClassification reads the pooler's output, this run's heads read \"{pooling}\": train with \
             encoder.pooling = \"pooler\", or export without --task and read heads.safetensors"
        );
        let (weight, bias) = network.table.head(task);
        let mut weight = parameters.heads.values[weight.range()].to_vec();
        let mut bias = parameters.heads.values[bias.range()].to_vec();
        // A scaled answer times its deviation and plus its mean is again a linear layer's.
        let hidden = weight.len() / head.outputs;
        for (output, (deviation, mean)) in head.label_deviation.iter().zip(&head.label_mean).enumerate() {
            weight[output * hidden..][..hidden].iter_mut().for_each(|value| *value *= deviation);
            bias[output] = bias[output] * deviation + mean;
        }
        let usual = || (0..head.outputs).map(|output| format!("LABEL_{output}")).collect();
        let labels = if head.classes.len() == head.outputs { head.classes.clone() } else { usual() };
        Ok(Self { kind: head.kind, labels, weight, bias })
    }

    /// What config.json says of it.
    pub fn describe(&self, config: &mut Value) {
        let problem = match self.kind {
            HeadKind::Regression => "regression",
            HeadKind::Multilabel => "multi_label_classification",
            _ => "single_label_classification",
        };
        let numbered = || self.labels.iter().enumerate();
        let names: Map<String, Value> = numbered().map(|(number, label)| (number.to_string(), json!(label))).collect();
        let numbers: Map<String, Value> = numbered().map(|(number, label)| (label.clone(), json!(number))).collect();
        config["architectures"] = json!(["BertForSequenceClassification"]);
        config["problem_type"] = json!(problem);
        config["id2label"] = Value::Object(names);
        config["label2id"] = Value::Object(numbers);
        // Without dropout at inference it makes no difference; trained on, it is that of the encoder.
        config["classifier_dropout"] = Value::Null;
    }
}
