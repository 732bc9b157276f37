//! Delegation to the plugin that hands out addresses: it gets our environment and our configuration, bounded in time
//! and output.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use tunproxy_ipc::AttachmentKey;
use tunproxy_linux_net::NameLock;

use crate::deadline::Deadline;
use crate::error::{PluginError, code};
use crate::invocation::Environment;
use crate::log::Log;
use crate::version::CniVersion;

/// Longest answer that is read.
const MAX_OUTPUT: u64 = 1 << 20;

/// The ipam plugin of this configuration.
#[derive(Debug)]
pub struct Ipam<'a> {
    name: &'a str,
    path: PathBuf,
    /// The network configuration, as it came.
    input: &'a [u8],
    environment: &'a Environment,
    /// Where the locks of attachments are.
    locks: PathBuf,
}

/// What an ADD handed out.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    pub addresses: Vec<IpNet>,
    pub dns: Option<Value>,
}

/// A verb of ours, or one with another container in the place of ours.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    Add(&'a AttachmentKey),
    Del(&'a AttachmentKey),
    Check,
    Gc,
    Status,
    Version,
    /// DEL of an attachment that only GC knows.
    DelOf(&'a AttachmentKey),
}

impl<'a> Call<'a> {
    /// The attachment whose addresses the call changes.
    fn changes(self) -> Option<&'a AttachmentKey> {
        match self {
            Self::Add(key) | Self::Del(key) | Self::DelOf(key) => Some(key),
            Self::Check | Self::Gc | Self::Status | Self::Version => None,
        }
    }
}

impl<'a> Ipam<'a> {
    /// `state_dir` holds the file of the locks.
    pub fn find(
        environment: &'a Environment,
        name: &'a str,
        input: &'a [u8],
        state_dir: &Path,
    ) -> Result<Self, PluginError> {
        let directories = environment.plugin_path();
        let candidates =
            directories.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(name));
        let path = candidates.into_iter().find(|path| is_program(path)).ok_or_else(|| {
            PluginError::IpamMissing { plugin: name.to_owned(), path: format!("{directories:?}") }
        })?;
        Ok(Self { name, path, input, environment, locks: state_dir.join("ipam.lock") })
    }

    pub fn add(&self, key: &AttachmentKey, deadline: &Deadline) -> Result<Lease, PluginError> {
        let output = self.call(Call::Add(key), deadline)?;
        parse_lease(&output)
            .map_err(|reason| PluginError::IpamAnswer { plugin: self.name.to_owned(), reason })
    }

    /// Runs the plugin and returns what it printed; its own error document becomes [`PluginError::Ipam`].
    ///
    /// A plugin that does not speak our configuration's version is called in the newest that both speak: what the two
    /// say to each other does not depend on what the runtime speaks.
    pub fn call(&self, call: Call<'_>, deadline: &Deadline) -> Result<Vec<u8>, PluginError> {
        let _lock = call.changes().map(|key| self.lock(key, deadline)).transpose()?;
        let result = self.run(call, self.input, deadline);
        let suspect = match (&result, call) {
            // To a verb that it does not know an older plugin says anything, host-local that a container's id is missing.
            (Err(PluginError::Ipam { .. }), Call::Gc | Call::Status) => true,
            (Err(PluginError::Ipam { code: said, .. }), _) => *said == code::INCOMPATIBLE_VERSION,
            _ => false,
        };
        if !suspect {
            return result;
        }
        let Some((version, input)) = self.in_its_version(deadline) else { return result };
        let has_verb = match call {
            Call::Gc | Call::Status => version.has_gc_and_status(),
            Call::Check => version.has_check(),
            Call::Add(_) | Call::Del(_) | Call::DelOf(_) | Call::Version => true,
        };
        if has_verb { self.run(call, &input, deadline) } else { Ok(Vec::new()) }
    }

    /// Calls about one attachment follow one another, even when we are killed and the plugin that we have started is not:
    /// it holds the lock until it ends. Else the DEL after a killed ADD could be done before the ADD's own lease is made.
    fn lock(&self, key: &AttachmentKey, deadline: &Deadline) -> Result<Option<NameLock>, PluginError> {
        let made = self.locks.parent().map_or(Ok(()), fs::create_dir_all);
        match made.and_then(|()| NameLock::acquire(&self.locks, &key.to_string(), deadline.end())) {
            Ok(Some(lock)) => Ok(Some(lock)),
            Ok(None) => Err(PluginError::IpamBusy { plugin: self.name.to_owned(), key: key.to_string() }),
            // A disk that takes no file is no reason to keep a pod from starting or ending.
            Err(error) => {
                let path = self.locks.display();
                Log::new(self.environment, self.input).line(&format!("no lock in {path}: {error}"));
                Ok(None)
            }
        }
    }

    /// The configuration in the newest older version that the plugin speaks; `None` where it speaks ours, or none.
    fn in_its_version(&self, deadline: &Deadline) -> Option<(CniVersion, Vec<u8>)> {
        let mut document: Value = serde_json::from_slice(self.input).ok()?;
        let ours = document["cniVersion"].as_str().and_then(CniVersion::parse)?;
        let answer: Value =
            serde_json::from_slice(&self.run(Call::Version, self.input, deadline).ok()?).ok()?;
        let supported = answer.get("supportedVersions")?.as_array()?;
        let speaks = |version: CniVersion| supported.iter().any(|text| *text == version.as_str());
        if speaks(ours) {
            return None;
        }
        let theirs =
            CniVersion::ALL.into_iter().filter(|version| *version < ours && speaks(*version)).max()?;
        document["cniVersion"] = theirs.as_str().into();
        if let Some(previous) = document.get_mut("prevResult").and_then(Value::as_object_mut) {
            previous.insert("cniVersion".to_owned(), theirs.as_str().into());
        }
        Some((theirs, document.to_string().into_bytes()))
    }

    fn run(&self, call: Call<'_>, input: &[u8], deadline: &Deadline) -> Result<Vec<u8>, PluginError> {
        let failed = |source| PluginError::IpamRun { plugin: self.name.to_owned(), source };
        let mut child = self.command(call).spawn().map_err(failed)?;
        let result = self.converse(&mut child, input, deadline);
        if result.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().map_err(failed)?;
        let output = result?;
        if status.success() { Ok(output) } else { Err(self.refusal(&output, status.code())) }
    }

    fn command(&self, call: Call<'_>) -> Command {
        let mut command = Command::new(&self.path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let verb = match call {
            Call::Add(_) => "ADD",
            Call::Del(_) | Call::DelOf(_) => "DEL",
            Call::Check => "CHECK",
            Call::Gc => "GC",
            Call::Status => "STATUS",
            Call::Version => "VERSION",
        };
        command.env("CNI_COMMAND", verb);
        if let Call::DelOf(key) = call {
            command
                .env("CNI_CONTAINERID", &key.container_id)
                .env("CNI_IFNAME", &key.ifname)
                .env("CNI_NETNS", "");
        }
        command
    }

    /// Feeds the child on a thread of its own, reads on another, and waits for its end no longer than the deadline.
    fn converse(&self, child: &mut Child, input: &[u8], deadline: &Deadline) -> Result<Vec<u8>, PluginError> {
        let failed = |source| PluginError::IpamRun { plugin: self.name.to_owned(), source };
        let timed_out =
            || PluginError::IpamTimedOut { plugin: self.name.to_owned(), limit: deadline.total() };
        let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let input = input.to_vec();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            // A plugin that does not read its input decides for itself.
            let _ = stdin.take().map(|mut pipe| pipe.write_all(&input));
        });
        thread::spawn(move || {
            let mut output = Vec::new();
            let read = stdout.map_or(Ok(0), |pipe| pipe.take(MAX_OUTPUT).read_to_end(&mut output));
            let _ = sender.send(read.map(|_| output));
        });
        let output = receiver.recv_timeout(deadline.left()).map_err(|_| timed_out())?.map_err(failed)?;
        if !ends_within(child, deadline.left()).map_err(failed)? {
            return Err(timed_out());
        }
        Ok(output)
    }

    fn refusal(&self, output: &[u8], status: Option<i32>) -> PluginError {
        let document: Value = serde_json::from_slice(output).unwrap_or_default();
        let text = |key| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match document.get("code").and_then(Value::as_u64) {
            Some(code) => PluginError::Ipam { code, message: text("msg"), details: text("details") },
            None => PluginError::IpamAnswer {
                plugin: self.name.to_owned(),
                reason: match status {
                    Some(status) => format!("exit status {status} without an error document"),
                    None => "killed by a signal".into(),
                },
            },
        }
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn ends_within(child: &Child, limit: Duration) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&limit))? > 0)
}

