//! ARCHITECTURE.md's map, the tree and `cargo metadata` say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

struct Row {
    invariant: String,
    uses: BTreeSet<String>,
}

/// The rows of the table under "The map", by crate.
fn map() -> BTreeMap<String, Row> {
    let text = read("ARCHITECTURE.md");
    let section = text.split("## The map").nth(1).expect("a section named The map");
    let section = section.split("\n## ").next().expect("the section's text");
    let rows = section.lines().filter(|line| line.starts_with("| [`"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let name = cells[0].split('`').nth(1).expect("a crate's name in backquotes").to_owned();
        let uses = cells[2].split(',').map(|s| s.trim_matches([' ', '|']).to_owned()).filter(|s| s != "–");
        (name, Row { invariant: cells[1].to_owned(), uses: uses.collect() })
    })
    .collect()
}

#[test]
fn the_map_has_the_crates_of_the_tree() {
    let entries = std::fs::read_dir(root().join("crates")).expect("crates/");
    let tree: BTreeSet<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    let map: BTreeSet<String> = map().into_keys().collect();
    assert_eq!(map, tree, "add the crate to the table in ARCHITECTURE.md, or remove it from there");
}

#[test]
fn each_crate_opens_with_its_invariant() {
    for (name, row) in map() {
        let lib = read(format!("crates/{name}/src/lib.rs"));
        let first: String = lib
            .lines()
            .take_while(|line| line.starts_with("//! "))
            .map(|line| line.trim_start_matches("//! "))
            .collect::<Vec<_>>()
            .join(" ");
        assert_eq!(
            first, row.invariant,
            "crates/{name}/src/lib.rs and ARCHITECTURE.md must say the same sentence"
        );
        assert!(lib.contains("Absent on purpose"), "crates/{name}/src/lib.rs: say what is absent on purpose");
    }
}

#[test]
fn the_map_has_the_edges_of_cargo() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let map = map();
    for package in metadata["packages"].as_array().expect("packages") {
        let Some(name) = package["name"].as_str().and_then(|n| n.strip_prefix("portolan-")) else { continue };
        let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
        // Tests may use what they like; the edges of the map are what the program is made of.
        let ours: BTreeSet<String> = dependencies
            .filter(|d| d["kind"].is_null())
            .filter_map(|d| d["name"].as_str()?.strip_prefix("portolan-").map(str::to_owned))
            .collect();
        assert_eq!(
            ours, map[name].uses,
            "crates/{name}: its manifest and the table in ARCHITECTURE.md differ"
        );
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut documents: Vec<PathBuf> =
        vec!["README.md".into(), "ARCHITECTURE.md".into(), "CONTRIBUTING.md".into()];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("docs/") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                documents.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    let mut broken = Vec::new();
    for document in documents {
        let folder = root().join(&document).parent().expect("a folder").to_owned();
        for link in read(&document).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}
