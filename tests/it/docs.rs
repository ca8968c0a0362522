//! The documents tell the truth about the source.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: PathBuf) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    files.chain(directories.into_iter().flat_map(sources)).collect()
}

/// Names of all test functions of the crate.
fn tests() -> BTreeSet<String> {
    let test = Regex::new(r"#\[test\]\s+(?:#\[[^\n]*\]\s+)*fn (\w+)").unwrap();
    let files = ["src", "tests", "vm-tests"].map(|name| sources(repository().join(name)));
    let texts = files.into_iter().flatten().map(|path| fs::read_to_string(path).unwrap());
    let names = |text: String| -> Vec<_> {
        test.captures_iter(&text).map(|found| found[1].to_owned()).collect()
    };
    texts.flat_map(names).collect()
}

/// Rows of the tables of docs/rules.md: the cells.
fn rows() -> Vec<Vec<String>> {
    let text = fs::read_to_string(repository().join("docs/rules.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells =
        |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

#[test]
fn every_test_that_the_rules_name_exists() {
    // Names of tests are sentences: longer than any field or state that a table mentions.
    let name = Regex::new(r"`([a-z0-9]+(?:_[a-z0-9]+){2,})`").unwrap();
    let text = fs::read_to_string(repository().join("docs/rules.md")).unwrap();
    let named: BTreeSet<_> = name.captures_iter(&text).map(|found| found[1].to_owned()).collect();

    let missing: Vec<_> = named.difference(&tests()).cloned().collect();

    assert!(named.len() > 90, "{} tests are named", named.len());
    assert_eq!(missing, [""; 0], "docs/rules.md names tests that do not exist");
}

#[test]
fn every_rule_and_outcome_has_one_row_that_names_tests_or_admits_that_there_are_none() {
    let numbers = [
        ("T", 1..=73),
        ("O", 1..=42),
        // Those of what observes begin anew with each part of it.
        ("V", 1..=16),
        ("V", 20..=24),
        ("V", 30..=38),
        ("V", 40..=42),
        ("V", 50..=58),
        ("W", 1..=14),
    ];
    let wanted: BTreeSet<_> = numbers
        .into_iter()
        .flat_map(|(letter, numbers)| numbers.map(move |number| format!("{letter}{number}")))
        .collect();
    let rows = rows();
    let rule = Regex::new("^[TOVW][0-9]+$").unwrap();
    let there: BTreeSet<_> =
        rows.iter().map(|cells| cells[0].clone()).filter(|first| rule.is_match(first)).collect();

    assert_eq!(there.difference(&wanted).collect::<Vec<_>>(), [""; 0], "rows of no rule");
    for rule in wanted {
        let of_rule: Vec<_> = rows.iter().filter(|cells| cells[0] == rule).collect();
        assert_eq!(of_rule.len(), 1, "rows of {rule}");
        let last = of_rule[0].last().unwrap();
        assert!(last.contains('`') || last.contains('—'), "{rule} says nothing of its tests");
    }
}
