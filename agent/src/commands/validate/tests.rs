use std::fs;

use super::*;

const SOUND: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: web}
spec: {rules: []}
";

fn validate(text: Option<&str>, output: Output) -> (u8, String) {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(text) = text {
        fs::write(folder.path().join("p.yaml"), text).expect("a file");
    }
    let mut printed = Vec::new();
    let args = ValidateArgs { paths: vec![folder.path().to_owned()], output };
    let status = run(&args, &mut printed, Paint::PLAIN).expect("an answer");
    let printed = String::from_utf8(printed).expect("text");
    (status, printed.replace(&format!("{}/", folder.path().display()), ""))
}

#[test]
fn sound_documents_are_counted() {
    let (status, printed) = validate(Some(SOUND), Output::Text);
    assert_eq!((status, &*printed), (0, "no mistakes: 1 policy, 0 upstreams in 1 file\n"));
}

#[test]
fn each_mistake_is_a_line() {
    let (status, printed) = validate(Some(&SOUND.replace("rules: []", "rules: 1, rule: 2")), Output::Text);
    let expected = "\
p.yaml:4: spec: unknown key `rule`; did you mean `rules`?
p.yaml:4: rules: expected a list, found a number
2 mistakes in 1 of 1 file
";
    assert_eq!((status, &*printed), (1, expected));
}

#[test]
fn nothing_to_validate_is_no_success() {
    assert_eq!(validate(None, Output::Text).0, 1);
}

#[test]
fn json_has_the_same_mistakes() {
    let (status, printed) = validate(Some("kind: Oops\n"), Output::Json);
    let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(status, 1);
    assert_eq!(json["files"][0], "p.yaml");
    assert_eq!((&json["mistakes"][0]["line"], &json["mistakes"][0]["key"]), (&1.into(), &"kind".into()));
}
