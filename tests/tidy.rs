//! Rules worth stating, each with its remedy.

use std::path::{Path, PathBuf};

use crate::map::root;

/// Files that may be longer than 800 lines, each with its reason.
const LONG: &[(&str, &str)] = &[];

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "crates", "tests", "benches", "xtask"].iter().map(|f| root().join(f)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                found.push((path.strip_prefix(root()).expect("below the root").to_owned(), text));
            }
        }
    }
    assert!(found.len() > 50, "where are the sources?");
    found
}

fn complain(rule: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

#[test]
fn each_file_opens_by_saying_what_it_is() {
    let offenders = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    complain(
        "begin the file with `//!` and one sentence",
        offenders.map(|(p, _)| p.display().to_string()).collect(),
    );
}

#[test]
fn no_file_grows_without_a_reason() {
    let long = |path: &Path| LONG.iter().any(|(name, _)| path == Path::new(name));
    let offenders = sources().into_iter().filter(|(p, text)| text.lines().count() > 820 && !long(p));
    let offenders = offenders.map(|(p, text)| format!("{}: {} lines", p.display(), text.lines().count()));
    complain("split the file at its second idea, or give its reason in tests/tidy.rs", offenders.collect());
}

#[test]
fn no_file_is_named_by_a_kind_of_code() {
    let banned = ["utils", "util", "common", "types", "helpers", "helper", "manager", "misc", "base", "core"];
    let offenders = sources().into_iter().filter(|(p, _)| {
        p.components()
            .any(|c| banned.contains(&Path::new(&c).file_stem().and_then(|s| s.to_str()).unwrap_or("")))
    });
    complain("name the file by its noun", offenders.map(|(p, _)| p.display().to_string()).collect());
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let offenders = sources().into_iter().filter(|(p, text)| {
        !p.starts_with("crates/sys") && p != Path::new("tests/tidy.rs") && text.contains("allow(unsafe_code)")
    });
    complain("move the system call to crates/sys", offenders.map(|(p, _)| p.display().to_string()).collect());
}

#[test]
fn no_test_is_ignored() {
    let mark = ["#[", "ignore"].concat();
    let offenders = sources().into_iter().filter(|(_, text)| text.contains(&mark));
    complain(
        "a test that can't run on a machine prints `skipped: <promise>: <reason>` and returns",
        offenders.map(|(p, _)| p.display().to_string()).collect(),
    );
}

#[test]
fn the_parts_of_the_end_to_end_tests_are_of_the_whole() {
    let names = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root().join("tests/e2e").join(file)).expect("a list of tests");
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    let whole = [names("api.txt"), names("services.txt")].concat();
    for part in ["part.txt", "rig.txt"] {
        let offenders = names(part).into_iter().filter(|name| !whole.contains(name));
        let rule = format!("name in tests/e2e/{part} what is in api.txt or services.txt");
        complain(&rule, offenders.collect());
    }
}
