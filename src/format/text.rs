//! Times, sizes and rates as people read them.

/// A time in seconds since 1970 as `2026-11-21 04:48:39 UTC`.
pub fn utc(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A size with the largest unit of 1024 that leaves at least one, to one decimal.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (64 - bytes.leading_zeros()).saturating_sub(1) / 10;
    let unit = UNITS.get(step as usize).copied().unwrap_or("B");
    if step == 0 {
        return format!("{bytes} {unit}");
    }
    let tenths = u128::from(bytes) * 10 / (1_u128 << (10 * step));
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A rate in MB/s (10^6 bytes), to one decimal.
pub fn rate(bytes_per_s: u64) -> String {
    let tenths = bytes_per_s / 100_000;
    format!("{}.{} MB/s", tenths / 10, tenths % 10)
}

/// A time span by its two largest units.
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (1_795_236_519, "2026-11-21 04:48:39 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn sizes_rates_and_spans_have_the_unit_that_fits() {
        for (bytes, text) in [(0, "0 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(rate(1_250_000), "1.2 MB/s");
        for (seconds, text) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3_660, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
