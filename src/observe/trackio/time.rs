//! Times as Trackio writes them.

/// Seconds since 1970 as `2026-11-28T05:04:42.250000+00:00`.
pub fn iso(seconds: f64) -> String {
    let micros = (seconds.max(0.0) * 1e6).round() as u64;
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
}

/// Year, month and day, so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, usize, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python's `datetime.fromtimestamp(..., timezone.utc).isoformat(timespec="microseconds")` has them.
    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0.0, "1970-01-01T00:00:00.000000+00:00"),
            (951_782_399.5, "2000-02-28T23:59:59.500000+00:00"),
            (951_782_400.0, "2000-02-29T00:00:00.000000+00:00"),
            (1_735_689_599.25, "2024-12-31T23:59:59.250000+00:00"),
            (1_735_689_600.0, "2025-01-01T00:00:00.000000+00:00"),
            (4_107_542_400.0, "2100-03-01T00:00:00.000000+00:00"),
        ] {
            assert_eq!(iso(seconds), expected);
        }
    }
}