fn parse_lease(output: &[u8]) -> Result<Lease, String> {
    let document: Value = serde_json::from_slice(output).map_err(|error| format!("no JSON: {error}"))?;
    let list = document.get("ips").and_then(Value::as_array).filter(|list| !list.is_empty());
    let mut addresses = Vec::new();
    for entry in list.ok_or("no address in its result")? {
        let text = entry.get("address").and_then(Value::as_str).unwrap_or_default();
        addresses.push(text.parse().map_err(|_| format!("{text:?} is not an address with a prefix length"))?);
    }
    let dns = document.get("dns").filter(|dns| dns.as_object().is_some_and(|dns| !dns.is_empty())).cloned();
    Ok(Lease { addresses, dns })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::json;

    #[test]
    fn leases_are_read_in_every_shape() {
        let new = br#"{"ips": [{"address": "10.1.0.2/24"}, {"address": "fd00::2/64"}], "dns": {}}"#;
        let lease = parse_lease(new).unwrap();
        assert_eq!((lease.addresses.len(), lease.dns), (2, None));
        let old =
            br#"{"ips": [{"version": "4", "address": "10.1.0.2/24"}], "dns": {"nameservers": ["10.0.0.1"]}}"#;
        assert!(parse_lease(old).unwrap().dns.is_some());
    }

    #[test]
    fn an_answer_without_an_address_says_so() {
        for (answer, wanted) in [
            ("", "no JSON"),
            ("{}", "no address"),
            (r#"{"ips": []}"#, "no address"),
            (r#"{"ips": [{"address": "10.1.0.2"}]}"#, "\"10.1.0.2\" is not an address"),
        ] {
            let error = parse_lease(answer.as_bytes()).unwrap_err();
            assert!(error.contains(wanted), "{answer}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_lease(&answer);
        }

        /// All of the addresses, or a refusal that says which one is none.
        #[test]
        fn a_lease_has_every_address_it_was_given(
            addresses in prop::collection::vec("(10\\.[0-9]{1,3}\\.0\\.1|fd00::[0-9a-f]{1,4})/[0-9]{1,3}", 1..4),
            dns in json(),
        ) {
            let ips: Vec<_> = addresses.iter().map(|text| serde_json::json!({ "address": text })).collect();
            let answer = serde_json::json!({ "ips": ips, "dns": dns }).to_string();
            let valid: Vec<IpNet> = addresses.iter().filter_map(|text| text.parse().ok()).collect();
            match parse_lease(answer.as_bytes()) {
                Ok(lease) => prop_assert_eq!(lease.addresses, valid),
                Err(reason) => prop_assert!(valid.len() < addresses.len(), "{reason}"),
            }
        }
    }
}
