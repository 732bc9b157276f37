//! Amounts and durations as Kubernetes documents write them.

use std::time::Duration;

use crate::yaml::{Cursor, Value};

const UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// A positive number of bytes, plain or with a unit.
pub(super) fn bytes(place: &Cursor<'_>) -> Option<u64> {
    const SHAPE: &str = "is not a number of bytes (as in 500k or 10Mi, at least 1)";
    let (Value::Number(text) | Value::Text(text)) = place.value() else {
        place.wrong(SHAPE);
        return None;
    };
    let parsed = parse_bytes(text);
    if parsed.is_none() {
        place.wrong(format!("{text:?} {SHAPE}"));
    }
    parsed
}

fn parse_bytes(text: &str) -> Option<u64> {
    let with_unit = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (digits, size) = with_unit.unwrap_or((text, 1));
    number(digits)?.checked_mul(size).filter(|bytes| *bytes > 0)
}

fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

const LONGEST: Duration = Duration::from_mins(10);

/// A positive duration of at most ten minutes.
pub(super) fn duration(place: &Cursor<'_>) -> Option<Duration> {
    let Value::Text(text) = place.value() else {
        place.wrong("is not a duration (a number and ms, s or m: 10s)");
        return None;
    };
    let Some(duration) = parse_duration(text) else {
        place.wrong(format!("{text:?} is not a duration (a number and ms, s or m: 10s)"));
        return None;
    };
    if duration.is_zero() || duration > LONGEST {
        place.wrong(format!(
            "{text:?} is out of range (more than nothing, at most {}m)",
            LONGEST.as_secs() / 60
        ));
        return None;
    }
    Some(duration)
}

fn parse_duration(text: &str) -> Option<Duration> {
    if let Some(digits) = text.strip_suffix("ms") {
        return number(digits).map(Duration::from_millis);
    }
    if let Some(digits) = text.strip_suffix('s') {
        return number(digits).map(Duration::from_secs);
    }
    number(text.strip_suffix('m')?)?.checked_mul(60).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units() {
        for (text, expected) in [
            ("1", Some(1)),
            ("500k", Some(500_000)),
            ("10Mi", Some(10 << 20)),
            ("2G", Some(2_000_000_000)),
            ("0", None),
            ("-1", None),
            ("1.5Mi", None),
            ("Mi", None),
            ("18446744073709551615Ti", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text}");
        }
        for (text, expected) in [
            ("250ms", Some(250)),
            ("10s", Some(10_000)),
            ("2m", Some(120_000)),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("18446744073709551615m", None),
        ] {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = (parse_bytes(&text), parse_duration(&text));
        }
    }
}
