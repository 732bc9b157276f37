//! The network configuration: JSON from standard input to a validated [`Config`]. Unknown keys are tolerated, bad
//! values are an error that names the key.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};
use tunproxy_ipc::AttachmentKey;

use crate::error::PluginError;
use crate::version::CniVersion;

const DEFAULT_SOCKET: &str = "/run/tunproxy/cni.sock";
const DEFAULT_STATE_DIR: &str = "/var/lib/tunproxy/cni";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);
const LONGEST_TIMEOUT: Duration = Duration::from_mins(5);

/// A validated network configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub version: CniVersion,
    pub network: String,
    pub socket: PathBuf,
    pub state_dir: PathBuf,
    pub timeout: Duration,
    /// Namespaces whose pods pass through without the agent.
    pub exclude: Vec<String>,
    pub mode: ConfigMode,
    /// From `args.cni.labels`.
    pub labels: BTreeMap<String, String>,
    /// As it came: only ADD and CHECK look at it.
    pub prev_result: Option<Value>,
    /// Of GC. `None`: the runtime did not say, so nothing may be dropped.
    pub valid_attachments: Option<Vec<AttachmentKey>>,
}

/// How the pod gets its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigMode {
    /// A main plugin before this one makes it.
    Chained,
    /// The TUN is it; the named plugin hands out addresses.
    Standalone { ipam: String },
}

impl Config {
    pub fn parse(input: &[u8]) -> Result<Self, PluginError> {
        let document: Value =
            serde_json::from_slice(input).map_err(|source| PluginError::Decode { source })?;
        let Value::Object(map) = document else {
            return Err(PluginError::config("(document)", "is not an object"));
        };
        let keys = Keys(&map);
        let version = parse_version(keys.text("cniVersion")?)?;
        let mode = parse_mode(&keys)?;
        let exclude = keys.texts("excludeNamespaces")?;
        if mode != ConfigMode::Chained && !exclude.is_empty() {
            let reason =
                "a pod that is passed through has no network in standalone mode: remove it, or remove ipam";
            return Err(PluginError::config("excludeNamespaces", reason));
        }
        keys.flag("unsafeNoGate")?;
        // Read by the log itself, which must work before all of this.
        keys.path("logFile")?;
        Ok(Self {
            version,
            network: parse_name(keys.text("name")?)?,
            socket: keys.path("agentSocket")?.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            state_dir: keys.path("stateDir")?.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            timeout: parse_timeout(keys.text("timeout")?)?,
            exclude,
            mode,
            labels: parse_labels(&map)?,
            prev_result: map.get("prevResult").filter(|value| !value.is_null()).cloned(),
            valid_attachments: parse_attachments(&map)?,
        })
    }

    /// The result of the plugin before this one.
    pub fn previous(&self) -> Result<&Map<String, Value>, PluginError> {
        match &self.prev_result {
            Some(Value::Object(result)) => Ok(result),
            Some(_) => Err(PluginError::config("prevResult", "is not an object")),
            None => Err(PluginError::config(
                "prevResult",
                "is missing: put tunproxy behind a main plugin (ptp, bridge, ...) in a conflist, or give it ipam to be the main plugin",
            )),
        }
    }
}

/// The object's values by key, each with the error that names it.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    /// Absent, null and "" are all "not said".
    fn text(&self, key: &str) -> Result<Option<&str>, PluginError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(PluginError::config(key, format!("{other} is not a string"))),
        }
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, PluginError> {
        match self.text(key)? {
            Some(text) if !text.starts_with('/') => {
                Err(PluginError::config(key, format!("{text:?} is not an absolute path")))
            }
            text => Ok(text.map(PathBuf::from)),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, PluginError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(PluginError::config(key, format!("{other} is not true or false"))),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, PluginError> {
        let list = match self.0.get(key) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(PluginError::config(key, format!("{other} is not a list"))),
        };
        let text = |(index, value): (usize, &Value)| match value {
            Value::String(text) if !text.is_empty() => Ok(text.clone()),
            other => Err(PluginError::config(format!("{key}[{index}]"), format!("{other} is not a name"))),
        };
        list.iter().enumerate().map(text).collect()
    }
}

