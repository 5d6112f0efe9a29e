//! A curve of bounded size: however many values come, neighbours are averaged so that few points stay.

/// Most points of a curve; a chart is hardly more pixels wide.
const MOST: usize = 240;

/// Means over equally many values in a row.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Values that a whole point stands for; a power of two.
    stride: u64,
    points: Vec<Point>,
}

/// Sums over so many values.
#[derive(Clone, Copy, Debug)]
struct Point {
    x: f64,
    y: f64,
    count: u64,
}

impl Default for Curve {
    fn default() -> Self {
        Self { stride: 1, points: Vec::new() }
    }
}

impl Curve {
    /// Adds a value; one that is not finite is left out.
    pub fn add(&mut self, x: f64, y: f64) {
        if !y.is_finite() {
            return;
        }
        match self.points.last_mut().filter(|last| last.count < self.stride) {
            Some(last) => *last = Point { x: last.x + x, y: last.y + y, count: last.count + 1 },
            None => self.points.push(Point { x, y, count: 1 }),
        }
        if self.points.len() > MOST {
            self.halve();
        }
    }

    fn halve(&mut self) {
        let merged = self.points.chunks(2).map(|pair| {
            let sum = |of: fn(&Point) -> f64| pair.iter().map(of).sum();
            Point { x: sum(|point| point.x), y: sum(|point| point.y), count: pair.iter().map(|point| point.count).sum() }
        });
        self.points = merged.collect();
        self.stride *= 2;
    }

    /// Without a last point that has hardly begun: it would scatter more than the others.
    pub fn points(&self) -> Vec<(f64, f64)> {
        let has_begun = |point: &&Point| 2 * point.count >= self.stride;
        self.points.iter().filter(has_begun).map(|point| (point.x / point.count as f64, point.y / point.count as f64)).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Values that a point is the mean of.
    pub fn stride(&self) -> u64 {
        self.stride
    }

    /// Mean of all values, if there are some.
    pub fn mean(&self) -> Option<f64> {
        let (sum, count) = self.points.iter().fold((0.0, 0), |(sum, count), point| (sum + point.y, count + point.count));
        (count > 0).then(|| sum / count as f64)
    }
}

/// At most `2 * most` of many things, evenly spread and always with the last one.
#[derive(Clone, Debug)]
pub struct Thinned<T> {
    most: usize,
    stride: u64,
    seen: u64,
    kept: Vec<T>,
    last: Option<T>,
}

impl<T> Thinned<T> {
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), stride: 1, seen: 0, kept: Vec::new(), last: None }
    }

    pub fn add(&mut self, thing: T) {
        if self.seen.is_multiple_of(self.stride) {
            self.last = None;
            self.kept.push(thing);
        } else {
            self.last = Some(thing);
        }
        self.seen += 1;
        if self.kept.len() > 2 * self.most {
            let mut number = 0;
            self.kept.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.stride *= 2;
        }
    }

    pub fn kept(&self) -> impl Iterator<Item = &T> {
        self.kept.iter().chain(&self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_stays_short_and_keeps_its_mean() {
        let mut curve = Curve::default();
        (0..10_000).for_each(|x| curve.add(f64::from(x), f64::from(x % 7)));
        curve.add(10_000.0, f64::NAN);
        let points = curve.points();
        assert!(points.len() <= MOST && points.len() > MOST / 3, "{}", points.len());
        assert!(points.is_sorted_by(|a, b| a.0 < b.0));
        let mean = (0..10_000).map(|x| f64::from(x % 7)).sum::<f64>() / 1e4;
        assert!((curve.mean().unwrap() - mean).abs() < 1e-9);
        assert_eq!(curve.stride(), 64);
    }

    #[test]
    fn few_values_are_kept_as_they_are() {
        let mut curve = Curve::default();
        (0..5).for_each(|x| curve.add(f64::from(x), f64::from(x * x)));
        assert_eq!(curve.points(), [(0.0, 0.0), (1.0, 1.0), (2.0, 4.0), (3.0, 9.0), (4.0, 16.0)]);
    }

    #[test]
    fn the_first_and_the_last_of_many_are_kept() {
        for count in [1, 2, 39, 40, 41, 1000] {
            let mut thinned = Thinned::new(20);
            (0..count).for_each(|number| thinned.add(number));
            let kept: Vec<i32> = thinned.kept().copied().collect();
            assert!(kept.len() <= 41 && kept.is_sorted(), "{kept:?}");
            assert_eq!((kept[0], kept[kept.len() - 1]), (0, count - 1));
        }
    }
}
