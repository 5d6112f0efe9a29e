//! The same lists on the host: what the kernels are held against.

use super::super::embedding_bag::UNTOUCHED;
use super::super::philox::{Keyed, Stream, drop_threshold};
use super::{Count, FetchBags, FetchTokens, IndexRows, RowLists, SlotsAt, TokensAt};
use crate::machine::host::HostMemory;

pub fn fetch(op: &FetchBags, memory: &HostMemory) {
    let RowLists { counts, offsets, rows, scales, items: [items, _], .. } = op.lists;
    let (data, bounds): (&[u32], &[u32]) = (memory.read(op.data.rows), memory.read(op.data.offsets));
    let (offsets, rows, scales) = (memory.write::<u32>(offsets), memory.write::<u32>(rows), memory.write::<f32>(scales));
    let (items, mut at) = (memory.write::<u32>(items), 0);
    for (number, &example) in op.examples.iter().enumerate() {
        let part = op.parts[op.parts.partition_point(|part| part.start as usize <= number) - 1];
        let own = (part.first + example) as usize;
        let all = &data[bounds[own] as usize..bounds[own + 1] as usize];
        offsets[number] = at as u32;
        let mut scale = 1.0 / (all.len().max(1) as f64).sqrt();
        let mut kept = all.to_vec();
        if let Some(dropout) = op.dropout.filter(|dropout| dropout.probability > 0.0) {
            let random = Keyed::new(dropout.random.seed, Stream::WordDropout, dropout.random.round, part.task, example);
            let threshold = drop_threshold(dropout.probability);
            kept = (0..).zip(all).filter(|(word, _)| random.word(*word) >= threshold).map(|(_, row)| *row).collect();
            scale /= 1.0 - dropout.probability;
        }
        scales[number] = scale as f32;
        for row in kept {
            rows[at] = row;
            items[2 * at..][..2].copy_from_slice(&[number as u32, part.row << op.bits.bits | row]);
            at += 1;
        }
    }
    offsets[op.examples.len()] = at as u32;
    memory.write::<u32>(counts)[Count::Entries as usize] = at as u32;
}

pub fn fetch_tokens(op: &FetchTokens, memory: &HostMemory) {
    let list = |tensor| memory.write::<u32>(tensor);
    let data = [op.data.ids, op.data.offsets, op.data.seconds].map(|tensor| memory.read::<u32>(tensor));
    let TokensAt { ids, positions, types, keys, .. } = op.to;
    let (ids, positions, types, keys) = (list(ids), list(positions), list(types), list(keys));
    let (items, mut entries) = (list(op.lists.items[0]), 0);
    for (row, (&example, bounds)) in op.examples.iter().zip(op.bounds.windows(2)).enumerate() {
        let part = op.parts[op.parts.partition_point(|part| part.start as usize <= row) - 1];
        let at = (part.first + example) as usize;
        let own = &data[0][data[1][at] as usize..data[1][at + 1] as usize];
        for token in bounds[0] as usize..bounds[1] as usize {
            let position = token - bounds[0] as usize;
            let Some(&id) = own.get(position) else {
                (ids[token], positions[token], types[token]) = (0, 0, 0);
                keys[3 * token..][..3].fill(0);
                continue;
            };
            (ids[token], positions[token], types[token]) = (id, position as u32, u32::from(position as u32 >= data[2][at]));
            keys[3 * token..][..3].copy_from_slice(&[part.task, example, position as u32]);
            items[2 * entries..][..2].copy_from_slice(&[token as u32, part.row << op.bits.bits | id]);
            entries += 1;
        }
    }
    list(op.lists.counts)[Count::Entries as usize] = entries as u32;
}

pub fn index(op: &IndexRows, memory: &HostMemory) {
    let list = |tensor| memory.write::<u32>(tensor);
    let RowLists { counts, items: [items, _], sources, starts, tasks, .. } = op.lists;
    let RowLists { union_rows, union_starts, members, union_slots, .. } = op.lists;
    let counts = list(counts);
    let entries = counts[Count::Entries as usize] as usize;
    let mut sorted: Vec<[u32; 2]> = list(items).chunks_exact(2).take(entries).map(|item| [item[1], item[0]]).collect();
    sorted.sort_by_key(|[key, _]| *key);
    let (sources, starts, tasks) = (list(sources), list(starts), list(tasks));
    let mut gradients: Vec<[u32; 2]> = Vec::new();
    for (at, &[key, example]) in sorted.iter().enumerate() {
        sources[at] = example;
        if at == 0 || sorted[at - 1][0] != key {
            starts[gradients.len()] = at as u32;
            tasks[gradients.len()] = key >> op.bits.bits;
            gradients.push([key & ((1 << op.bits.bits) - 1), gradients.len() as u32]);
        }
    }
    starts[gradients.len()] = entries as u32;
    gradients.sort_by_key(|[row, _]| *row);
    let SlotsAt { slots, touched, values, init } = op.table;
    let (slots, touched, dim) = (list(slots), list(touched), values.columns);
    let (union, bounds, members, places) = (list(union_rows), list(union_starts), list(members), list(union_slots));
    let before = counts[Count::Touched as usize];
    let (mut united, mut next) = (0, before);
    for (at, &[row, gradient]) in gradients.iter().enumerate() {
        members[2 * at..][..2].copy_from_slice(&[tasks[gradient as usize], gradient]);
        if at > 0 && gradients[at - 1][0] == row {
            continue;
        }
        if slots[row as usize] == UNTOUCHED {
            (slots[row as usize], touched[next as usize]) = (next, row);
            init.fill(row, &mut memory.write::<f32>(values)[next as usize * dim..][..dim]);
            next += 1;
        }
        (union[united], bounds[united], places[united]) = (row, at as u32, slots[row as usize]);
        united += 1;
    }
    bounds[united] = gradients.len() as u32;
    let found = [(Count::GradientRows, gradients.len()), (Count::UnionRows, united)];
    found.into_iter().for_each(|(which, count)| counts[which as usize] = count as u32);
    (counts[Count::Touched as usize], counts[Count::TouchedBefore as usize]) = (next, before);
}
