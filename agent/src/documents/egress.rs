//! EgressPolicy.

use tunproxy_policy::model::{DnsMode, EgressAction, EgressPolicy, Enforcement, UdpFiltering};

use crate::yaml::{Cursor, Value};

use super::header::Identity;
use super::resolve::Read;
use super::{rules, selectors};

const KEYS: [&str; 7] = ["podSelector", "serviceAccounts", "priority", "enforcement", "dns", "udp", "rules"];
const ACTIONS: [(&str, EgressAction); 2] = [("Allow", EgressAction::Allow), ("Deny", EgressAction::Deny)];
const ENFORCEMENTS: [(&str, Enforcement); 2] =
    [("Enforce", Enforcement::Enforce), ("Audit", Enforcement::Audit)];
const DNS_MODES: [(&str, DnsMode); 1] = [("Observe", DnsMode::Observe)];
const UDP_FILTERINGS: [(&str, UdpFiltering); 2] = [
    ("AddressAndPortDependent", UdpFiltering::AddressAndPortDependent),
    ("EndpointIndependent", UdpFiltering::EndpointIndependent),
];

pub(super) fn read(spec: &Cursor<'_>, identity: &Identity, read: &mut Read) -> Option<EgressPolicy> {
    let fields = spec.mapping(&KEYS)?;
    let pod_selector = fields.optional("podSelector", selectors::read);
    // Without a cluster no pod's account is known: the policy would select nobody, and its pods be left to the default.
    if let Some(place) = fields.get("serviceAccounts") {
        place.wrong("there are no service accounts without a cluster in this version; remove it");
    }
    let priority = rules::priority(&fields);
    let enforcement = fields.optional("enforcement", |place| place.one_of(&ENFORCEMENTS));
    let dns = fields.optional("dns", dns_mode);
    let udp_filtering = fields.optional("udp", udp_filtering);
    let rules = rules::read(&fields, &ACTIONS, |action| action == EgressAction::Allow, identity, read);
    Some(EgressPolicy {
        namespace: identity.namespace.clone()?,
        name: identity.name.clone(),
        pod_selector: pod_selector.ok()?.unwrap_or_default(),
        service_accounts: Vec::new(),
        priority: priority?,
        enforcement: enforcement.ok()?.unwrap_or_default(),
        dns: dns.ok()?.unwrap_or_default(),
        udp_filtering: udp_filtering.ok()?.unwrap_or_default(),
        rules: rules?,
    })
}

fn dns_mode(place: &Cursor<'_>) -> Option<DnsMode> {
    let fields = place.mapping(&["mode"])?;
    let mode = fields.require("mode", "write Observe")?;
    if matches!(mode.value(), Value::Text(text) if text == "FakeIP") {
        mode.wrong("FakeIP has no effect in this version; write Observe");
        return None;
    }
    mode.one_of(&DNS_MODES)
}

fn udp_filtering(place: &Cursor<'_>) -> Option<UdpFiltering> {
    let fields = place.mapping(&["filtering"])?;
    fields
        .require("filtering", "write EndpointIndependent or AddressAndPortDependent")?
        .one_of(&UDP_FILTERINGS)
}
