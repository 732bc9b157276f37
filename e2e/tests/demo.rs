//! The demo, row by row: what `make demo` shows must be true.

use tunproxy_e2e::demo::{self, Table};
use tunproxy_testkit::root_or_skip;

#[test]
fn every_row_comes_out_as_meant() {
    if !root_or_skip() {
        return;
    }
    let began = std::time::Instant::now();
    let outcomes = demo::run(|_| ()).unwrap();
    let table = Table::for_stdout();
    let lines: Vec<String> = outcomes.iter().map(|outcome| table.line(outcome)).collect();
    let wrong = outcomes.iter().filter(|outcome| outcome.wrong.is_some()).count();
    println!("{}", lines.join("\n"));
    assert_eq!(wrong, 0, "\n{}", lines.join("\n"));
    assert_eq!(outcomes.len(), demo::rows().len());
    assert!(began.elapsed().as_secs() < 60, "the demo takes under a minute, took {:?}", began.elapsed());
}
