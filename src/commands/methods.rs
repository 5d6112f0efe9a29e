//! `taskloom methods`: every surgery method and loss balancer, from their own descriptors.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};

use crate::output;
use crate::surgery::balance::registry::DESCRIPTORS as BALANCERS;
use crate::surgery::methods::Needs;
use crate::surgery::methods::params::{Kind, Param};
use crate::surgery::methods::registry::DESCRIPTORS as METHODS;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The page docs/methods.md
    #[arg(long)]
    markdown: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.json {
        output::line(document())
    } else if args.markdown {
        output::text(page())
    } else {
        output::text(text())
    }
}

/// What a method needs, in words.
fn needs(needs: Needs) -> Vec<&'static str> {
    let named = [
        (needs.gram, "gram"),
        (needs.losses, "losses"),
        (needs.second_batch, "second batch"),
        (needs.elementwise, "elementwise"),
        (needs.row_state, "T x P state"),
    ];
    named.into_iter().filter_map(|(needed, name)| needed.then_some(name)).collect()
}

fn document() -> Value {
    let surgery = METHODS.iter().map(|method| {
        json!({
            "name": method.name,
            "formula": method.formula,
            "needs": needs(method.needs),
            "averages": method.averages,
            "solved_on_device": method.is_solved_on_device(),
            "params": params(method.params),
            "reference": method.reference,
        })
    });
    let balance = BALANCERS.iter().map(|balancer| {
        json!({
            "name": balancer.name,
            "formula": balancer.formula,
            "params": params(balancer.params),
            "reference": balancer.reference,
        })
    });
    json!({ "surgery": surgery.collect::<Vec<_>>(), "balance": balance.collect::<Vec<_>>() })
}

fn params(params: &[Param]) -> Vec<Value> {
    let default = |param: &Param| match param.kind {
        Kind::Number { default, .. } => json!(default),
        Kind::Count { default, .. } => json!(default),
        Kind::Choice { default, .. } => json!(default),
    };
    let one =
        |param: &Param| json!({ "name": param.name, "default": default(param), "range": param.range_text(), "doc": param.doc });
    params.iter().map(one).collect()
}

fn text() -> String {
    let mut text = String::from("Surgery: d = sum_i w_i g_i from the tasks' gradients g_i, G = J J'\n");
    for method in METHODS {
        entry(&mut text, method.name, method.formula, &needs(method.needs), method.params, method.reference);
    }
    text += "\nBalancers: the loss of task t is scaled by c_t before surgery\n";
    for balancer in BALANCERS {
        entry(&mut text, balancer.name, balancer.formula, &["losses"], balancer.params, balancer.reference);
    }
    text
}

fn entry(text: &mut String, name: &str, formula: &str, needs: &[&str], params: &[Param], reference: &str) {
    let needs = if needs.is_empty() { String::new() } else { format!("  [{}]", needs.join(", ")) };
    *text += &format!("\n{name}{needs}\n    {formula}\n");
    for param in params {
        let (default, range) = (param.default_text(), param.range_text());
        let _ = writeln!(text, "    {} = {default}  {}; {range}", param.name, param.doc);
    }
    *text += &format!("    {reference}\n");
}

/// `docs/methods.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# Methods\n\nWritten by `taskloom methods --markdown`; do not edit.\n\n## Surgery\n\n\
         `[surgery] method = NAME`. A method sees the Gram matrix G = J J' of the T tasks' gradients g_i (and what it needs\n\
         beside it) and gives weights w; the update is d = sum_i w_i g_i. Its parameters are keys of `[surgery]`. A method\n\
         that averages gives an update on the scale of one gradient, any other one on that of their sum: `scale = \"sum\"`\n\
         multiplies the former by T, `scale = \"mean\"` divides the latter by T. What is solved on the device needs no wait for\n\
         the host between gradients and step there, under the `equal` balancer.\n",
    );
    for method in METHODS {
        let mut facts = vec![match needs(method.needs) {
            none if none.is_empty() => "needs no gradients of its own".to_owned(),
            needs => format!("needs: {}", needs.join(", ")),
        }];
        facts.extend(method.averages.then(|| "averages".to_owned()));
        facts.extend(method.is_solved_on_device().then(|| "solved on the device".to_owned()));
        section(&mut page, method.name, method.formula, &facts.join("; "), method.params, method.reference);
    }
    page += "\n## Loss balancers\n\n`[balance] method = NAME`. A balancer scales the loss of task t by c_t before surgery, on \
             top of the task's own\n`weight`. Its parameters are keys of `[balance]`.\n";
    for balancer in BALANCERS {
        section(&mut page, balancer.name, balancer.formula, "needs: losses", balancer.params, balancer.reference);
    }
    page
}

fn section(page: &mut String, name: &str, formula: &str, facts: &str, params: &[Param], reference: &str) {
    *page += &format!("\n### `{name}`\n\n    {formula}\n\n{reference}. {}.\n", capitalized(facts));
    if params.is_empty() {
        return;
    }
    *page += "\n| parameter | default | value | |\n| --- | --- | --- | --- |\n";
    for param in params {
        let (default, range) = (param.default_text(), param.range_text());
        let _ = writeln!(page, "| `{}` | `{default}` | {range} | {} |", param.name, param.doc.replace('|', "\\|"));
    }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/methods.md");
        let stored = std::fs::read_to_string(path).expect("docs/methods.md");
        assert!(stored == page(), "run: taskloom methods --markdown > docs/methods.md");
    }

    #[test]
    fn the_document_lists_everything() {
        let document = document();
        assert_eq!(document["surgery"].as_array().map(Vec::len), Some(METHODS.len()));
        assert_eq!(document["balance"].as_array().map(Vec::len), Some(BALANCERS.len()));
        assert_eq!(document["surgery"][2]["params"][0]["default"], "random");
    }
}
