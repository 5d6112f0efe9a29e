//! safetensors files, whole and hostile: the header is JSON that says where each tensor lies.

use serde_json::Value;

use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// The tensors of a whole file.
pub fn read(bytes: &[u8]) -> Vec<Tensor> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let entries = header.as_object().expect("an object").iter().filter(|(name, _)| *name != "__metadata__");
    let number = |value: &Value| value.as_u64().expect("a number") as usize;
    let mut found: Vec<(usize, Tensor)> = entries
        .map(|(name, entry)| {
            let shape = entry["shape"].as_array().expect("a list").iter().map(number).collect();
            let (start, end) = (number(&entry["data_offsets"][0]), number(&entry["data_offsets"][1]));
            let data = bytes[8 + length + start..8 + length + end].to_vec();
            (start, Tensor { name: name.clone(), dtype: entry["dtype"].as_str().expect("a type").to_owned(), shape, data })
        })
        .collect();
    found.sort_by_key(|(start, tensor)| (*start, tensor.name.clone()));
    found.into_iter().map(|(_, tensor)| tensor).collect()
}

pub fn write(tensors: &[Tensor]) -> Vec<u8> {
    put_together(&header(tensors).json(), tensors)
}

/// One thing is wrong at least, and the file is put together again around it.
pub fn hostile(random: &mut Random, mut tensors: Vec<Tensor>) -> Vec<u8> {
    match random.below(5) {
        // Tensors that are what they say, but not what the reader wants.
        0 if !tensors.is_empty() => {
            for _ in 0..=random.size(3) {
                spoil(random, &mut tensors);
            }
            write(&tensors)
        }
        1 => {
            let mut header = header(&tensors);
            tree::mutate(random, &mut header, &[]);
            put_together(&header.json(), &tensors)
        }
        2 => {
            let mut text = header(&tensors).json().into_bytes();
            mutate::bytes(random, &mut text);
            put_together(&String::from_utf8_lossy(&text), &tensors)
        }
        3 => {
            let at = random.below(tensors.len().max(1));
            if let Some(tensor) = tensors.get_mut(at) {
                mutate::bytes(random, &mut tensor.data);
            }
            write(&tensors)
        }
        _ => {
            let mut bytes = write(&tensors);
            mutate::bytes(random, &mut bytes);
            bytes
        }
    }
}

fn spoil(random: &mut Random, tensors: &mut Vec<Tensor>) {
    if tensors.is_empty() {
        return;
    }
    let at = random.below(tensors.len());
    let tensor = &mut tensors[at];
    match random.below(8) {
        0 => drop(tensors.remove(at)),
        1 => tensor.name = random.pick(&["", "a", "embeddings.rows", "pooler.dense.bias"]).to_owned(),
        // Another type of the same width, or none.
        2 => tensor.dtype = random.pick(&["I32", "U32", "F32", "BF16", "F64", "BOOL", "F8_E4M3", "F4", "X"]).to_owned(),
        3 => tensor.shape.reverse(),
        4 => {
            tensor.shape = vec![];
            tensor.data.resize(4, 0);
        }
        5 => {
            tensor.shape.insert(0, 0);
            tensor.data.clear();
        }
        6 => {
            // Rows more or fewer.
            let row = tensor.data.len() / tensor.shape.first().copied().unwrap_or(1).max(1);
            let rows = random.size(tensor.shape.first().copied().unwrap_or(1) * 2 + 4).min(mutate::MOST_BYTES / 8 / row.max(1));
            if let Some(first) = tensor.shape.first_mut() {
                *first = rows;
                let filler = random.next() as u8;
                tensor.data.resize(rows * row, filler);
            }
        }
        _ => {
            let bits: [u32; 8] = [0, 1, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x7f7f_ffff, u32::MAX, 1 << 31];
            let value = bits[random.below(bits.len())].to_le_bytes();
            let numbers = tensor.data.len() / 4;
            let from = random.below(numbers);
            let count = 1 + random.size(numbers);
            tensor.data.chunks_exact_mut(4).skip(from).take(count).for_each(|number| number.copy_from_slice(&value));
        }
    }
}

fn header(tensors: &[Tensor]) -> Tree {
    let literal = |number: usize| Tree::Literal(number.to_string());
    let mut start = 0;
    let entry = |tensor: &Tensor| {
        let end = start + tensor.data.len();
        let offsets = Tree::List(vec![literal(start), literal(end)]);
        start = end;
        let fields = [
            ("dtype".to_owned(), Tree::Text(tensor.dtype.clone())),
            ("shape".to_owned(), Tree::List(tensor.shape.iter().copied().map(literal).collect())),
            ("data_offsets".to_owned(), offsets),
        ];
        (tensor.name.clone(), Tree::Table(fields.to_vec()))
    };
    Tree::Table(tensors.iter().map(entry).collect())
}

fn put_together(header: &str, tensors: &[Tensor]) -> Vec<u8> {
    // As the format asks for: the tensors start at a multiple of eight.
    let header = format!("{header}{}", " ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    tensors.iter().for_each(|tensor| bytes.extend_from_slice(&tensor.data));
    bytes
}
