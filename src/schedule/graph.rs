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

/// A cycle, its first task repeated at the end; none if every task can start some day (Kahn, CACM 1962).
pub fn cycle(parents: &[Vec<usize>]) -> Option<Vec<usize>> {
    let children = children(parents);
    let mut waiting: Vec<usize> = parents.iter().map(Vec::len).collect();
    let mut free: Vec<usize> = (0..parents.len()).filter(|&task| waiting[task] == 0).collect();
    while let Some(task) = free.pop() {
        for &child in &children[task] {
            waiting[child as usize] -= 1;
            if waiting[child as usize] == 0 {
                free.push(child as usize);
            }
        }
    }
    // Whoever still waits has a parent that waits: going up must come back to a task seen before.
    let mut path = vec![(0..parents.len()).find(|&task| waiting[task] > 0)?];
    loop {
        let task = path[path.len() - 1];
        let parent = parents[task].iter().copied().find(|&parent| waiting[parent] > 0)?;
        if let Some(start) = path.iter().position(|&seen| seen == parent) {
            path.drain(..start);
            path.push(parent);
            return Some(path);
        }
        path.push(parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_found_behind_a_tail() {
        assert_eq!(cycle(&[vec![], vec![0], vec![0, 1]]), None);
        assert_eq!(cycle(&[vec![1], vec![2], vec![1]]), Some(vec![1, 2, 1]));
        assert_eq!(cycle(&[vec![0]]), Some(vec![0, 0]));
    }
}
