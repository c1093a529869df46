//! Times on the command line and in reports. Everything is UTC, and says so.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: i64 = 86_400;

/// Seconds since 1970 now.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// Days since 1970-01-01 of a date in the Gregorian calendar.
///
/// Counts years from March, so that the leap day ends one; see Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms".
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days`]: year, month, day.
const fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// `2026-11-21 04:03:02 UTC`.
pub(super) fn shown(seconds: i64) -> String {
    // Beyond any calendar: a damaged clock must not stop a report.
    if !(-DAY * 700_000..DAY * 3_000_000).contains(&seconds) {
        return format!("{seconds} s after 1970");
    }
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let second = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A time span by its two largest units: `2 d 3 h`, `47 s`.
pub(super) fn span(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (unit, length) in units {
        if left >= length {
            parts.push(format!("{} {unit}", left / length));
            left %= length;
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() {
        return "0 s".to_owned();
    }
    parts.join(" ")
}

/// A point in time: a span before now, a date, or RFC 3339; in seconds since 1970.
pub(super) fn since(text: &str) -> Result<i64, String> {
    since_at(text, now()).ok_or_else(|| {
        "not a time: give 90s, 15m, 1h, 2d, 2026-11-21 or 2026-11-21T04:00:00Z".to_owned()
    })
}

fn since_at(text: &str, now: i64) -> Option<i64> {
    for (unit, length) in [("s", 1), ("m", 60), ("h", 3600), ("d", DAY), ("w", 7 * DAY)] {
        if let Some(number) = text.strip_suffix(unit) {
            let number: u32 = number.parse().ok()?;
            return Some(now - i64::from(number) * length);
        }
    }
    let (day, rest) = text.split_at_checked(10)?;
    let day = day_of(day)?;
    if rest.is_empty() {
        return Some(day * DAY);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, offset) = zone(rest)?;
    Some(day * DAY + seconds_of(clock)? - offset)
}

fn digits(text: &str, len: usize) -> Option<i64> {
    let right = text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| text.parse().ok())?
}

fn day_of(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let year = digits(parts.next()?, 4)?;
    let month = digits(parts.next()?, 2)?;
    let day = digits(parts.next()?, 2)?;
    let number = days(year, month, day);
    // There is no 30th of February.
    ((1..=12).contains(&month) && date(number) == (year, month, day)).then_some(number)
}

/// The clock, and the offset from UTC in seconds.
fn zone(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let (clock, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let sign = match offset.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let (hours, minutes) = offset[1..].split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some((clock, sign * (hours * 3600 + minutes * 60)))
}

fn seconds_of(clock: &str) -> Option<i64> {
    let clock = clock.split_once('.').map_or(clock, |(whole, _)| whole);
    let mut parts = clock.split(':');
    let hour = digits(parts.next()?, 2)?;
    let minute = digits(parts.next()?, 2)?;
    let second = digits(parts.next().unwrap_or("00"), 2)?;
    let right = parts.next().is_none() && hour < 24 && minute < 60 && second <= 60;
    right.then_some(hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_inverse() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 3, 1), 11_017);
        for number in (-200_000..1_000_000).step_by(37) {
            let (year, month, day) = date(number);
            assert_eq!(days(year, month, day), number, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn times_are_shown_for_people() {
        assert_eq!(shown(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(shown(1_795_233_782), "2026-11-21 04:03:02 UTC");
        assert!(shown(i64::MAX).contains("after 1970"));
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (3600, "1 h"),
            (3661, "1 h 1 min"),
            (86_400 * 2 + 5, "2 d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn a_time_is_given_as_a_span_a_date_or_in_full() {
        let now = 1_795_233_782;
        for (text, seconds) in [
            ("90s", now - 90),
            ("15m", now - 900),
            ("1h", now - 3600),
            ("2d", now - 2 * DAY),
            ("1w", now - 7 * DAY),
            ("2026-11-21", 1_795_219_200),
            ("2026-11-21T04:03:02Z", now),
            ("2026-11-21 04:03Z", now - 2),
            ("2026-11-21T05:03:02.123+01:00", now),
            ("2026-11-20T23:03:02-05:00", now),
        ] {
            assert_eq!(since_at(text, now), Some(seconds), "{text}");
        }
        for text in [
            "",
            "h",
            "-1h",
            "1",
            "yesterday",
            "2026-02-30",
            "2026-13-01",
            "2026-1-1",
            "2026-11-21T25:00:00Z",
            "2026-11-21T04:00",
            "2026-11-21T04:00:00+1:00",
            "9999999999d",
            "\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}",
        ] {
            assert_eq!(since_at(text, now), None, "{text}");
        }
    }
}
