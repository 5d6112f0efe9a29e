//! The numbers of a line of metrics.jsonl that other programs draw over the rounds, each with a tag.

use serde_json::Value;

/// Tags and values of a line; what is not finite has none.
pub fn scalars(line: &Value) -> Vec<(String, f64)> {
    match line["kind"].as_str() {
        Some("round") => {
            let own = ["lr", "norm", "ms"].map(|name| (format!("train/{name}"), &line[name]));
            let losses = by_task("loss", "", &line["losses"]);
            let weights = by_task("weight", "", &line["weights"]);
            let blocks = line["block_weights"].as_object().into_iter().flatten();
            let blocks = blocks.flat_map(|(block, weights)| by_task("weight", &format!("/{block}"), weights));
            let all = own.into_iter().chain(losses).chain(weights).chain(blocks);
            all.filter_map(|(tag, value)| Some((tag, value.as_f64()?))).collect()
        }
        Some("conflict") => line["share"].as_f64().map(|share| ("conflict/share".to_owned(), share)).into_iter().collect(),
        Some("eval") => evaluation_scalars("", line),
        Some("end") => {
            let scores = line["scores"].as_object().into_iter().flatten();
            scores.flat_map(|(_, scores)| evaluation_scalars("final_", scores)).collect()
        }
        _ => Vec::new(),
    }
}

fn by_task<'a>(group: &'a str, part: &str, values: &'a Value) -> Vec<(String, &'a Value)> {
    let values = values.as_object().into_iter().flatten();
    values.map(|(task, value)| (format!("{group}/{task}{part}"), value)).collect()
}

/// `{prefix}{split}/{task}/{metric}`, and `{prefix}{split}/{task}/{output}/{metric}` of a task with several outputs.
fn evaluation_scalars(prefix: &str, scores: &Value) -> Vec<(String, f64)> {
    let split = scores["split"].as_str().unwrap_or("eval");
    let split = format!("{prefix}{split}");
    let mut scalars = Vec::new();
    if let Some(mean) = scores["mean_primary"].as_f64() {
        scalars.push((format!("{split}/mean_primary"), mean));
    }
    for (task, values) in scores["tasks"].as_object().into_iter().flatten() {
        scalars.extend(numbers(&format!("{split}/{task}"), values));
        for (output, values) in values["outputs"].as_object().into_iter().flatten() {
            scalars.extend(numbers(&format!("{split}/{task}/{output}"), values));
        }
    }
    scalars
}

fn numbers(place: &str, values: &Value) -> Vec<(String, f64)> {
    let values = values.as_object().into_iter().flatten().filter(|(name, _)| *name != "examples");
    values.filter_map(|(name, value)| Some((format!("{place}/{name}"), value.as_f64()?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scores_have_a_tag_each() {
        let scores = json!({ "split": "dev", "mean_primary": 0.5, "tasks": { "a": {
            "r2": 0.5, "mse": null, "examples": 9, "outputs": { "y1": { "r2": 0.25 } } } } });
        let tags =
            [("dev/mean_primary", 0.5), ("dev/a/r2", 0.5), ("dev/a/y1/r2", 0.25)].map(|(tag, value)| (tag.to_owned(), value));
        assert_eq!(evaluation_scalars("", &scores), tags);
        let end = json!({ "kind": "end", "scores": { "dev": scores } });
        assert_eq!(scalars(&end), tags.map(|(tag, value)| (format!("final_{tag}"), value)));
    }
}