fn parse_version(text: Option<&str>) -> Result<CniVersion, PluginError> {
    // SPEC.md: absent means 0.1.0, which this plugin does not speak.
    let found = text.unwrap_or("0.1.0");
    CniVersion::parse(found).ok_or_else(|| PluginError::Version { found: found.into() })
}

/// SPEC.md: starts with an alphanumeric character, then those, `_`, `.` and `-`.
fn parse_name(text: Option<&str>) -> Result<String, PluginError> {
    let name = text.ok_or_else(|| PluginError::config("name", "is missing"))?;
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.bytes().all(rest) {
        return Err(PluginError::config(
            "name",
            format!("{name:?} is not a network name (letters, digits, then also _ . -)"),
        ));
    }
    Ok(name.to_owned())
}

fn parse_mode(keys: &Keys<'_>) -> Result<ConfigMode, PluginError> {
    let ipam = match keys.0.get("ipam") {
        None | Some(Value::Null) => return Ok(ConfigMode::Chained),
        Some(Value::Object(ipam)) if ipam.is_empty() => return Ok(ConfigMode::Chained),
        Some(Value::Object(ipam)) => ipam,
        Some(other) => return Err(PluginError::config("ipam", format!("{other} is not an object"))),
    };
    let ipam = Keys(ipam);
    let kind = ipam.text("type").map_err(|_| PluginError::config("ipam.type", "is not a string"))?;
    let kind = kind.ok_or_else(|| PluginError::config("ipam.type", "is missing"))?;
    if kind.contains('/') || kind.starts_with('.') {
        return Err(PluginError::config("ipam.type", format!("{kind:?} is not a plugin name")));
    }
    Ok(ConfigMode::Standalone { ipam: kind.to_owned() })
}

/// A number with `ms`, `s` or `m`.
fn parse_timeout(text: Option<&str>) -> Result<Duration, PluginError> {
    let Some(text) = text else { return Ok(DEFAULT_TIMEOUT) };
    let bad = || {
        let reason = format!("{text:?} is not a time from 100ms to 5m, such as \"500ms\" or \"5s\"");
        PluginError::config("timeout", reason)
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(bad()),
    };
    let timeout = Duration::from_millis(number.checked_mul(unit).ok_or_else(bad)?);
    if (SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&timeout) { Ok(timeout) } else { Err(bad()) }
}

/// `args.cni.labels` of CONVENTIONS.md: a list of key and value; a plain map is understood too.
fn parse_labels(map: &Map<String, Value>) -> Result<BTreeMap<String, String>, PluginError> {
    let labels = map.get("args").and_then(|args| args.get("cni")).and_then(|cni| cni.get("labels"));
    let bad = |place: String, value: &Value| PluginError::config(place, format!("{value} is not a label"));
    match labels {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Array(list)) => {
            let pair = |(index, entry): (usize, &Value)| {
                let part = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                part("key").zip(part("value")).ok_or_else(|| bad(format!("args.cni.labels[{index}]"), entry))
            };
            list.iter().enumerate().map(pair).collect()
        }
        Some(Value::Object(pairs)) => {
            let pair = |(key, value): (&String, &Value)| match value.as_str() {
                Some(text) => Ok((key.clone(), text.to_owned())),
                None => Err(bad(format!("args.cni.labels.{key}"), value)),
            };
            pairs.iter().map(pair).collect()
        }
        Some(other) => Err(bad("args.cni.labels".into(), other)),
    }
}

/// The key of SPEC.md, or the one libcni used before.
fn parse_attachments(map: &Map<String, Value>) -> Result<Option<Vec<AttachmentKey>>, PluginError> {
    let found = ["cni.dev/valid-attachments", "cni.dev/attachments"]
        .into_iter()
        .find_map(|key| Some((key, map.get(key).filter(|value| !value.is_null())?)));
    let Some((name, value)) = found else { return Ok(None) };
    let Value::Array(list) = value else {
        return Err(PluginError::config(name, "is not a list"));
    };
    let attachment = |(index, entry): (usize, &Value)| {
        let part = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        let (container_id, ifname) = part("containerID")
            .zip(part("ifname"))
            .ok_or_else(|| PluginError::config(format!("{name}[{index}]"), "lacks containerID or ifname"))?;
        Ok(AttachmentKey { container_id, ifname })
    };
    list.iter().enumerate().map(attachment).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests;
