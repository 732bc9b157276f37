//! Upstreams as the command line writes them.

use percent_encoding::percent_decode_str;
use tunproxy_policy::UpstreamRef;

use super::address::Endpoint;
use super::secret::Secret;
use super::upstream::{DEFAULT_CONNECT_TIMEOUT, Login, UpstreamKind, UpstreamSpec};

/// Why a text is no upstream; never shows the user info.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("the upstream is not a URL; write direct://, reject:// or socks5://[user:password@]host:port")]
    NoScheme,
    #[error(
        "the upstream's scheme {0:?} is not supported by this version (direct, reject, socks5 and socks5h are)"
    )]
    Unsupported(String),
    #[error("the upstream's scheme {0:?} is unknown; use direct://, reject:// or socks5://")]
    UnknownScheme(String),
    #[error("{0}:// takes nothing after it")]
    NotAlone(String),
    #[error("the upstream's address {address:?} {problem}")]
    Address { address: String, problem: String },
    #[error("the upstream's user info has no password; write user:password@ (a colon in either as %3A)")]
    NoPassword,
    #[error("the upstream's user info is badly encoded; write % and two hexadecimal digits, of UTF-8 text")]
    Encoding,
    #[error("in the upstream's user info {0}")]
    Login(String),
    #[error("the upstream's URL goes on after the address; end it with the port")]
    Trailing,
}

const LATER: [&str; 8] = ["socks4", "socks4a", "http", "https", "ss", "ssh", "relay", "group"];

/// `direct://`, `reject://` or `socks5://[user:password@]host:port`, percent-encoded. `socks5h` is the same: names are
/// resolved by the proxy wherever the flow has one. The password is no part of the reference.
pub fn parse_upstream_url(url: &str) -> Result<UpstreamSpec, UrlError> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url == "direct" { Ok(direct()) } else { Err(UrlError::NoScheme) };
    };
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "direct" | "reject" if !rest.is_empty() => Err(UrlError::NotAlone(scheme)),
        "direct" => Ok(direct()),
        "reject" => Ok(spec("reject://", UpstreamKind::Reject)),
        "socks5" | "socks5h" => socks5(rest),
        later if LATER.contains(&later) => Err(UrlError::Unsupported(scheme)),
        _ => Err(UrlError::UnknownScheme(scheme)),
    }
}

fn direct() -> UpstreamSpec {
    UpstreamSpec { reference: UpstreamRef::direct(), ..spec("", UpstreamKind::Direct) }
}

fn spec(reference: &str, kind: UpstreamKind) -> UpstreamSpec {
    UpstreamSpec { reference: UpstreamRef(reference.into()), kind, connect_timeout: DEFAULT_CONNECT_TIMEOUT }
}

fn socks5(rest: &str) -> Result<UpstreamSpec, UrlError> {
    let (login, address) = match rest.rsplit_once('@') {
        Some((user_info, address)) => (Some(parse_login(user_info)?), address),
        None => (None, rest),
    };
    // One slash at the end is how many programs print a URL; a path has no meaning.
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.contains(['/', '?', '#']) && !address.starts_with("unix:") {
        return Err(UrlError::Trailing);
    }
    let endpoint = Endpoint::parse(address)
        .map_err(|problem| UrlError::Address { address: address.to_owned(), problem })?;
    let reference = match &login {
        Some(login) => format!("socks5://{}@{endpoint}", percent_encoded(&login.username)),
        None => format!("socks5://{endpoint}"),
    };
    Ok(spec(&reference, UpstreamKind::Socks5 { address: endpoint, login }))
}

fn parse_login(user_info: &str) -> Result<Login, UrlError> {
    let (username, password) = user_info.split_once(':').ok_or(UrlError::NoPassword)?;
    Login::checked(&decoded(username)?, &Secret::new(decoded(password)?)).map_err(UrlError::Login)
}

