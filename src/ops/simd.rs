//! Vector loops written once, compiled twice on x86: as they stand and for AVX2 with FMA, chosen at run time.
//!
//! The loops live in `#[multiversion]` functions; what those call is `#[inline(always)]`, so it is compiled along. Accumulators are arrays of [`LANES`] values in the source, so the order of additions is the same at every vector width.

/// Independent partial sums of a reduction.
pub const LANES: usize = 16;

/// Sum of the lanes, in f64.
#[inline(always)]
pub fn reduce(lanes: &[f32; LANES]) -> f64 {
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}

/// Dot product of two vectors of equal length, in f32 lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_tail, b_tail) = (a_chunks.remainder(), b_chunks.remainder());
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = x[lane].mul_add(y[lane], lanes[lane]);
        }
    }
    for (lane, (x, y)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[lane] = x.mul_add(*y, lanes[lane]);
    }
    reduce(&lanes) as f32
}

/// out += factor * x.
#[inline(always)]
pub fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (o, &value) in out.iter_mut().zip(x) {
        *o = factor.mul_add(value, *o);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_covers_the_tail() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        let expected: f32 = a.iter().map(|x| x * x).sum();
        assert_eq!(dot(&a, &a), expected);
    }

    #[test]
    fn add_scaled_adds() {
        let mut out = vec![1.0; 5];
        add_scaled(&mut out, 2.0, &[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(out, [3.0, 5.0, 7.0, 9.0, 11.0]);
    }
}
