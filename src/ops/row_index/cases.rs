//! Lists of a batch's rows on devices against the host.

use super::*;
use crate::ops::embedding_bag::UNTOUCHED;
use crate::ops::testing::{Found, On, Place, on_devices};

const DIM: usize = 37;

/// Numbers that look drawn.
fn drawn(count: usize, below: u32) -> Vec<u32> {
    (0..count as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 7) % below).collect()
}

/// Data of examples with at most these counts of n-grams of a table of so many rows, which ascend; bounds of all.
fn data(table: usize, counts: &[usize]) -> (Vec<u32>, Vec<u32>) {
    let (mut rows, mut offsets) = (Vec::new(), vec![0]);
    for (example, &count) in counts.iter().enumerate() {
        let mut own = drawn(4 * count, table as u32).split_off(3 * example % (3 * count).max(1));
        own.sort_unstable();
        own.dedup();
        own.truncate(count);
        rows.extend(own);
        offsets.push(rows.len() as u32);
    }
    (rows, offsets)
}

/// Two tasks of five and three examples; the second is in two parts that another of the first lies between.
fn batch(place: &mut Place, rows: usize, counts: &[usize], probability: f64) -> Vec<Found> {
    let table_rows = rows;
    let (rows, offsets) = data(table_rows, counts);
    let examples = [4, 0, 2, 2, 1, 3, 1];
    let part = |start, row, task, first| FetchPart { start, row, task, first, padding: 0 };
    let parts = [part(0, 0, 0, 0), part(3, 1, 2, 5), part(4, 0, 0, 0), part(6, 1, 2, 5)];
    let most = MostRows { examples: examples.len(), entries: 9000, gradient_rows: 2 * table_rows, union_rows: table_rows };
    let room = |_: &str, rows: usize, columns: usize, dtype| Ok::<_, ()>(place.room(rows, columns, dtype));
    let lists = RowLists::new(most, room).expect("room");
    // Two rows have a slot; what was found in an earlier batch is still there.
    let mut slots = vec![UNTOUCHED; table_rows];
    (slots[7], slots[rows[0] as usize]) = (0, 1);
    let values = place.f32(&vec![9.0; table_rows * DIM], DIM);
    let table = SlotsAt {
        slots: place.words(&slots),
        touched: place.words(&vec![5; table_rows]),
        values,
        init: RowInit { seed: 77, deviation: 0.5 },
    };
    let lists = RowLists { counts: place.words(&[3, 3, 3, 2, 1]), ..lists };
    let data = BagData { rows: place.words(&rows), offsets: place.words(&offsets) };
    let bits = KeyBits::of(table_rows, 2).expect("small numbers");
    let random = Randomness { seed: 3, round: 8 };
    let dropout = Some(WordDropout { random, probability });
    place.run(&FetchBags { lists, data, examples: &examples, parts: &parts, bits, dropout });
    place.run(&IndexRows { lists, table, bits });
    place.run(&LookUpSlots { lists, slots: table.slots });
    let counts = place.found("counts", lists.counts);
    let [entries, gradients, union] = [0, 1, 2].map(|at| counts.values[at] as usize);
    vec![
        counts,
        place.found("bounds", lists.offsets),
        place.found("n-grams' slots", lists.rows.range(0..entries)),
        place.found("scales", lists.scales),
        place.found("sources", lists.sources.range(0..entries)),
        place.found("bounds of rows", lists.starts.range(0..gradients + 1)),
        place.found("united rows", lists.union_rows.range(0..union)),
        place.found("bounds of united rows", lists.union_starts.range(0..union + 1)),
        place.found("members", lists.members.rows(0..gradients)),
        place.found("slots of united rows", lists.union_slots.range(0..union)),
        place.found("the table's slots", table.slots),
        place.found("touched", table.touched),
        place.found("values", values),
    ]
}

fn rows_of_a_batch(on: On) {
    for probability in [0.0, 0.5] {
        on.compare(|place| batch(place, 300, &[3, 0, 50, 1, 20, 7, 40, 2], probability));
    }
}