fn decoded(text: &str) -> Result<String, UrlError> {
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    let bytes = text.as_bytes();
    let mut percents = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    if !percents.all(|(at, _)| is_digit(bytes.get(at + 1)) && is_digit(bytes.get(at + 2))) {
        return Err(UrlError::Encoding);
    }
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| UrlError::Encoding)
}

fn percent_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(url: &str) -> String {
        match parse_upstream_url(url) {
            Err(error) => error.to_string(),
            Ok(UpstreamSpec { reference, kind, .. }) => match kind {
                UpstreamKind::Direct => format!("{reference}: direct"),
                UpstreamKind::Reject => format!("{reference}: reject"),
                UpstreamKind::Socks5 { address, login } => {
                    let login =
                        login.map(|login| format!(" as {} / {}", login.username, login.password.expose()));
                    format!("{reference}: socks5 {address}{}", login.unwrap_or_default())
                }
            },
        }
    }

    #[test]
    fn each_form_and_each_mistake() {
        for (url, expected) in [
            ("direct", "direct: direct"),
            ("direct://", "direct: direct"),
            ("reject://", "reject://: reject"),
            ("socks5://127.0.0.1:1080", "socks5://127.0.0.1:1080: socks5 127.0.0.1:1080"),
            ("SOCKS5H://Proxy.Example:1080/", "socks5://proxy.example:1080: socks5 proxy.example:1080"),
            ("socks5://[::1]:1080", "socks5://[::1]:1080: socks5 [::1]:1080"),
            ("socks5://unix:/run/s.sock", "socks5://unix:/run/s.sock: socks5 unix:/run/s.sock"),
            ("socks5://me:p%40ss%3A@h:1", "socks5://me@h:1: socks5 h:1 as me / p@ss:"),
            ("socks5://a%40b:c:d@h:1", "socks5://a%40b@h:1: socks5 h:1 as a@b / c:d"),
            (
                "",
                "the upstream is not a URL; write direct://, reject:// or socks5://[user:password@]host:port",
            ),
            ("direct://x", "direct:// takes nothing after it"),
            (
                "ss://x@h:1",
                "the upstream's scheme \"ss\" is not supported by this version (direct, reject, socks5 and socks5h are)",
            ),
            ("ftp://h:1", "the upstream's scheme \"ftp\" is unknown; use direct://, reject:// or socks5://"),
            (
                "socks5://h",
                "the upstream's address \"h\" is not an address (host:port, [v6]:port or unix:/path)",
            ),
            ("socks5://h:1/path", "the upstream's URL goes on after the address; end it with the port"),
            (
                "socks5://me@h:1",
                "the upstream's user info has no password; write user:password@ (a colon in either as %3A)",
            ),
            (
                "socks5://me:%4@h:1",
                "the upstream's user info is badly encoded; write % and two hexadecimal digits, of UTF-8 text",
            ),
            ("socks5://:x@h:1", "in the upstream's user info the username has 0 bytes; SOCKS5 carries 1-255"),
        ] {
            assert_eq!(told(url), expected, "{url}");
        }
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let spec = parse_upstream_url("socks5://me:hunter2@h:1").expect("an upstream");
        assert!(!format!("{spec:?}").contains("hunter2"));
        for wrong in [
            "socks5://me:hunter2@h",
            "socks5://me:hunter2%4@h:1",
            "ss://me:hunter2@h:1",
            "socks5://hunter2@h:1",
        ] {
            let error = parse_upstream_url(wrong).expect_err(wrong);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn user_info_survives_the_way_through_a_url(username in "\\PC{1,20}", password in "\\PC{1,20}") {
            let url = format!("socks5://{}:{}@h:1", percent_encoded(&username), percent_encoded(&password));
            match parse_upstream_url(&url) {
                Ok(UpstreamSpec { kind: UpstreamKind::Socks5 { login: Some(login), .. }, .. }) => {
                    prop_assert_eq!(login.username, username);
                    prop_assert_eq!(login.password.expose(), password);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn no_text_panics(url in "(socks5://)?\\PC{0,40}") {
            let _ = parse_upstream_url(&url);
        }
    }
}
