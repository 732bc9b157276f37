//! One rule, ready to be indexed and explained.

use ipnet::IpNet;

use crate::decision::{RuleId, UpstreamRef};
use crate::model::{Destination, PortMatch};
use crate::networks;
use crate::ports::PortSet;

#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub id: RuleId,
    pub effect: Effect,
    /// Belongs to a policy that only audits.
    pub audit: bool,
    /// Networks are canonical. Empty: any destination.
    pub to: Vec<Destination>,
    pub ports: PortSet,
    /// As written, for explanations.
    pub port_list: Vec<PortMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Allow(UpstreamRef),
    Deny,
    Pass,
    /// An Allow that cannot be carried out; it refuses what it would have allowed.
    Broken {
        upstream: String,
    },
}

/// Which destinations an index is for. An Allow rule reaches a reserved destination only through a network that lies
/// inside the reserved range; a name or a wide network never opens one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Ordinary,
    Reserved,
}

impl Effect {
    pub fn matches_all(&self, scope: Scope) -> bool {
        match (scope, self) {
            (Scope::Ordinary, _) | (Scope::Reserved, Self::Deny | Self::Pass) => true,
            (Scope::Reserved, Self::Allow(_) | Self::Broken { .. }) => false,
        }
    }

    /// Whether a rule of this effect matches through `network` in this scope.
    pub fn matches_through(&self, network: &IpNet, scope: Scope) -> bool {
        self.matches_all(scope) || networks::is_within_reserved(network)
    }
}

/// Networks in the form flows are decided on.
pub(crate) fn canonical_destinations(to: &[Destination]) -> Vec<Destination> {
    let canonical = |networks: &[IpNet]| networks.iter().copied().map(networks::canonical).collect();
    to.iter()
        .map(|destination| match destination {
            Destination::Domains(patterns) => Destination::Domains(patterns.clone()),
            Destination::Networks { networks, except } => {
                Destination::Networks { networks: canonical(networks), except: canonical(except) }
            }
        })
        .collect()
}
