//! Who waits for whom.

/// Children of every task.
pub fn children(parents: &[Vec<usize>]) -> Vec<Vec<u32>> {
    let mut children = vec![Vec::new(); parents.len()];
    for (task, parents) in parents.iter().enumerate() {
        for &parent in parents {
            children[parent].push(task as u32);
        }
    }
    children
}

/// Each cycle once, its first task repeated at the end; none if every task can start some day.
pub fn cycles(parents: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    let (mut is_done, mut is_on_path) = (vec![false; parents.len()], vec![false; parents.len()]);
    for start in 0..parents.len() {
        if is_done[start] {
            continue;
        }
        // Depth first without recursion: a chain of tasks may be long. Each step is a task and its next parent.
        let mut path = vec![(start, 0)];
        is_on_path[start] = true;
        while let Some((task, next)) = path.last_mut() {
            let parent = parents[*task].get(*next).copied();
            *next += 1;
            match parent {
                None => {
                    (is_done[*task], is_on_path[*task]) = (true, false);
                    path.pop();
                }
                Some(parent) if is_done[parent] => {}
                Some(parent) if is_on_path[parent] => {
                    let tasks = path.iter().map(|(task, _)| *task).skip_while(|&task| task != parent);
                    found.push(tasks.chain([parent]).collect());
                }
                Some(parent) => {
                    is_on_path[parent] = true;
                    path.push((parent, 0));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_found_behind_a_tail() {
        assert!(cycles(&[vec![], vec![0], vec![0, 1]]).is_empty());
        assert_eq!(cycles(&[vec![1], vec![2], vec![1]]), [[1, 2, 1]]);
        assert_eq!(cycles(&[vec![0]]), [[0, 0]]);
    }

    #[test]
    fn two_cycles_are_two() {
        assert_eq!(cycles(&[vec![1], vec![0, 2], vec![3], vec![2]]), [[0, 1, 0], [2, 3, 2]]);
    }

    #[test]
    fn a_long_chain_is_no_cycle() {
        let chain: Vec<Vec<usize>> = (0..200_000).map(|task| if task < 199_999 { vec![task + 1] } else { Vec::new() }).collect();
        assert!(cycles(&chain).is_empty());
    }
}
