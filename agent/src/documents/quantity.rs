//! Durations as Kubernetes documents write them.

use std::time::Duration;

use crate::yaml::{Cursor, Value};

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
            let _ = parse_duration(&text);
        }
    }
}
