//! The formats of texts that schemas of custom resources may name, as kube-openapi's `strfmt` understands them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

use crate::meta;

/// The formats whose texts are looked at, without dashes.
const KNOWN: [&str; 27] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
    "",
];

fn plain(format: &str) -> String {
    format.replace('-', "")
}

/// Whether a type can have this format; of others nothing is heeded.
pub fn is_supported(r#type: &str, format: &str) -> bool {
    match r#type {
        "" | "string" => KNOWN.contains(&plain(format).as_str()),
        "integer" => matches!(format, "" | "int32" | "int64"),
        "number" => matches!(format, "" | "float" | "double"),
        _ => format.is_empty(),
    }
}

/// Whether the texts of a format are looked at.
pub fn is_known(format: &str) -> bool {
    !format.is_empty() && KNOWN.contains(&plain(format).as_str())
}

fn regex(text: &str) -> Regex {
    // All of them are in this file and are tried by a test.
    Regex::new(text).unwrap_or_else(|error| unreachable!("{text}: {error}"))
}

macro_rules! shapes {
    ($($name:ident = $text:expr;)*) => { $(static $name: LazyLock<Regex> = LazyLock::new(|| regex($text));)* };
}

shapes! {
    BSON = "^[0-9a-fA-F]{24}$";
    UUID = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    CARD = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$";
    SSN = r"^\d{3}[- ]?\d{2}[- ]?\d{4}$";
    HEX = "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB = r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$";
    HOST = r"^([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\-\p{S}\p{L}]{0,61})[a-zA-Z0-9\p{S}\p{L}])?)(\.[a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\-\p{S}\p{L}]{0,61})[a-zA-Z0-9\p{S}\p{L}])?)*$";
    MAC = r"(?i)^([0-9a-f]{2}([:-][0-9a-f]{2}){5}|[0-9a-f]{2}([:-][0-9a-f]{2}){7}|[0-9a-f]{4}(\.[0-9a-f]{4}){2}|[0-9a-f]{4}(\.[0-9a-f]{4}){3})$";
    EMAIL = r#"^[^\s@<>,;:"()\[\]\\]+@[^\s@<>,;:"()\[\]\\]+$"#;
    URI = r"^([a-zA-Z][a-zA-Z0-9+.\-]*:[^\s#]+|/[^\s]*|\*)$";
    DURATION = r"^(([+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+|0|\d+\s*(d|day|days|h|hr|hour|hours|m|min|minute|minutes|s|sec|second|seconds|ms|milli|millis|millisecond|milliseconds|us|µs|micro|micros|microsecond|microseconds|ns|nano|nanos|nanosecond|nanoseconds|w|wk|week|weeks))$";
    DATE = r"^\d{4}-\d{2}-\d{2}$";
    DATE_TIME = r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:?\d{2})?$";
    BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$";
}

/// Whether a text is of a format.
pub fn holds(format: &str, text: &str) -> bool {
    match plain(format).as_str() {
        "bsonobjectid" => BSON.is_match(text),
        "uri" => URI.is_match(text),
        "email" => EMAIL.is_match(text),
        "hostname" => text.len() <= 255 && HOST.is_match(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => MAC.is_match(text),
        "uuid" => UUID.is_match(text),
        "uuid3" => UUID3.is_match(text),
        "uuid4" => UUID4.is_match(text),
        "uuid5" => UUID5.is_match(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            CARD.is_match(&digits) && passes_luhn(&digits)
        }
        "ssn" => SSN.is_match(text),
        "hexcolor" => HEX.is_match(text),
        "rgbcolor" => RGB.is_match(text),
        "byte" => BASE64.is_match(text),
        "date" => DATE.is_match(text) && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => DURATION.is_match(text.strip_prefix('-').unwrap_or(text)),
        "datetime" => is_date_time(text),
        "k8sshortname" => meta::label_faults(text).is_empty(),
        "k8slongname" => meta::subdomain_faults(text).is_empty(),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.bytes().all(|b| b.is_ascii_digit()) && length.parse::<u8>().is_ok_and(|length| length <= most)
}

fn is_date_time(text: &str) -> bool {
    if !DATE_TIME.is_match(text) {
        return false;
    }
    let date = text.get(..10).is_some_and(|date| date.parse::<jiff::civil::Date>().is_ok());
    let part = |from: usize| text.get(from..from + 2).and_then(|part| part.parse::<u8>().ok());
    date && part(11).is_some_and(|hour| hour < 24)
        && part(14).is_some_and(|minute| minute < 60)
        && part(17).is_some_and(|second| second < 60)
}

fn digits(text: &str) -> Vec<char> {
    text.chars().filter(|c| !matches!(c, '-' | ' ')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = digits(text);
    if digits.len() != 10 {
        return false;
    }
    let mut sum = 0;
    for (index, c) in digits.iter().enumerate() {
        let value = match (c.to_digit(10), *c) {
            (Some(value), _) => value,
            (None, 'X') if index == 9 => 10,
            _ => return false,
        };
        sum += (index as u32 + 1) * value;
    }
    sum % 11 == 0
}

fn is_isbn13(text: &str) -> bool {
    let digits: Option<Vec<u32>> = digits(text).into_iter().map(|c| c.to_digit(10)).collect();
    let sum =
        |digits: &[u32]| digits.iter().enumerate().map(|(i, d)| d * (1 + 2 * (i as u32 % 2))).sum::<u32>();
    digits.is_some_and(|digits| digits.len() == 13 && sum(&digits) % 10 == 0)
}

fn passes_luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(index, b)| {
            let value = u32::from(b - b'0') * (1 + index as u32 % 2);
            if value > 9 { value - 9 } else { value }
        })
        .sum();
    !digits.is_empty() && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_their_formats() {
        let rows = [
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "fd00::1", "fd00::g"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:11:22:33:44:55", "00:11:22:33:44"),
            ("uuid", "6BA7B810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810"),
            ("uuid4", "9dad5f2e-11d1-4f2e-8f2e-00c04fd430c8", "9dad5f2e-11d1-1f2e-8f2e-00c04fd430c8"),
            ("date", "2026-02-28", "2026-02-30"),
            ("date-time", "2026-02-28T10:00:00Z", "2026-02-28T25:00:00Z"),
            ("duration", "1h30m", "soon"),
            ("byte", "YQ==", "Y"),
            ("hostname", "a.example.com", "a..b"),
            ("email", "a@example.com", "a"),
            ("uri", "https://example.com/a", "a"),
            ("hexcolor", "#FFFFFF", "#FF"),
            ("rgbcolor", "rgb(255, 0, 1)", "rgb(256,0,0)"),
            ("isbn", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "111-22-3333", "11-22-333"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
            ("k8s-short-name", "a-b", "A"),
            ("k8s-long-name", "a.b", "a_b"),
        ];
        for (format, good, bad) in rows {
            assert!(is_known(format), "{format}");
            assert!(holds(format, good), "{format}: {good}");
            assert!(!holds(format, bad), "{format}: {bad}");
        }
        assert!(!is_known("color") && is_supported("integer", "int32") && !is_supported("integer", "date"));
    }
}
