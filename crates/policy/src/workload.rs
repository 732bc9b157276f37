//! Who is asking: the identity of a pod as the runtime or the cluster tells it.

use std::collections::BTreeMap;

/// A pod as policy sees it. Fields the runtime did not hand over are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub namespace_labels: BTreeMap<String, String>,
    pub service_account: Option<String>,
}
