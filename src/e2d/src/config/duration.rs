//! Durations as Go writes them: `500ms`, `1m30s`, `1h`, `1.5s`.

use std::time::Duration;

/// Nanoseconds per unit, longest name first so that `ms` is not read as `m`.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a Go duration. `0` needs no unit; every other number does, and a sign is not accepted since no setting
/// has a use for a negative time. `None` when the text is not a duration or exceeds 2^63 nanoseconds, which is where
/// Go's own type ends.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, tail) = rest.split_at(number);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (name, tail) = tail.split_at(unit);
        let (_, nanos) = UNITS.iter().find(|(unit, _)| *unit == name)?;
        total = total.checked_add(scaled(digits, *nanos)?)?;
        rest = tail;
    }
    u64::try_from(total)
        .ok()
        .filter(|nanos| *nanos <= i64::MAX as u64)
        .map(Duration::from_nanos)
}

/// `digits` (with at most one point) times `unit`, cut below one nanosecond.
fn scaled(digits: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = match whole {
        "" => 0,
        some => some.parse::<u64>().ok()?,
    };
    // More than eighteen decimals cannot matter: the largest unit has fewer than 10^13 nanoseconds.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = match fraction {
        "" => 0,
        some => u128::from(some.parse::<u64>().ok()?) * unit / 10u128.pow(some.len() as u32),
    };
    u128::from(whole).checked_mul(unit)?.checked_add(part)
}

/// Writes a duration the way [`parse`] reads it, in the largest units that leave no fraction.
pub(super) fn format(duration: Duration) -> String {
    let mut nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (name, unit) in [
        ("h", UNITS[7].1),
        ("m", UNITS[6].1),
        ("s", UNITS[5].1),
        ("ms", UNITS[4].1),
        ("us", UNITS[1].1),
        ("ns", 1),
    ] {
        if nanos >= unit {
            text.push_str(&format!("{}{name}", nanos / unit));
            nanos %= unit;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        let ok = |text: &str, nanos: u64| {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}")
        };
        ok("0", 0);
        ok("0s", 0);
        ok("500ms", 500_000_000);
        ok("1m30s", 90_000_000_000);
        ok("1h", 3_600_000_000_000);
        ok("1.5s", 1_500_000_000);
        ok(".5s", 500_000_000);
        ok("5.s", 5_000_000_000);
        ok("10us", 10_000);
        ok("10µs", 10_000);
        ok("1h2m3s4ms5us6ns", 3_723_004_005_006);
        for bad in [
            "",
            "5",
            "s",
            ".s",
            "1.2.3s",
            "-1s",
            "+1s",
            "1d",
            "1 s",
            "1s ",
            "1S",
            "9999999h",
            "99999999999999999999s",
            "1m30",
            "ms500",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for nanos in [0, 1, 999, 1_000_000, 90_000_000_000, 3_723_004_005_006] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(parse(&format(duration)), Some(duration));
        }
        assert_eq!(format(Duration::from_secs(90)), "1m30s");
    }
}
