//! What memory alone costs: passes that read, or read and write, and do next to nothing else. The floor of benchmarks.

use multiversion::multiversion;
use rayon::prelude::*;

/// Values a job goes through at a time.
const CHUNK: usize = 1 << 16;

/// Reads everything once; the sum keeps the compiler from leaving it out.
pub fn read(values: &[f32]) -> f32 {
    values.par_chunks(CHUNK).map(read_chunk).sum()
}

/// Reads and writes everything once.
pub fn rewrite(values: &mut [f32]) {
    values.par_chunks_mut(CHUNK).for_each(rewrite_chunk);
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn read_chunk(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 64];
    for part in values.chunks_exact(64) {
        for lane in 0..64 {
            lanes[lane] += part[lane];
        }
    }
    lanes.iter().sum()
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn rewrite_chunk(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = value.mul_add(0.999, 1e-6));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_passed() {
        let mut values = vec![1.0f32; 2 * CHUNK];
        assert_eq!(read(&values), (2 * CHUNK) as f32);
        rewrite(&mut values);
        assert!(values.iter().all(|&value| value < 1.0));
    }
}
