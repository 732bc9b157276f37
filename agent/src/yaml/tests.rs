use proptest::prelude::*;

use super::*;

fn only(text: &str) -> Node {
    let documents = parse(text);
    assert_eq!(documents.len(), 1, "{documents:?}");
    documents.into_iter().next().and_then(Result::ok).expect("a sound document")
}

fn error(text: &str) -> SyntaxError {
    let errors: Vec<_> = parse(text).into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.into_iter().next().expect("one error")
}

#[test]
fn every_value_knows_its_line() {
    let root = only("# comment\na:\n  - 1\n  - b: two\n");
    let Value::Mapping(entries) = &root.value else { panic!("{root:?}") };
    assert_eq!((entries[0].line, entries[0].key.as_str()), (2, "a"));
    let Value::Sequence(items) = &entries[0].value.value else { panic!("{root:?}") };
    assert_eq!((items[0].line, &items[0].value), (3, &Value::Number("1".to_owned())));
    let Value::Mapping(inner) = &items[1].value else { panic!("{root:?}") };
    assert_eq!((inner[0].line, &inner[0].value.value), (4, &Value::Text("two".to_owned())));
}

#[test]
fn plain_scalars_have_a_type_and_quoted_ones_are_texts() {
    for (text, expected) in [
        ("true", Value::Bool(true)),
        ("'true'", Value::Text("true".to_owned())),
        ("~", Value::Null),
        ("12", Value::Number("12".to_owned())),
        ("-1.5", Value::Number("-1.5".to_owned())),
        ("0x1F", Value::Number("0x1F".to_owned())),
        ("\"12\"", Value::Text("12".to_owned())),
        ("!!str 12", Value::Text("12".to_owned())),
        ("10.0.0.0/8", Value::Text("10.0.0.0/8".to_owned())),
        ("10Mi", Value::Text("10Mi".to_owned())),
        ("yes", Value::Text("yes".to_owned())),
    ] {
        let root = only(&format!("a: {text}\n"));
        let Value::Mapping(entries) = root.value else { panic!("{text}") };
        assert_eq!(entries[0].value.value, expected, "{text}");
    }
}

#[test]
fn a_syntax_error_costs_its_own_document_only() {
    let documents = parse("a: 1\n---\nb: [\n---\nc: 3\n--- # nothing\n---\nd: 4\n");
    let lines: Vec<_> = documents
        .iter()
        .map(|document| match document {
            Ok(node) => ("sound", node.line),
            Err(error) => ("broken", error.line),
        })
        .collect();
    assert_eq!(lines, [("sound", 1), ("broken", 4), ("sound", 5), ("sound", 8)]);
}

#[test]
fn directives_belong_to_the_document_after_them() {
    let documents = parse("%YAML 1.2\n# why\n---\na: 1\n");
    assert!(matches!(&documents[..], [Ok(node)] if node.line == 4), "{documents:?}");
}

#[test]
fn nothing_is_no_document() {
    for text in ["", "\n\n", "# only a comment\n", "---\n---\n", "\u{feff}"] {
        assert_eq!(parse(text), [], "{text:?}");
    }
}

#[test]
fn aliases_stand_for_their_anchor() {
    let root = only("a: &x [1, 2]\nb: *x\n");
    let Value::Mapping(entries) = root.value else { panic!("a mapping") };
    assert_eq!(entries[0].value, entries[1].value);
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let levels = (1..9).map(|level| {
        let before = format!("*a{}, ", level - 1).repeat(10);
        format!(
            "a{level}: &a{level} [{before}]
"
        )
    });
    let text = format!(
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]
{}",
        levels.collect::<String>()
    );
    let error = error(&text);
    assert_eq!(error.message, "the document's aliases expand to more than 10000 values; write them out");
}

#[test]
fn an_alias_of_what_it_stands_in_is_refused() {
    assert_eq!(error("a: &x [*x]\n").message, "an alias stands inside what it refers to");
}

#[test]
fn depth_is_bounded() {
    let nested = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    assert!(matches!(&parse(&nested(64))[..], [Ok(_)]));
    assert_eq!(error(&nested(65)).message, "is nested more than 64 deep");
    // The scanner looks ahead, and has a limit of its own.
    assert_eq!(error(&nested(5000)).message, "is not YAML: recursion limit exceeded");
}

#[test]
fn keys_that_are_no_texts_and_strange_tags_are_refused() {
    assert_eq!(error("? [a]\n: b\n").message, "a key has to be a text, and this one is a list");
    assert_eq!(error("a: !secret b\n").message, "the tag !secret means nothing here; remove it");
}

#[test]
fn misspellings_find_their_key() {
    let known = ["domains", "networks", "except", "matchLabels"];
    for (word, expected) in [
        ("domain", Some("domains")),
        ("Networks", Some("networks")),
        ("exept", Some("except")),
        ("matchlabels", Some("matchLabels")),
        ("netowrks", Some("networks")),
        ("banana", None),
        ("", None),
    ] {
        assert_eq!(nearest(word, &known), expected, "{word}");
    }
}

#[test]
fn the_walker_records_every_mistake_and_goes_on() {
    let sink = Sink::new("f.yaml".as_ref());
    let root = only(
        "spec:\n  count: many\n  cuont: 2\n  count: 3\n  list: {}\n  flag: 'true'\n  none:\n  size: 9\n",
    );
    let spec = Cursor::root(&root, &sink).mapping(&["spec"]).and_then(|root| root.get("spec")).expect("spec");
    let known = ["count", "list", "flag", "none", "size", "name"];
    let fields = spec.as_base().mapping(&known).expect("a mapping");
    assert_eq!(fields.get("count").and_then(|count| count.integer(0..=9, "a count")), None);
    assert!(fields.get("list").and_then(|list| list.sequence()).is_none());
    assert_eq!(fields.get("flag").and_then(|flag| flag.boolean()), None);
    assert!(fields.get("none").is_none());
    assert_eq!(fields.get("size").and_then(|size| size.integer(0..=8, "a size")), None);
    assert!(fields.require("name", "say which").is_none());
    let mistakes: Vec<_> = sink.into_mistakes().iter().map(ToString::to_string).collect();
    assert_eq!(
        mistakes,
        [
            "f.yaml:1: spec: `name` is missing; say which",
            "f.yaml:2: count: expected a count (0-9), found a text",
            "f.yaml:3: spec: unknown key `cuont`; did you mean `count`?",
            "f.yaml:4: spec: the key `count` is there twice (first on line 2); remove one",
            "f.yaml:5: list: expected a list, found a mapping",
            "f.yaml:6: flag: expected true or false, found a text",
            "f.yaml:7: none: has no value; give it one or remove the key",
            "f.yaml:8: size: 9 is not a size (0-8)",
        ]
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,80}") {
        let _ = parse(&text);
    }

    /// Texts made of what YAML gives a meaning.
    #[test]
    fn no_structure_panics(text in "([-?:,\\[\\]{}#&*!|>'\"%@` \t\nab0~]|---\n|: |- ){0,60}") {
        let lines = text.lines().count() + 1;
        for document in parse(&text) {
            let line = match document { Ok(node) => node.line, Err(error) => error.line };
            prop_assert!((1..=lines).contains(&line), "line {} of {}", line, lines);
        }
    }
}
