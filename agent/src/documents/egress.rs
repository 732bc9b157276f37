//! EgressPolicy.

use tunproxy_policy::model::{DnsMode, EgressAction, EgressPolicy, Enforcement};

use crate::yaml::Cursor;

use super::header::Identity;
use super::resolve::Read;
use super::{rules, selectors, syntax};

const KEYS: [&str; 6] = ["podSelector", "serviceAccounts", "priority", "enforcement", "dns", "rules"];
const ACTIONS: [(&str, EgressAction); 2] = [("Allow", EgressAction::Allow), ("Deny", EgressAction::Deny)];
const ENFORCEMENTS: [(&str, Enforcement); 2] =
    [("Enforce", Enforcement::Enforce), ("Audit", Enforcement::Audit)];
const DNS_MODES: [(&str, DnsMode); 2] = [("Observe", DnsMode::Observe), ("FakeIP", DnsMode::FakeIp)];

pub(super) fn read(spec: &Cursor<'_>, identity: &Identity, read: &mut Read) -> Option<EgressPolicy> {
    let fields = spec.mapping(&KEYS)?;
    let pod_selector = fields.optional("podSelector", selectors::read);
    let service_accounts = fields.optional("serviceAccounts", service_accounts);
    let priority = rules::priority(&fields);
    let enforcement = fields.optional("enforcement", |place| place.one_of(&ENFORCEMENTS));
    let dns = fields.optional("dns", dns_mode);
    let rules = rules::read(&fields, &ACTIONS, |action| action == EgressAction::Allow, identity, read);
    Some(EgressPolicy {
        namespace: identity.namespace.clone()?,
        name: identity.name.clone(),
        pod_selector: pod_selector.ok()?.unwrap_or_default(),
        service_accounts: service_accounts.ok()?.unwrap_or_default(),
        priority: priority?,
        enforcement: enforcement.ok()?.unwrap_or_default(),
        dns: dns.ok()?.unwrap_or_default(),
        rules: rules?,
    })
}

fn service_accounts(place: &Cursor<'_>) -> Option<Vec<String>> {
    let accounts = place.sequence()?;
    if accounts.is_empty() {
        place.wrong("is empty; list at least one service account or remove the key");
        return None;
    }
    Some(accounts.iter().filter_map(syntax::object_name).collect())
}

fn dns_mode(place: &Cursor<'_>) -> Option<DnsMode> {
    let fields = place.mapping(&["mode"])?;
    fields.require("mode", "write Observe or FakeIP")?.one_of(&DNS_MODES)
}
