//! Errors with their causes, for people.

/// The causes in a row, as `{:#}` has them, but for those that were told already: many name their cause themselves.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        assert_eq!(told(&anyhow!("no room").context("no TUN")), "no TUN: no room");
        assert_eq!(told(&anyhow!("no room").context("no TUN: no room")), "no TUN: no room");
    }
}
