//! `taskloom surgery`: JSON lines from stdin to stdout, or one large Jacobian from a safetensors file.

use std::fs::File;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::output;
use crate::surgery::large::{self, Problem};
use crate::surgery::request::MOST_ROWS;

#[derive(clap::Args)]
pub struct Args {
    /// File with the f32 tensor `jacobian` (T x P), and where a method needs them `losses` (T) and `jacobian2` (T x P)
    #[arg(long, requires_all = ["method", "out"])]
    pub jacobian: Option<PathBuf>,
    #[arg(long, requires = "jacobian")]
    pub method: Option<String>,
    /// A parameter of the method
    #[arg(long = "param", value_name = "NAME=VALUE", requires = "jacobian")]
    pub params: Vec<String>,
    /// Receives the tensors `update` (P) and `weights` (T)
    #[arg(long, requires = "jacobian")]
    pub out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    match (&args.jacobian, &args.method, &args.out) {
        (Some(jacobian), Some(method), Some(out)) => from_file(jacobian, method, &params(&args.params)?, out),
        _ => lines(std::io::stdin().lock(), |answer| output::line(answer)),
    }
}

/// Bytes of a request.
const MOST_BYTES: u64 = 64 << 20;

/// One answer a line; a bad request is answered too, and the next is read.
fn lines(mut input: impl BufRead, mut tell: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut line = Vec::new();
    while input.by_ref().take(MOST_BYTES).read_until(b'\n', &mut line).context("cannot read stdin")? > 0 {
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < MOST_BYTES;
        let request = std::mem::take(&mut line);
        if request.trim_ascii().is_empty() {
            continue;
        }
        let answer = match std::str::from_utf8(&request) {
            _ if !is_whole => {
                input.skip_until(b'\n').context("cannot read stdin")?;
                json!({ "error": format!("bad request: longer than {MOST_BYTES} bytes") }).to_string()
            }
            Ok(request) => crate::surgery::request::answer_line(request),
            Err(_) => json!({ "error": "bad request: not UTF-8" }).to_string(),
        };
        tell(&answer)?;
    }
    Ok(())
}

/// `K=V`, V as JSON or else as a plain string.
fn params(given: &[String]) -> Result<Map<String, Value>> {
    let mut params = Map::new();
    for text in given {
        let (name, value) = text.split_once('=').with_context(|| format!("--param {text}: expected NAME=VALUE"))?;
        params.insert(name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| json!(value)));
    }
    Ok(params)
}

fn from_file(path: &Path, method: &str, params: &Map<String, Value>, out: &Path) -> Result<()> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    // SAFETY: the file is only read, while this process waits for nothing else to change it.
    let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {shown}"))?;
    let tensors = SafeTensors::deserialize(&map).with_context(|| format!("{shown} is not a safetensors file"))?;
    let jacobian = tensors.tensor("jacobian").with_context(|| format!("{shown} has no tensor jacobian"))?;
    let rows = matrix(&jacobian, "jacobian")?;
    let second = tensors.tensor("jacobian2").ok();
    let second = second.as_ref().map(|tensor| matrix(tensor, "jacobian2")).transpose()?;
    let losses = tensors.tensor("losses").ok();
    let losses: Vec<f64> = match &losses {
        Some(tensor) => floats(tensor, "losses")?.iter().map(|&loss| f64::from(loss)).collect(),
        None => Vec::new(),
    };
    let problem = Problem { rows: &rows, second: second.as_deref(), losses: &losses };
    let solved = large::solve(method, params, &problem).map_err(|fault| anyhow!("{shown}: {fault}"))?;
    let update = TensorView::new(Dtype::F32, vec![solved.update.len()], bytemuck::cast_slice(&solved.update))?;
    let mut tensors = vec![("update", update)];
    if let Some(weights) = &solved.weights {
        tensors.push(("weights", TensorView::new(Dtype::F64, vec![weights.len()], bytemuck::cast_slice(weights))?));
    }
    safetensors::serialize_to_file(tensors, None, out).with_context(|| format!("cannot write {}", out.display()))?;
    output::line(solved.json(method))?;
    Ok(())
}

/// The rows of an f32 matrix, as they lie in the file.
fn matrix<'a>(tensor: &TensorView<'a>, name: &str) -> Result<Vec<&'a [f32]>> {
    let [rows, columns] = tensor.shape() else { bail!("{name} is {:?}, expected T x P", tensor.shape()) };
    ensure!(*rows > 0 && *columns > 0, "{name} is {rows} x {columns}");
    ensure!(*rows <= MOST_ROWS, "{name} has {rows} rows; at most {MOST_ROWS} are solved");
    Ok(floats(tensor, name)?.chunks_exact(*columns).collect())
}

fn floats<'a>(tensor: &TensorView<'a>, name: &str) -> Result<&'a [f32]> {
    ensure!(tensor.dtype() == Dtype::F32, "{name} is {:?}, expected F32", tensor.dtype());
    bytemuck::try_cast_slice(tensor.data()).map_err(|_| anyhow!("{name} does not start at a multiple of 4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_answered_and_empty_ones_are_skipped() {
        let input = b"{\"method\":\"sum\",\"jacobian\":[[1,2],[3,4]]}\n\nnonsense\n\xff\n{\"method\":\"sum\",\"jacobian\":[[1]]}";
        let mut answers: Vec<Value> = Vec::new();
        lines(&input[..], |answer| {
            answers.push(serde_json::from_str(answer).unwrap());
            Ok(())
        })
        .unwrap();
        assert_eq!(answers.len(), 4);
        assert_eq!(answers[0]["update"], json!([4.0, 6.0]));
        assert!(answers[1]["error"].is_string() && answers[2]["error"].is_string());
        assert_eq!(answers[3]["weights"], json!([1.0]));
    }

    #[test]
    fn a_line_without_end_is_refused_and_the_next_is_read() {
        let long = std::io::repeat(b'[').take(3 * MOST_BYTES).chain(&b"\n{\"method\":\"sum\",\"jacobian\":[[1]]}\n"[..]);
        let mut answers = Vec::new();
        lines(std::io::BufReader::new(long), |answer| {
            answers.push(answer.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(answers.len(), 2);
        assert!(answers[0].contains("longer than 67108864 bytes") && answers[1].contains("\"update\":[1.0]"), "{answers:?}");
    }

    #[test]
    fn parameters_are_json_or_text() {
        let found = params(&["c=0.5".into(), "rescale=1+c2".into()]).unwrap();
        assert_eq!(Value::Object(found), json!({"c": 0.5, "rescale": "1+c2"}));
        assert!(params(&["c".into()]).is_err());
    }

    #[test]
    fn a_file_is_answered_by_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("j.safetensors"), folder.path().join("d.safetensors"));
        let values = [-4.0f32, 1.0, 1.0, 6.0, 1.0, 1.0];
        let view = TensorView::new(Dtype::F32, vec![2, 3], bytemuck::cast_slice(&values)).unwrap();
        safetensors::serialize_to_file([("jacobian", view)], None, &path).unwrap();
        from_file(&path, "pcgrad", &Map::new(), &out).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let update: Vec<f32> = bytemuck::pod_collect_to_vec(tensors.tensor("update").unwrap().data());
        for (found, expected) in update.iter().zip([0.584_795f32, 3.801_17, 3.801_17]) {
            assert!((found - expected).abs() < 1e-5, "{update:?}");
        }
        assert!(from_file(&path, "pcgard", &Map::new(), &out).unwrap_err().to_string().contains("did you mean"));
    }
}
