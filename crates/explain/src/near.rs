//! Names that were meant: the nearest of those that there are.

/// How many letters have to be put in, taken out or changed to make one text of the other (Levenshtein's distance).
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Whether one may be a slip for the other.
pub fn is_near(a: &str, b: &str) -> bool {
    let far = a.chars().count().max(b.chars().count()) / 3;
    a != b
        && (distance(a, b) <= far.max(1)
            || (a.len() > 2 && (b.contains(a) || (b.len() > 2 && a.contains(b)))))
}

/// The nearest of several, if one is near.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().filter(|name| is_near(wanted, name)).min_by_key(|name| (distance(wanted, name), *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognized_and_another_name_is_not() {
        assert_eq!(distance("kitten", "sitting"), 3);
        let known = ["echo-hostname", "billing", "web"];
        assert_eq!(nearest("echo-hostnam", known), Some("echo-hostname"));
        assert_eq!(nearest("wbe", known), None);
        assert_eq!(nearest("wev", known), Some("web"));
        assert_eq!(nearest("checkout", known), None);
    }
}
