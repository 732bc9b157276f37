//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{Family, Netlink, NetlinkError, PROTOCOL, Transport, first};

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Out of the interface with this index.
    Device(u32),
    /// Refused at once, with an error to the sender.
    Unreachable,
}

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub family: Family,
    pub table: u32,
    /// `None`: the default route.
    pub destination: Option<IpNet>,
    pub kind: RouteKind,
    /// Source address for sockets that have none.
    pub source: Option<IpAddr>,
    /// Lower wins.
    pub metric: u32,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination {
            Some(destination) => write!(f, "{destination}")?,
            None => write!(f, "{:?} default", self.family)?,
        }
        match self.kind {
            RouteKind::Device(index) => write!(f, " dev #{index}")?,
            RouteKind::Unreachable => write!(f, " unreachable")?,
        }
        write!(f, " table {} metric {}", self.table, self.metric)
    }
}

/// A packet to ask the kernel about.
#[derive(Debug, Clone, Copy)]
pub struct RouteProbe {
    pub destination: IpAddr,
    pub source: Option<IpAddr>,
    pub mark: u32,
    /// Transport and destination port.
    pub port: Option<(Transport, u16)>,
}

/// Where the packet would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteAnswer {
    Device {
        index: u32,
        source: Option<IpAddr>,
    },
    /// No route, or one that refuses.
    Refused,
}

impl Netlink {
    /// Adds the route, or replaces the one with the same destination and metric.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(to_message(route)).replace().execute();
        self.perform(request, || format!("add route {route}"))
    }

    /// A route that is already gone is a success.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(to_message(route)).execute();
        match self.perform(request, || format!("delete route {route}")) {
            Err(error) if error.is(&[libc::ESRCH, libc::ENOENT, libc::ENODEV]) => Ok(()),
            result => result,
        }
    }

    /// The routes of ours in one table.
    pub fn routes(&mut self, family: Family, table: u32) -> Result<Vec<Route>, NetlinkError> {
        let all = self.all_routes(family)?;
        Ok(all
            .iter()
            .filter(|message| is_ours(message))
            .filter_map(to_route)
            .filter(|r| r.table == table)
            .collect())
    }

    /// Anybody's default route of the main table that leads to a device.
    pub fn has_main_default(&mut self, family: Family) -> Result<bool, NetlinkError> {
        let all = self.all_routes(family)?;
        Ok(all.iter().any(|message| {
            message.header.destination_prefix_length == 0
                && u32::from(message.header.table) == super::MAIN_TABLE
                && message.header.kind == RouteType::Unicast
        }))
    }

    /// Asks which way a packet of a local socket would take.
    pub fn probe(&mut self, probe: &RouteProbe) -> Result<RouteAnswer, NetlinkError> {
        let answers = self.handle.route().get(to_query(probe)).execute();
        match self.perform(first(answers), || format!("look up the route to {}", probe.destination)) {
            Ok(answer) => Ok(answer.as_ref().and_then(to_answer).unwrap_or(RouteAnswer::Refused)),
            Err(error) if error.is(REFUSALS) => Ok(RouteAnswer::Refused),
            Err(error) => Err(error),
        }
    }

    fn all_routes(&mut self, family: Family) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.to_netlink();
        let message = RouteNetlinkMessage::GetRoute(message);
        let answers = self.dump(&message, || format!("list {family:?} routes"))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Some(message),
                _ => None,
            })
            .collect())
    }
}

/// What a lookup without a way out answers, by address family and kind of route.
const REFUSALS: &[i32] = &[libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::EAGAIN];

fn to_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = route.family.to_netlink();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.scope = RouteScope::Universe;
    set_table(&mut message, route.table);
    match route.kind {
        RouteKind::Device(index) => {
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Oif(index));
            // IPv4 wants directly reachable destinations in link scope.
            if route.family == Family::V4 {
                message.header.scope = RouteScope::Link;
            }
        }
        RouteKind::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    if let Some(destination) = route.destination {
        message.header.destination_prefix_length = destination.prefix_len();
        message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    message.attributes.push(RouteAttribute::Priority(route.metric));
    message
}

fn set_table(message: &mut RouteMessage, table: u32) {
    match u8::try_from(table) {
        Ok(small) => message.header.table = small,
        Err(_) => message.attributes.push(RouteAttribute::Table(table)),
    }
}

fn is_ours(message: &RouteMessage) -> bool {
    u8::from(message.header.protocol) == PROTOCOL
}

fn to_route(message: &RouteMessage) -> Option<Route> {
    let family = match message.header.address_family {
        netlink_packet_route::AddressFamily::Inet => Family::V4,
        netlink_packet_route::AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let (mut device, mut source, mut metric, mut destination) = (None, None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::PrefSource(address) => source = to_ip(address),
            RouteAttribute::Destination(address) => destination = to_ip(address),
            _ => {}
        }
    }
    let kind = match message.header.kind {
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Unicast => RouteKind::Device(device?),
        _ => return None,
    };
    let prefix = message.header.destination_prefix_length;
    let destination = match destination {
        Some(ip) => Some(IpNet::new(ip, prefix).ok()?),
        None => None,
    };
    Some(Route { family, table, destination, kind, source, metric })
}

fn to_query(probe: &RouteProbe) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = Family::of(probe.destination).to_netlink();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    // The strict check takes no other flags; this one asks for the source that would be chosen.
    message.header.flags = RouteFlags::empty();
    message.header.destination_prefix_length = host_prefix(probe.destination);
    message.attributes.push(RouteAttribute::Destination(probe.destination.into()));
    if let Some(source) = probe.source {
        message.header.source_prefix_length = host_prefix(source);
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    if probe.mark != 0 {
        message.attributes.push(RouteAttribute::Mark(probe.mark));
    }
    if let Some((transport, port)) = probe.port {
        message.attributes.push(RouteAttribute::IpProto(transport.number()));
        message.attributes.push(RouteAttribute::Dport(port));
    }
    message
}

fn to_answer(message: &RouteMessage) -> Option<RouteAnswer> {
    if matches!(message.header.kind, RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole) {
        return Some(RouteAnswer::Refused);
    }
    let index = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => to_ip(address),
        _ => None,
    });
    Some(RouteAnswer::Device { index, source })
}

fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { Ipv4Addr::BITS as u8 } else { Ipv6Addr::BITS as u8 }
}

fn to_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
