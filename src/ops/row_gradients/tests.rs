//! Gradients of embedding rows on the host.

use super::*;

/// Task 0 touches rows 1, 4; task 1 touches rows 4, 9.
pub fn two_tasks() -> (Vec<RowGradient>, Union) {
    let mut memory = Memory::unlimited();
    let mut gradients: Vec<RowGradient> = (0..2).map(|_| RowGradient::new(&mut memory, "rows", 2, 4).unwrap()).collect();
    let bags = Bags { offsets: vec![0, 2, 3], rows: vec![1, 4, 4], scales: vec![1.0, 2.0] };
    gradients[0].backward(&[1.0, 2.0, 3.0, 4.0], &bags, 0..2);
    let bags = Bags { offsets: vec![0, 2], rows: vec![4, 9], scales: vec![0.5] };
    gradients[1].backward(&[2.0, -2.0], &bags, 0..1);
    let mut union = Union::default();
    union.merge(&[&gradients[0].index.rows, &gradients[1].index.rows]);
    (gradients, union)
}

#[test]
fn backward_adds_the_examples_of_a_row() {
    let (gradients, _) = two_tasks();
    assert_eq!(gradients[0].index.rows, [1, 4]);
    assert_eq!(gradients[0].used(), [1.0, 2.0, 7.0, 10.0]);
    assert_eq!(gradients[1].used(), [1.0, -1.0, 1.0, -1.0]);
}

#[test]
fn a_whole_gradient_gains_the_touched_rows() {
    let mut gradient = RowGradient::new(&mut Memory::unlimited(), "rows", 2, 3).unwrap();
    gradient.whole(3).copy_from_slice(&[1.0; 6]);
    let bags = Bags { offsets: vec![0, 1, 2], rows: vec![2, 2], scales: vec![1.0, 2.0] };
    gradient.backward_onto_whole(&[1.0, 2.0, 3.0, 4.0], &bags, 0..2);
    assert_eq!(gradient.index.rows, [0, 1, 2]);
    assert_eq!(gradient.values[..6], [1.0, 1.0, 1.0, 1.0, 8.0, 11.0]);
}

#[test]
fn gram_takes_the_intersection() {
    let (gradients, union) = two_tasks();
    assert_eq!(union.rows, [1, 4, 9]);
    let mut gram = vec![0.0; 4];
    row_gram(&mut gram, &union, &RowValues { tasks: gradients.iter().map(RowGradient::used).collect(), dim: 2 });
    assert_eq!(gram, [154.0, -3.0, -3.0, 4.0]);
}

#[test]
fn a_covered_union_has_every_row() {
    let (_, union) = two_tasks();
    let (_, mut all) = two_tasks();
    all.cover(11);
    assert_eq!(all.rows, (0..11).collect::<Vec<u32>>());
    for (index, &row) in union.rows.iter().enumerate() {
        assert_eq!(all.members(row as usize), union.members(index));
    }
    assert!([0, 2, 3, 5, 10].iter().all(|&row| all.members(row).is_empty()));
}

#[test]
fn a_union_of_many_rows_is_that_of_its_pieces() {
    let own = |task: u32| (0..9000u32).filter(|row| (row * (task + 3)) % 7 < 4).collect::<Vec<u32>>();
    let (rows, none): (Vec<_>, Vec<u32>) = ((0..3).map(own).collect(), Vec::new());
    let mut union = Union::default();
    union.merge(&[&rows[0], &none, &rows[1], &rows[2]]);
    let mut expected = std::collections::BTreeMap::<u32, Vec<(u32, u32)>>::new();
    for (task, rows) in [(0, &rows[0]), (2, &rows[1]), (3, &rows[2])] {
        rows.iter().zip(0..).for_each(|(&row, at)| expected.entry(row).or_default().push((task, at)));
    }
    assert!(union.rows.len() > 3 * PIECE_ROWS && union.rows.iter().eq(expected.keys()));
    assert!(expected.values().enumerate().all(|(index, members)| union.members(index) == members));
    union.merge(&[&none, &none]);
    assert!(union.rows.is_empty());
}

#[test]
fn there_is_room_for_the_partial_products_of_fewer_rows_and_tasks() {
    for (rows, tasks) in [(1, 1), (14_500, 8), (4_000, 28), (4_000, 79), (100_000, 512)] {
        let room = most_gram_partials(rows, tasks) * tasks * tasks;
        for (rows, tasks) in [(rows, tasks), (rows / 2, tasks), (rows, tasks.min(27)), (rows, tasks.min(78)), (rows, 1)] {
            assert!(gram_partials(rows, tasks) * tasks * tasks <= room, "{rows} rows of {tasks} tasks");
        }
    }
    assert_eq!(
        [gram_partials(0, 8), gram_partials(9, 8), gram_partials(14_500, 8), gram_partials(100_000, 8)],
        [0, 2, 512, 1563]
    );
}
