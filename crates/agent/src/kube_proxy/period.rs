//! Times as Go writes them: `1h30m`, `500ms`.

use std::time::Duration;

const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a time.
///
/// # Errors
///
/// What is wrong with it, and what would be right.
pub fn parse(text: &str) -> Result<Duration, String> {
    read(text).ok_or_else(|| format!("{text:?} is not a time; write one such as 30s, 1h or 1h30m"))
}

fn read(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut nanos) = (text, 0.0);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit =
            rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |n| number + n);
        let (_, size) = UNITS.iter().find(|(name, _)| *name == &rest[number..unit])?;
        nanos += rest[..number].parse::<f64>().ok()? * *size as f64;
        rest = &rest[unit..];
    }
    (!text.is_empty() && nanos < u64::MAX as f64).then(|| Duration::from_nanos(nanos as u64))
}

/// Writes a time as Go does, to the second, and below one in milliseconds.
pub fn print(time: Duration) -> String {
    let (hours, minutes, seconds) = (time.as_secs() / 3600, time.as_secs() / 60 % 60, time.as_secs() % 60);
    match (hours, minutes) {
        (0, 0) if time.subsec_millis() > 0 => format!("{}ms", time.as_millis()),
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        let seconds = |text| parse(text).map(|t| t.as_secs_f64());
        for (text, wanted) in [
            ("0s", 0.0),
            ("0", 0.0),
            ("30s", 30.0),
            ("1.5h", 5400.0),
            ("1h30m0s", 5400.0),
            ("24h0m0s", 86_400.0),
            ("100ms", 0.1),
            ("2m1ms", 120.001),
        ] {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for text in ["", "30", "s", "-1s", "1d", "1h 30m", "1.2.3s"] {
            assert!(seconds(text).unwrap_err().contains("such as 30s"), "{text}");
        }
    }

    #[test]
    fn times_are_written_as_go_reads_them() {
        for text in ["0s", "500ms", "30s", "1m0s", "1h0m0s", "24h0m1s"] {
            assert_eq!(print(parse(text).unwrap()), text);
        }
    }
}
