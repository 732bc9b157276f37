//! A setting before it is validated, and the readers that validate it.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::ValueEnum;
use ipnet::IpNet;

use super::size::ByteSize;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Variable(String),
    Flag(String),
}

/// The texts of one setting; one for a scalar, any number for a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Index in [`super::KEYS`].
    pub key: usize,
    pub values: Vec<String>,
    pub origin: Origin,
}

/// One mistake: where, which key, what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub place: Origin,
    /// Empty where the place says it all.
    pub key: String,
    pub message: String,
}

/// What is wrong with a value, for a person: it quotes the value and says what would be right.
pub type Wrong = String;

impl Raw {
    pub(super) fn mistake(&self, message: Wrong) -> Mistake {
        let key = match self.origin {
            Origin::File { .. } => super::KEYS[self.key].path.to_owned(),
            Origin::Default | Origin::Variable(_) | Origin::Flag(_) => String::new(),
        };
        Mistake { place: self.origin.clone(), key, message }
    }

    pub(super) fn text(&self) -> Result<String, Wrong> {
        match self.values.as_slice() {
            [text] if !text.is_empty() => Ok(text.clone()),
            [_] => Err("the value is empty".to_owned()),
            several => Err(format!("{} values where one is expected", several.len())),
        }
    }

    pub(super) fn path(&self) -> Result<PathBuf, Wrong> {
        absolute(self.text()?)
    }

    pub(super) fn paths(&self) -> Result<Vec<PathBuf>, Wrong> {
        self.each(|text| if text.is_empty() { Err("a path is empty".to_owned()) } else { Ok(text.into()) })
    }

    pub(super) fn count(&self, range: RangeInclusive<usize>) -> Result<usize, Wrong> {
        let text = self.text()?;
        text.parse().ok().filter(|count| range.contains(count)).ok_or_else(|| {
            format!("{text:?} is not a whole number from {} to {}", range.start(), range.end())
        })
    }

    pub(super) fn boolean(&self) -> Result<bool, Wrong> {
        match self.text()?.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            text => Err(format!("{text:?} is neither true nor false")),
        }
    }

    pub(super) fn size(&self, range: RangeInclusive<ByteSize>) -> Result<ByteSize, Wrong> {
        let text = self.text()?;
        let size: ByteSize = text.parse().map_err(|wrong| format!("{text:?} {wrong}"))?;
        if range.contains(&size) {
            return Ok(size);
        }
        Err(format!("{text:?} is out of range ({} to {})", range.start(), range.end()))
    }

    pub(super) fn networks(&self) -> Result<Vec<IpNet>, Wrong> {
        self.each(parse_network)
    }

    pub(super) fn choice<T: ValueEnum>(&self) -> Result<T, Wrong> {
        let text = self.text()?;
        T::from_str(&text, false).map_err(|_| {
            let known: Vec<_> = T::value_variants()
                .iter()
                .filter_map(ValueEnum::to_possible_value)
                .map(|value| value.get_name().to_owned())
                .collect();
            format!("{text:?} is not one of {}", known.join(", "))
        })
    }

    /// An address with port, or `none`.
    pub(super) fn optional_address(&self) -> Result<Option<SocketAddr>, Wrong> {
        match self.text()?.as_str() {
            "none" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                format!("{text:?} is not an address with port (127.0.0.1:9965, [::1]:9965) or none")
            }),
        }
    }

    /// An absolute path, or `none`.
    pub(super) fn optional_path(&self) -> Result<Option<PathBuf>, Wrong> {
        match self.text()?.as_str() {
            "none" => Ok(None),
            text => absolute(text.to_owned()).map(Some),
        }
    }

    pub(super) fn each<T>(&self, parse: impl Fn(&str) -> Result<T, Wrong>) -> Result<Vec<T>, Wrong> {
        let (good, wrong): (Vec<_>, Vec<_>) =
            self.values.iter().map(|text| parse(text)).partition(Result::is_ok);
        if wrong.is_empty() {
            return Ok(good.into_iter().filter_map(Result::ok).collect());
        }
        Err(wrong.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "))
    }
}

/// A daemon has no useful working directory: a relative path would mean another file on every start.
pub(super) fn absolute(text: String) -> Result<PathBuf, Wrong> {
    if text.starts_with('/') {
        Ok(text.into())
    } else {
        Err(format!("{text:?} is not an absolute path (/...)"))
    }
}

fn parse_network(text: &str) -> Result<IpNet, Wrong> {
    let network: IpNet = text.parse().map_err(|_| {
        let most = if text.contains(':') { 128 } else { 32 };
        format!("{text:?} is not a network (address/prefix, prefix 0-{most})")
    })?;
    if network.trunc() == network {
        return Ok(network);
    }
    Err(format!("{text:?} has bits beyond its prefix; write {}", network.trunc()))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}