/// More items than a tile has.
fn rows_of_several_tiles(on: On) {
    on.compare(|place| batch(place, 3000, &[1300, 1250, 1200, 1260, 1240, 1210, 1255, 1190], 0.1));
}

fn a_batch_without_rows(on: On) {
    on.compare(|place| batch(place, 300, &[1, 0, 0, 0, 0, 0, 0, 0], 0.0));
}

/// Sequences of two tasks in two groups, each with tokens that pad it; one example comes twice.
fn tokens_of_a_batch(on: On) {
    let lengths = [5usize, 2, 70, 9, 3, 33];
    let seconds = [5, 2, 30, 4, 3, 1];
    let table_rows = 40;
    let (mut offsets, examples) = (vec![0u32], [2, 0, 2, 1, 1]);
    offsets.extend(lengths.iter().scan(0, |end, &length| {
        *end += length as u32;
        Some(*end)
    }));
    let ids = drawn(*offsets.last().expect("an end") as usize, table_rows);
    // The second task's examples begin with the fourth; its padding is 7 tokens behind the first group, and 1 behind the last.
    let part = |start, row, task, first, padding| FetchPart { start, row, task, first, padding };
    let parts = [part(0, 0, 0, 0, 0), part(2, 1, 4, 3, 0), part(3, 0, 0, 0, 7), part(4, 1, 4, 3, 7)];
    let bounds = [0, 70, 75, 75 + 33 + 7, 117, 121];
    let entries = 70 + 5 + 33 + 2 + 3;
    on.compare(|place: &mut Place| {
        let most = MostRows { examples: 0, entries: 200, gradient_rows: 80, union_rows: 40 };
        let room = |_: &str, rows: usize, columns: usize, dtype| Ok::<_, ()>(place.room(rows, columns, dtype));
        let lists = RowLists::new(most, room).expect("room");
        let lists = RowLists { counts: place.words(&[3, 3, 3, 0, 0]), ..lists };
        let [own, types, positions] = [0; 3].map(|_| place.words(&[9; 130]));
        let keys = place.words(&[9; 390]);
        let to = TokensAt { ids: own, positions, types, keys: keys.as_rows(130, 3), slots: Tensor::NONE };
        let data = TokenData { ids: place.words(&ids), offsets: place.words(&offsets), seconds: place.words(&seconds) };
        let bits = KeyBits::of(table_rows as usize, 2).expect("small numbers");
        place.run(&FetchTokens { to, lists, data, examples: &examples, bounds: &bounds, parts: &parts, entries, bits });
        let values = place.f32(&vec![9.0; 40 * DIM], DIM);
        let table = SlotsAt {
            slots: place.words(&[UNTOUCHED; 40]),
            touched: place.words(&[5; 40]),
            values,
            init: RowInit { seed: 77, deviation: 0.5 },
        };
        place.run(&IndexRows { lists, table, bits });
        let counts = place.found("counts", lists.counts);
        assert_eq!(counts.values[0], entries as f64);
        vec![
            counts,
            place.found("ids", own),
            place.found("positions", positions),
            place.found("types", types),
            place.found("keys", keys),
            place.found("sources", lists.sources.range(0..entries)),
            place.found("the table's slots", table.slots),
        ]
    });
}

#[test]
fn keys_have_room_or_not() {
    assert_eq!(KeyBits::of(1 << 20, 16), Some(KeyBits { bits: 20, task_bits: 4 }));
    assert_eq!(KeyBits::of((1 << 20) + 1, 17), Some(KeyBits { bits: 21, task_bits: 5 }));
    assert_eq!(KeyBits::of(1, 1), Some(KeyBits { bits: 1, task_bits: 0 }));
    assert_eq!(KeyBits::of(1 << 28, 17), None);
    assert_eq!(KeyBits::of(1 << 32, 1), None);
}

on_devices! { rows_of_a_batch, rows_of_several_tiles, a_batch_without_rows, tokens_of_a_batch }
