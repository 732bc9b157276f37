//! The name a client shows in its first octets: TLS SNI (RFC 6066 3) or the Host header of HTTP/1 (RFC 9112 3.2).

use tunproxy_policy::DomainName;

use crate::record::NameSource;

/// A first flight that shows no name within this many octets shows none.
pub const LIMIT: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// What is there so far may become a name.
    More,
    Name(DomainName, NameSource),
    /// It is neither TLS nor HTTP/1, or it names nothing.
    Nothing,
}

/// Looks for a name in the first octets of a client's stream.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let found = match bytes.first() {
        None => return Sniffed::More,
        Some(22) => tls(bytes),
        Some(byte) if byte.is_ascii_uppercase() => http(bytes),
        Some(_) => return Sniffed::Nothing,
    };
    match found {
        Ok(found) => Sniffed::of(found),
        Err(Short) if bytes.len() >= LIMIT => Sniffed::Nothing,
        Err(Short) => Sniffed::More,
    }
}

/// The octets end before the answer.
struct Short;

type Found = Result<Option<(Vec<u8>, NameSource)>, Short>;

impl Sniffed {
    fn of(found: Option<(Vec<u8>, NameSource)>) -> Self {
        let name = found.and_then(|(text, source)| {
            let text = String::from_utf8(text).ok()?;
            Some((DomainName::parse(&text).ok()?, source))
        });
        name.map_or(Self::Nothing, |(name, source)| Self::Name(name, source))
    }
}

fn http(bytes: &[u8]) -> Found {
    const HEADER: &[u8] = b"host:";
    let mut rest = bytes;
    let mut first = true;
    let mut host: Option<Vec<u8>> = None;
    loop {
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            // A method is a handful of capitals; anything else is another protocol.
            let method = rest.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
            let not_http = first && method < rest.len() && (rest[method] != b' ' || method > 20);
            return if not_http { Ok(None) } else { Err(Short) };
        };
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        if first {
            // A target in absolute form overrides Host (RFC 9112 3.2.2); only proxies are asked so.
            let target = line.split(|&byte| byte == b' ').nth(1);
            let http = line.windows(7).any(|window| window == b"HTTP/1.");
            if !http || target.is_none_or(|target| target.windows(3).any(|window| window == b"://")) {
                return Ok(None);
            }
        }
        if line.is_empty() {
            return Ok(host.map(|host| (host, NameSource::Host)));
        }
        if line.len() > HEADER.len() && line[..HEADER.len()].eq_ignore_ascii_case(HEADER) {
            let value = without_port(line[HEADER.len()..].trim_ascii()).to_vec();
            // Two of them are an error (RFC 9112 3.2), and each server takes another one.
            if host.replace(value).is_some() {
                return Ok(None);
            }
        }
        first = false;
        rest = &rest[end + 1..];
    }
}

/// `host:port` without the port.
fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|&byte| byte == b':') {
        Some(at) if host[at + 1..].iter().all(u8::is_ascii_digit) => &host[..at],
        _ => host,
    }
}

/// Reads big-endian fields off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, octets: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.0.split_at_checked(octets).ok_or(Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self, octets: usize) -> Result<usize, Short> {
        Ok(self.take(octets)?.iter().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    }

    /// A vector behind its length.
    fn vector(&mut self, length_octets: usize) -> Result<Self, Short> {
        let length = self.number(length_octets)?;
        Ok(Self(self.take(length)?))
    }
}

/// RFC 8446 5.1 and 4.1.2. The handshake message may be spread over several records.
fn tls(bytes: &[u8]) -> Found {
    let mut records = Reader(bytes);
    let mut handshake = Vec::new();
    loop {
        match client_hello(&handshake) {
            Err(Short) => {}
            found => return found,
        }
        if records.0.first().is_some_and(|&kind| kind != 22) {
            return Ok(None);
        }
        let header = records.take(3)?;
        if header[1] != 3 {
            return Ok(None);
        }
        handshake.extend_from_slice(records.vector(2)?.0);
    }
}

fn client_hello(handshake: &[u8]) -> Found {
    let mut message = Reader(handshake);
    if message.number(1)? != 1 {
        return Ok(None);
    }
    let body = message.vector(3)?;
    // The message is whole: from here on what is short is malformed.
    Ok(server_name(body).unwrap_or(None))
}

fn server_name(mut hello: Reader<'_>) -> Found {
    hello.take(2 + 32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    let mut extensions = hello.vector(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut extension = extensions.vector(2)?;
        if kind == 0 {
            let mut names = extension.vector(2)?;
            while !names.0.is_empty() {
                let kind = names.number(1)?;
                let name = names.vector(2)?;
                if kind == 0 {
                    return Ok(Some((name.0.to_vec(), NameSource::Sni)));
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_hello_for(name: &str) -> Vec<u8> {
        let mut extension = vec![0, 0];
        let host = name.as_bytes();
        let list = host.len() + 3;
        extension.extend(((list + 2) as u16).to_be_bytes());
        extension.extend((list as u16).to_be_bytes());
        extension.push(0);
        extension.extend((host.len() as u16).to_be_bytes());
        extension.extend(host);
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend([0, 2, 0x13, 0x01]);
        body.extend([1, 0]);
        body.extend((extension.len() as u16).to_be_bytes());
        body.extend(extension);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    fn record(handshake: &[u8]) -> Vec<u8> {
        let mut record = vec![22, 3, 1];
        record.extend((handshake.len() as u16).to_be_bytes());
        record.extend(handshake);
        record
    }

    fn named(name: &str, source: NameSource) -> Sniffed {
        Sniffed::Name(DomainName::parse(name).unwrap(), source)
    }

    #[test]
    fn every_prefix_of_a_client_hello_asks_for_more_and_the_whole_names() {
        let hello = record(&client_hello_for("Api.Example.com"));
        for len in 0..hello.len() {
            assert_eq!(sniff(&hello[..len]), Sniffed::More, "{len}");
        }
        assert_eq!(sniff(&hello), named("api.example.com", NameSource::Sni));
    }

    #[test]
    fn a_client_hello_in_two_records_is_read() {
        let message = client_hello_for("split.example");
        let mut stream = record(&message[..20]);
        stream.extend(record(&message[20..]));
        assert_eq!(sniff(&stream), named("split.example", NameSource::Sni));
    }

    #[test]
    fn the_host_header_without_its_port() {
        let request = b"GET / HTTP/1.1\r\nUser-Agent: x\r\nhOsT:  a.example:8080 \r\n\r\n";
        assert_eq!(sniff(request), named("a.example", NameSource::Host));
        assert_eq!(sniff(&request[..30]), Sniffed::More);
        assert_eq!(sniff(b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"), Sniffed::Nothing);
        assert_eq!(sniff(b"GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"), Sniffed::Nothing);
        assert_eq!(sniff(b"GET / HTTP/1.0\r\n\r\n"), Sniffed::Nothing);
        assert_eq!(sniff(b"SSH-2.0-x\r\n"), Sniffed::Nothing);
        assert_eq!(sniff(b"\x00\x01"), Sniffed::Nothing);
    }

    proptest::proptest! {
        #[test]
        fn any_octets_end(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), tls in proptest::bool::ANY) {
            if tls && bytes.len() > 2 {
                bytes[0] = 22;
                bytes[1] = 3;
            }
            let _ = sniff(&bytes);
        }
    }
}
