//! The links of a page that came through a proxy: they must lead back through it.

/// Which attributes of which elements are URLs (HTML 4 and 5), as kube-apiserver's proxy has them.
const LINKS: [(&str, &[&str]); 28] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["formaction", "src", "usemap"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("style", &[]),
    ("textarea", &[]),
    ("title", &[]),
    ("video", &["poster", "src"]),
];
/// Elements whose text is no markup.
const RAW: [&str; 4] = ["script", "style", "textarea", "title"];

/// A page with each of its links put through `change`; everything else stays byte for byte.
pub(crate) fn rewrite(page: &str, change: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(page.len() + page.len() / 8);
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        if let Some(comment) = tag.strip_prefix("<!--") {
            let end = comment.find("-->").map_or(tag.len(), |end| end + "<!---->".len());
            out.push_str(&tag[..end]);
            rest = &tag[end..];
            continue;
        }
        let name_end = tag[1..].find(|c: char| !c.is_ascii_alphanumeric()).map_or(tag.len(), |end| end + 1);
        let name = tag[1..name_end].to_ascii_lowercase();
        if name.is_empty() {
            // An end tag, a declaration, or a lone bracket.
            out.push('<');
            rest = &tag[1..];
            continue;
        }
        out.push_str(&tag[..name_end]);
        let links = LINKS.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, links)| links);
        let end = name_end + attributes(&tag[name_end..], links, &change, &mut out);
        rest = &tag[end..];
        if RAW.contains(&name.as_str()) {
            let close = format!("</{name}");
            let length = find_ignoring_case(rest, &close).unwrap_or(rest.len());
            out.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    out.push_str(rest);
    out
}

fn find_ignoring_case(text: &str, wanted: &str) -> Option<usize> {
    let (text, wanted) = (text.as_bytes(), wanted.as_bytes());
    text.windows(wanted.len()).position(|window| window.eq_ignore_ascii_case(wanted))
}

/// Copies a tag's attributes and its closing bracket; how long they are in the page.
fn attributes(tag: &str, links: &[&str], change: &impl Fn(&str) -> String, out: &mut String) -> usize {
    let bytes = tag.as_bytes();
    let skip = |mut at: usize, stop: fn(u8) -> bool| {
        while at < bytes.len() && !stop(bytes[at]) {
            at += 1;
        }
        at
    };
    let mut at = 0;
    loop {
        let begin = skip(at, |byte| byte == b'>' || !(byte.is_ascii_whitespace() || byte == b'/'));
        out.push_str(&tag[at..begin]);
        if begin == bytes.len() {
            return begin;
        }
        if bytes[begin] == b'>' {
            out.push('>');
            return begin + 1;
        }
        let name_end = skip(begin, |byte| byte.is_ascii_whitespace() || matches!(byte, b'=' | b'>' | b'/'));
        // A lone `=` is a name of its own, else this would not move on.
        let name_end = name_end.max(begin + 1);
        let name = tag[begin..name_end].to_ascii_lowercase();
        let equals = skip(name_end, |byte| !byte.is_ascii_whitespace());
        if bytes.get(equals) != Some(&b'=') {
            out.push_str(&tag[begin..name_end]);
            at = name_end;
            continue;
        }
        let value = skip(equals + 1, |byte| !byte.is_ascii_whitespace());
        let (from, to, end) = match bytes.get(value) {
            Some(quote @ (b'"' | b'\'')) => {
                let length = tag[value + 1..].find(char::from(*quote));
                let to = length.map_or(bytes.len(), |length| value + 1 + length);
                (value + 1, to, (to + 1).min(bytes.len()))
            }
            _ => {
                let to = skip(value, |byte| byte.is_ascii_whitespace() || byte == b'>');
                (value, to, to)
            }
        };
        out.push_str(&tag[begin..from]);
        match links.contains(&name.as_str()) {
            true => out.push_str(&change(&tag[from..to])),
            false => out.push_str(&tag[from..to]),
        }
        out.push_str(&tag[to..end]);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    fn page(text: &str) -> String {
        super::rewrite(text, |link| format!("/p{link}"))
    }

    #[test]
    fn links_are_changed_and_nothing_else() {
        for (before, after) in [
            ("<a href=\"/x\">/x</a>", "<a href=\"/p/x\">/x</a>"),
            ("<A class=y HREF='/x' >", "<A class=y HREF='/p/x' >"),
            ("<img src=/i.png alt=\"<a href='/x'>\"/>", "<img src=/p/i.png alt=\"<a href='/x'>\"/>"),
            ("a < b, <p href=\"/x\">", "a < b, <p href=\"/x\">"),
            ("<!-- <a href=\"/x\"> --><link href=/s>", "<!-- <a href=\"/x\"> --><link href=/p/s>"),
            (
                "<script src=\"/s\">'<a href=\"/x\">'</script>",
                "<script src=\"/p/s\">'<a href=\"/x\">'</script>",
            ),
            ("<a href", "<a href"),
            ("<a href=\"/x", "<a href=\"/p/x"),
            ("<a =x href = \"/x\">ü", "<a =x href = \"/p/x\">ü"),
        ] {
            assert_eq!(page(before), after);
        }
    }
}
