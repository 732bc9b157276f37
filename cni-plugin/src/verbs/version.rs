//! VERSION: which versions of the specification this plugin speaks. Works with empty input.

use serde_json::{Value, json};

use crate::document;
use crate::error::PluginError;
use crate::version::CniVersion;

pub fn run(input: &[u8]) -> Result<String, PluginError> {
    if !input.trim_ascii().is_empty() {
        serde_json::from_slice::<Value>(input).map_err(|source| PluginError::Decode { source })?;
    }
    let answer = json!({
        "cniVersion": document::version_of(input),
        "supportedVersions": CniVersion::ALL.map(CniVersion::as_str),
    });
    Ok(answer.to_string())
}
