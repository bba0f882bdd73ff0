//! Amounts of a resource, as Kubernetes writes them: `100m`, `1Gi`, `2e3` (apimachinery `pkg/api/resource`).

use std::cmp::Ordering;
use std::fmt;

/// How an amount is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// By powers of 1024: `Ki`, `Mi`.
    Binary,
    /// By powers of 1000: `m`, `k`, `M`.
    Decimal,
    /// By powers of ten: `e3`.
    Exponent,
}

/// An amount. It compares by its value, however it is written.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// In billionths, which is the smallest part that Kubernetes knows.
    nano: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nano: 0, format: Format::Decimal };

    /// So many whole ones.
    pub fn whole(n: i64) -> Quantity {
        Quantity { nano: i128::from(n) * NANO, format: Format::Decimal }
    }

    /// Understands an amount. Parts below a billionth are rounded up.
    pub fn parse(text: &str) -> Option<Quantity> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(digits);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if part.contains('.') || (whole.is_empty() && part.is_empty()) {
            return None;
        }
        let (factor, ten, format) = if let Some(i) = BINARY.iter().position(|s| *s == suffix) {
            (1i128 << (10 * (i + 1)), 0, Format::Binary)
        } else if let Some((_, ten)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
            (1, *ten, Format::Decimal)
        } else {
            let ten = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            (1, ten, Format::Exponent)
        };
        // What is larger than an i64 is capped by Kubernetes; so are digits that nobody writes.
        if whole.len() > 30 || part.len() > 60 {
            return None;
        }
        let kept: String = part.chars().take(18).collect();
        let mantissa: i128 = format!("0{whole}{kept}").parse().ok()?;
        let mut scale = ten + 9 - kept.len() as i32;
        let mut nano = mantissa.checked_mul(factor)?;
        let mut inexact = part.len() > 18 && part[18..].bytes().any(|b| b != b'0');
        while scale > 0 {
            nano = nano.checked_mul(10)?;
            scale -= 1;
        }
        while scale < 0 {
            inexact |= nano % 10 != 0;
            nano /= 10;
            scale += 1;
        }
        nano += i128::from(inexact);
        Some(Quantity { nano: if text.starts_with('-') { -nano } else { nano }, format })
    }

    /// Whether it is below nothing.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// Whether it is a number of whole ones.
    pub fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }

    /// Whether it is so many times another amount.
    pub fn is_multiple_of(&self, other: Quantity) -> bool {
        other.nano != 0 && self.nano % other.nano == 0
    }

    /// The same, with what is less than a thousandth made a whole one.
    pub fn rounded_to_milli(&self) -> Quantity {
        let milli = NANO / 1000;
        let rest = self.nano.rem_euclid(milli);
        Quantity { nano: if rest == 0 { self.nano } else { self.nano - rest + milli }, ..*self }
    }

    /// How often `other` is in it.
    pub fn ratio(&self, other: Quantity) -> f64 {
        self.nano as f64 / other.nano as f64
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;

    /// The sum, written as the first is (or the second, if the first is nothing).
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nano: self.nano.saturating_add(other.nano), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        self + Quantity { nano: -other.nano, ..other }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl fmt::Display for Quantity {
    /// The one canonical way: no fraction, the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let binary = self.format == Format::Binary && self.is_whole() && self.nano.abs() >= 1024 * NANO;
        if binary {
            let (mut n, mut i) = (self.nano / NANO, 0);
            while n % 1024 == 0 && i < BINARY.len() {
                n /= 1024;
                i += 1;
            }
            return write!(f, "{n}{}", if i == 0 { "" } else { BINARY[i - 1] });
        }
        let (mut n, mut ten) = (self.nano, -9);
        while n % 10 == 0 {
            n /= 10;
            ten += 1;
        }
        while ten % 3 != 0 || ten > 18 {
            n *= 10;
            ten -= 1;
        }
        match (self.format, ten) {
            (Format::Exponent, 0) => write!(f, "{n}"),
            (Format::Exponent, _) => write!(f, "{n}e{ten}"),
            _ => write!(f, "{n}{}", DECIMAL.iter().find(|(_, t)| *t == ten).map_or("", |(s, _)| s)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_one_canonical_text() {
        let rows = [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1024", "1024"),
            ("100", "100"),
            ("12000", "12k"),
            ("1e3", "1e3"),
            ("1e4", "10e3"),
            ("0", "0"),
            ("0Gi", "0"),
            ("-1", "-1"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1.1n", "2n"),
            (".5", "500m"),
            ("5.", "5"),
        ];
        for (text, want) in rows {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Some(want.into()), "{text}");
        }
        for text in ["", "x", "1x", "1..2", "-", "1 Gi", "1gi", "."] {
            assert!(Quantity::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn amounts_compare_and_add_by_value() {
        let of = |text| Quantity::parse(text).unwrap();
        assert_eq!(of("1"), of("1000m"));
        assert!(of("1Gi") > of("1G"));
        assert_eq!((of("100m") + of("200m")).to_string(), "300m");
        assert_eq!((Quantity::ZERO + of("1Gi")).to_string(), "1Gi");
        assert_eq!((of("2Gi") - of("1Gi")).to_string(), "1Gi");
        assert!((of("1") - of("2")).is_negative());
    }
}
