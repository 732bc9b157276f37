//! What the program says of itself when no runtime calls it.

use std::process::ExitCode;

use crate::error::PluginError;
use crate::version::CniVersion;

/// A person at a terminal gets an introduction; a runtime that forgot `CNI_COMMAND` gets an error it can read.
pub fn introduce(terminal: bool) -> ExitCode {
    let text = format!(
        "tunproxy {}: a CNI plugin that puts a pod's egress through the tunproxy agent\n\
         CNI versions: {}\n\
         A container runtime runs it, with CNI_COMMAND and the rest of the CNI's environment; by hand, use cnitool.",
        env!("CARGO_PKG_VERSION"),
        CniVersion::ALL.map(CniVersion::as_str).join(", "),
    );
    if terminal {
        println!("{text}");
        return ExitCode::SUCCESS;
    }
    eprintln!("{text}");
    let error = PluginError::Environment { problems: vec![("CNI_COMMAND", "is not set".into())] };
    println!("{}", error.document(CniVersion::LATEST.as_str()));
    ExitCode::FAILURE
}
