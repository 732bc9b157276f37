//! For the property tests: documents as a runtime could send them, right or wrong.

use proptest::prelude::*;
use serde_json::{Map, Value};

/// Any JSON, a few levels deep.
pub fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from);
        prop_oneof![list, object("\\PC{0,8}", inner).prop_map(Value::Object)]
    })
}

/// An object with keys of a pattern.
pub fn object(
    keys: &'static str,
    values: impl Strategy<Value = Value>,
) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec((keys, values), 0..6).prop_map(|pairs| pairs.into_iter().collect())
}
