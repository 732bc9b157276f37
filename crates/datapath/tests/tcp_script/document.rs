//! Holds docs/tcp.md to what there is: every test it names, every requirement of RFC 9293, and its own counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = include_str!("../../../../docs/tcp.md");

/// A line of one of the tables of requirements: its label, and what shows it.
struct Row {
    section: String,
    label: String,
    shown: String,
}

/// How a requirement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Tested,
    DoesNotApply,
    NotYet,
}

impl Row {
    fn standing(&self) -> Standing {
        if self.shown.starts_with("n/a: ") {
            Standing::DoesNotApply
        } else if self.shown.starts_with("not yet: ") {
            Standing::NotYet
        } else {
            assert!(!tests_in(&self.shown).is_empty(), "{} {} names no test", self.section, self.label);
            Standing::Tested
        }
    }
}

/// The rows of tables with three columns, the last of which says what shows the requirement.
fn rows() -> Vec<Row> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in DOCUMENT.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ["", label, _, shown, ""] = cells[..]
            && !label.starts_with("---")
            && label != "requirement"
        {
            rows.push(Row { section: section.clone(), label: label.into(), shown: shown.into() });
        }
    }
    rows
}

/// The names of tests in a text: paths in backquotes.
fn tests_in(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains("::")).collect()
}

/// The file that a test's path leads to: `file::…` and `directory::file::…` below tests, `tcp::file::tests::…` in src.
fn source_of(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules: Vec<_> = name.split("::").collect();
    match modules[..] {
        [file, _] => root.join("tests").join(file).with_extension("rs"),
        [directory, file, _] => root.join("tests").join(directory).join(file).with_extension("rs"),
        [directory, file, "tests", _] => root.join("src").join(directory).join(file).with_extension("rs"),
        _ => panic!("{name} is not the path of a test"),
    }
}

/// Whether `source` has a test of this name: the attribute, perhaps others, and the function.
fn has_test(source: &str, name: &str) -> bool {
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if !line.starts_with("#[") {
            if marked && line.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) == Some(name) {
                return true;
            }
            marked = false;
        }
    }
    false
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the ban is the crate's own: this test reads the sources")]
fn every_test_that_is_named_exists() {
    let names = tests_in(DOCUMENT);
    assert!(names.len() > 100, "{} names found", names.len());
    for name in names {
        let path = source_of(name);
        let source = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("docs/tcp.md names {name}, but {}: {error}", path.display()));
        let function = name.rsplit("::").next().unwrap_or_default();
        assert!(has_test(&source, function), "docs/tcp.md names {name}; {} has no such test", path.display());
    }
}

#[test]
fn a_test_is_found_by_its_attribute_and_whole_name() {
    let source = "#[test]\n#[ignore]\nfn one() {\n}\n\nfn two() {}\n    #[test]\n    fn three_more() {\n";
    assert!(has_test(source, "one") && has_test(source, "three_more"));
    assert!(!has_test(source, "two") && !has_test(source, "three"));
}

#[test]
fn every_requirement_of_rfc_9293_stands_there_once() {
    let mut left: BTreeMap<String, u32> = BTreeMap::new();
    for (kind, last) in [("MUST", 69), ("SHLD", 31), ("MAY", 18), ("REC", 1)] {
        left.extend((1..=last).map(|number| (format!("{kind}-{number}"), 0)));
    }
    for row in rows().iter().filter(|row| row.section.starts_with("RFC 9293")) {
        let times = left.get_mut(&row.label).unwrap_or_else(|| panic!("there is no {}", row.label));
        *times += 1;
    }
    let wrong: Vec<_> = left.iter().filter(|&(_, &times)| times != 1).collect();
    assert!(wrong.is_empty(), "how often they stand there: {wrong:?}");
}

#[test]
fn the_counts_are_right() {
    let mut counted: BTreeMap<&str, BTreeMap<Standing, usize>> = BTreeMap::new();
    let rows = rows();
    for row in &rows {
        let document = row.section.split(':').next().unwrap_or_default();
        *counted.entry(document).or_default().entry(row.standing()).or_default() += 1;
    }
    let of =
        |counts: &BTreeMap<Standing, usize>, standing| counts.get(&standing).copied().unwrap_or_default();
    for (document, counts) in &counted {
        let line = format!(
            "| {document} | {} | {} | {} |",
            of(counts, Standing::Tested),
            of(counts, Standing::DoesNotApply),
            of(counts, Standing::NotYet)
        );
        assert!(DOCUMENT.lines().any(|there| there == line), "the table of counts should have {line}");
    }
}
