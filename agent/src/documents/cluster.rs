//! ClusterEgressPolicy.

use tunproxy_policy::model::{ClusterAction, ClusterEgressPolicy, ClusterTier, Subject};

use crate::yaml::Cursor;

use super::header::Identity;
use super::resolve::Read;
use super::{rules, selectors};

const KEYS: [&str; 4] = ["subject", "tier", "priority", "rules"];
const TIERS: [(&str, ClusterTier); 2] = [("Admin", ClusterTier::Admin), ("Baseline", ClusterTier::Baseline)];
const ACTIONS: [(&str, ClusterAction); 3] =
    [("Accept", ClusterAction::Accept), ("Deny", ClusterAction::Deny), ("Pass", ClusterAction::Pass)];

pub(super) fn read(spec: &Cursor<'_>, identity: &Identity, read: &mut Read) -> Option<ClusterEgressPolicy> {
    let fields = spec.mapping(&KEYS)?;
    let subject = fields
        .require("subject", "write `subject: {namespaces: {}}` for all pods")
        .and_then(|place| subject(&place));
    let tier = fields.require("tier", "write Admin or Baseline").and_then(|place| place.one_of(&TIERS));
    let priority = rules::priority(&fields);
    let rules = rules::read(&fields, &ACTIONS, |action| action == ClusterAction::Accept, identity, read);
    Some(ClusterEgressPolicy {
        name: identity.name.clone(),
        subject: subject?,
        tier: tier?,
        priority: priority?,
        rules: rules?,
    })
}

fn subject(place: &Cursor<'_>) -> Option<Subject> {
    let fields = place.mapping(&["namespaces", "pods"])?;
    match (fields.has("namespaces"), fields.has("pods")) {
        (true, false) => Some(Subject::Namespaces(selectors::read(&fields.get("namespaces")?)?)),
        (false, true) => pods(&fields.get("pods")?),
        (true, true) => {
            place.wrong("has both `namespaces` and `pods`; keep one");
            None
        }
        (false, false) => {
            place.wrong("names nobody; give `namespaces` or `pods` ({} selects all)");
            None
        }
    }
}

fn pods(place: &Cursor<'_>) -> Option<Subject> {
    let fields = place.mapping(&["namespaceSelector", "podSelector"])?;
    let selector = |key| fields.require(key, "write {} for all").and_then(|place| selectors::read(&place));
    let (namespace_selector, pod_selector) = (selector("namespaceSelector"), selector("podSelector"));
    Some(Subject::Pods { namespace_selector: namespace_selector?, pod_selector: pod_selector? })
}
