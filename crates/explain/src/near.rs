//! Names that were meant: the nearest of those that there are.

/// How many letters have to be put in, taken out, changed, or swapped with their neighbour to make one text of the other (the
/// restricted distance of Damerau and Levenshtein).
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut next = vec![i + 1];
        for j in 0..b.len() {
            let mut least = (row[j] + usize::from(a[i] != b[j])).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
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
        assert_eq!(nearest("wbe", known), Some("web"), "neighbours swapped are one slip");
        assert_eq!(nearest("abc", known), None);
        assert_eq!(nearest("wev", known), Some("web"));
        assert_eq!(nearest("checkout", known), None);
    }
}
