//! A TUN for the namespace this process is in: addresses, a table with a default route through it, and the rules that
//! lead there everything but what bears the agent's own mark. As `wg-quick` does it, and DNS besides:
//!
//! - `fwmark MARK goto` the next but two: the agent's own connections are not asked about DNS;
//! - `ipproto udp dport 53 lookup TABLE`, and TCP: names have to be seen, also those that a resolver on the link knows;
//! - `lookup main suppress_prefixlength 0`: what the main table knows better than by its default route stays there;
//! - `not fwmark MARK lookup TABLE`: the rest goes into the TUN, but for the agent's own connections.
//!
//! The device ends with its descriptors, and an empty table lets the next rule decide: a killed agent leaves rules
//! without effect, which the next [`HostTun::set_up`] of that name takes over.

use std::fs;

use ipnet::IpNet;

use crate::naming;
use crate::netlink::{
    Family, MAIN_TABLE, Netlink, NetlinkError, Route, RouteKind, Rule, RuleTarget, Transport,
};
use crate::sysctl::{self, SysctlError};
use crate::tun::{self, Tun, TunError, TunSpec};

const DNS_PORT: u16 = 53;

/// What to set up.
#[derive(Debug, Clone)]
pub struct HostPlan {
    pub name: String,
    pub queues: u16,
    pub mtu: u32,
    /// One or more; a family without an address is not led into the TUN.
    pub addresses: Vec<IpNet>,
    /// `SO_MARK` of the agent's own upstream sockets.
    pub mark: u32,
}

/// Set-up or removal failed.
#[derive(Debug, thiserror::Error)]
pub enum HostTunError {
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// A TUN that is set up. Dropped, it removes everything as far as it can; [`HostTun::remove`] reports.
#[derive(Debug)]
pub struct HostTun {
    pub tun: Tun,
    netlink: Netlink,
    slot: HostSlot,
    /// Made here, so removed here.
    created: bool,
    /// Addresses of ours on a device that was there before.
    addresses: Vec<IpNet>,
    /// Interfaces whose strict reverse path filter was relaxed.
    relaxed: Vec<String>,
    removed: bool,
}

impl HostTun {
    /// Makes the TUN, or uses the one that exists, and leads traffic into it. On failure nothing of it stays.
    pub fn set_up(plan: &HostPlan) -> Result<Self, HostTunError> {
        let mut netlink = Netlink::open()?;
        let created = netlink.link(&plan.name)?.is_none();
        let tun = if created {
            let spec = TunSpec { name: &plan.name, queues: plan.queues, mtu: plan.mtu, persistent: None };
            tun::create(&mut netlink, &spec)?
        } else {
            tun::reopen(&mut netlink, &plan.name, plan.queues)?
        };
        let slot = HostSlot::of(&plan.name);
        let mut host =
            Self { tun, netlink, slot, created, addresses: Vec::new(), relaxed: Vec::new(), removed: false };
        // Dropped on failure, it undoes what was done so far.
        host.lead_into(plan)?;
        Ok(host)
    }

    /// Removes everything and reports the first failure after having tried all.
    pub fn remove(mut self) -> Result<(), HostTunError> {
        self.undo()
    }

    fn lead_into(&mut self, plan: &HostPlan) -> Result<(), HostTunError> {
        let present = self.netlink.addresses_of(&self.tun.link)?;
        for address in plan.addresses.iter().filter(|address| !present.contains(address)) {
            self.netlink.add_address(&self.tun.link, *address)?;
            self.addresses.push(*address);
        }
        self.netlink.set_link_up(&self.tun.link)?;
        self.relax_reverse_path()?;
        for family in Family::ALL {
            let Some(source) = plan.addresses.iter().map(IpNet::addr).find(|ip| Family::of(*ip) == family)
            else {
                continue;
            };
            self.netlink.add_route(&Route {
                family,
                table: self.slot.table(),
                destination: None,
                kind: RouteKind::Device(self.tun.link.index),
                source: Some(source),
                metric: 1,
            })?;
            for rule in self.slot.rules(family, plan.mark) {
                self.netlink.add_rule(&rule)?;
            }
        }
        Ok(())
    }

