//! Routing rules.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};
use netlink_packet_route::{IpProtocol, RouteNetlinkMessage};

use super::{Family, Netlink, NetlinkError, PROTOCOL};

/// A transport protocol a rule can select by port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|transport| transport.number() == number)
    }
}

/// Where a matching packet is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleTarget {
    Table(u32),
    /// Continue with the rule of this priority.
    Goto(u32),
}

/// A rule of ours. Absent selectors match everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub family: Family,
    pub priority: u32,
    pub source: Option<IpNet>,
    pub destination: Option<IpNet>,
    pub mark: Option<u32>,
    /// Matches what the selectors do not.
    pub invert: bool,
    pub port: Option<(Transport, u16)>,
    pub target: RuleTarget,
    /// Routes with a prefix of at most this length do not count.
    pub suppress_prefix_length: Option<u32>,
    /// Routes through interfaces of this group do not count.
    pub suppress_group: Option<u32>,
}

impl Rule {
    pub fn new(family: Family, priority: u32, target: RuleTarget) -> Self {
        Self {
            family,
            priority,
            source: None,
            destination: None,
            mark: None,
            invert: false,
            port: None,
            target,
            suppress_prefix_length: None,
            suppress_group: None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}:", self.family, self.priority)?;
        if self.invert {
            write!(f, " not")?;
        }
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        if let Some(destination) = self.destination {
            write!(f, " to {destination}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark:#x}")?;
        }
        if let Some((transport, port)) = self.port {
            write!(f, " {transport:?} dport {port}")?;
        }
        match self.target {
            RuleTarget::Table(table) => write!(f, " lookup {table}"),
            RuleTarget::Goto(priority) => write!(f, " goto {priority}"),
        }
    }
}

impl Netlink {
    /// A rule that is already there is a success.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        // Whole, as rtnetlink's builder has no port, no goto, no suppressor and no protocol.
        let mut request = self.handle.rule().add();
        *request.message_mut() = to_message(rule);
        match self.perform(request.execute(), || format!("add rule {rule}")) {
            Err(error) if error.is(&[libc::EEXIST]) => Ok(()),
            result => result,
        }
    }

    /// A rule that is already gone is a success.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let request = self.handle.rule().del(to_message(rule)).execute();
        match self.perform(request, || format!("delete rule {rule}")) {
            Err(error) if error.is(&[libc::ENOENT, libc::ESRCH]) => Ok(()),
            result => result,
        }
    }

    /// The rules of ours, in the kernel's order.
    pub fn rules(&mut self, family: Family) -> Result<Vec<Rule>, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = family.to_netlink();
        let what = || format!("list {family:?} rules");
        let answers = match self.dump(&RouteNetlinkMessage::GetRule(message), what) {
            Ok(answers) => answers,
            // A kernel without IPv6 has no such rules.
            Err(error) if error.is(&[libc::EAFNOSUPPORT, libc::EOPNOTSUPP]) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(answers.into_iter().filter_map(|answer| to_rule(answer, family)).collect())
    }
}

fn to_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = rule.family.to_netlink();
    header.flags = if rule.invert { RuleFlags::Invert } else { RuleFlags::empty() };
    let attributes = &mut message.attributes;
    match rule.target {
        RuleTarget::Table(table) => {
            header.action = RuleAction::ToTable;
            header.table = u8::try_from(table).unwrap_or(0);
            attributes.push(RuleAttribute::Table(table));
        }
        RuleTarget::Goto(priority) => {
            header.action = RuleAction::Goto;
            attributes.push(RuleAttribute::Goto(priority));
        }
    }
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    if let Some(source) = rule.source {
        header.src_len = source.prefix_len();
        attributes.push(RuleAttribute::Source(source.network()));
    }
    if let Some(destination) = rule.destination {
        header.dst_len = destination.prefix_len();
        attributes.push(RuleAttribute::Destination(destination.network()));
    }
    if let Some(mark) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
    }
    if let Some((transport, port)) = rule.port {
        attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(transport.number())));
        attributes.push(RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port }));
    }
    if let Some(length) = rule.suppress_prefix_length {
        attributes.push(RuleAttribute::SuppressPrefixLen(length));
    }
    if let Some(group) = rule.suppress_group {
        attributes.push(RuleAttribute::SuppressIfGroup(group));
    }
    message
}

/// What the kernel reports for "no group" and "no prefix length": -1.
const ABSENT: u32 = u32::MAX;

fn to_rule(answer: RouteNetlinkMessage, family: Family) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = answer else { return None };
    let mut rule = Rule::new(family, 0, RuleTarget::Table(u32::from(message.header.table)));
    rule.invert = message.header.flags.contains(RuleFlags::Invert);
    let (mut ours, mut transport, mut port) = (false, None, None);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Protocol(protocol) => ours = u8::from(protocol) == PROTOCOL,
            RuleAttribute::Priority(priority) => rule.priority = priority,
            RuleAttribute::Table(table) if message.header.action == RuleAction::ToTable => {
                rule.target = RuleTarget::Table(table);
            }
            RuleAttribute::Goto(priority) => rule.target = RuleTarget::Goto(priority),
            RuleAttribute::Source(ip) => rule.source = IpNet::new(ip, message.header.src_len).ok(),
            RuleAttribute::Destination(ip) => rule.destination = IpNet::new(ip, message.header.dst_len).ok(),
            RuleAttribute::FwMark(mark) => rule.mark = Some(mark),
            RuleAttribute::IpProtocol(protocol) => transport = Transport::from_number(u8::from(protocol)),
            RuleAttribute::DestinationPortRange(range) => port = Some(range.start),
            RuleAttribute::SuppressPrefixLen(length) if length != ABSENT => {
                rule.suppress_prefix_length = Some(length);
            }
            RuleAttribute::SuppressIfGroup(group) if group != ABSENT => rule.suppress_group = Some(group),
            _ => {}
        }
    }
    rule.port = transport.zip(port);
    ours.then_some(rule)
}