    /// Answers to the agent's marked packets come without the mark: a strict filter would look for their source
    /// behind the TUN and drop them. Loose mode still wants the source to be reachable.
    fn relax_reverse_path(&mut self) -> Result<(), HostTunError> {
        for interface in interfaces() {
            let key = reverse_path(&interface);
            if sysctl::read(&key)? == "1" {
                sysctl::write(&key, "2")?;
                self.relaxed.push(interface);
            }
        }
        Ok(())
    }

    fn undo(&mut self) -> Result<(), HostTunError> {
        if std::mem::replace(&mut self.removed, true) {
            return Ok(());
        }
        let mut result = Ok(());
        for family in Family::ALL {
            keep_first(&mut result, remove_rules(&mut self.netlink, family, self.slot));
            keep_first(&mut result, remove_routes(&mut self.netlink, family, self.slot));
        }
        for interface in std::mem::take(&mut self.relaxed) {
            // An interface that is gone needs none.
            keep_first(
                &mut result,
                sysctl::write_if_present(&reverse_path(&interface), "1").map_err(Into::into),
            );
        }
        if self.created {
            keep_first(&mut result, self.netlink.delete_link(&self.tun.link).map_err(Into::into));
        } else {
            for address in std::mem::take(&mut self.addresses) {
                let deleted = self.netlink.delete_address(&self.tun.link, address);
                keep_first(&mut result, deleted.map_err(Into::into));
            }
        }
        result
    }
}

impl Drop for HostTun {
    fn drop(&mut self) {
        let _ = self.undo();
    }
}

/// Table and rules of one TUN of this namespace: `pods` use lower numbers, see [`naming`].
#[derive(Debug, Clone, Copy)]
struct HostSlot(u32);

impl HostSlot {
    const TABLE_BASE: u32 = 77_000;
    const PRIORITY_BASE: u32 = 30_100;
    /// Below the kernel's own rules 32766 and 32767.
    const SLOTS: u32 = 500;
    const RULES: u32 = 5;

    fn of(name: &str) -> Self {
        Self(naming::stable_hash(name) % Self::SLOTS)
    }

    fn table(self) -> u32 {
        Self::TABLE_BASE + self.0
    }

    fn first(self) -> u32 {
        Self::PRIORITY_BASE + Self::RULES * self.0
    }

    fn rules(self, family: Family, mark: u32) -> [Rule; Self::RULES as usize] {
        let first = self.first();
        let dns = |priority, transport| Rule {
            port: Some((transport, DNS_PORT)),
            ..Rule::new(family, priority, RuleTarget::Table(self.table()))
        };
        [
            Rule { mark: Some(mark), ..Rule::new(family, first, RuleTarget::Goto(first + 3)) },
            dns(first + 1, Transport::Udp),
            dns(first + 2, Transport::Tcp),
            Rule {
                suppress_prefix_length: Some(0),
                ..Rule::new(family, first + 3, RuleTarget::Table(MAIN_TABLE))
            },
            Rule {
                mark: Some(mark),
                invert: true,
                ..Rule::new(family, first + 4, RuleTarget::Table(self.table()))
            },
        ]
    }

    fn owns(self, rule: &Rule) -> bool {
        (self.first()..self.first() + Self::RULES).contains(&rule.priority)
    }
}

fn remove_rules(netlink: &mut Netlink, family: Family, slot: HostSlot) -> Result<(), HostTunError> {
    for rule in netlink.rules(family)? {
        if slot.owns(&rule) {
            netlink.delete_rule(&rule)?;
        }
    }
    Ok(())
}

fn remove_routes(netlink: &mut Netlink, family: Family, slot: HostSlot) -> Result<(), HostTunError> {
    for route in netlink.routes(family, slot.table())? {
        netlink.delete_route(&route)?;
    }
    Ok(())
}

/// Names under `conf/`, with `all`, which counts as much as the interface's own value.
fn interfaces() -> Vec<String> {
    let entries = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn reverse_path(interface: &str) -> String {
    format!("ipv4/conf/{interface}/rp_filter")
}

fn keep_first<E>(result: &mut Result<(), E>, next: Result<(), E>) {
    if result.is_ok() {
        *result = next;
    }
}

#[cfg(test)]
mod tests;
