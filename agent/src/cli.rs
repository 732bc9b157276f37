//! The command line: what the agent can be told, with help and examples. No behaviour.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueHint};

use crate::commands::{explain::ExplainArgs, pcap::PcapArgs, validate::ValidateArgs};
use crate::config::{ConfigFlags, DefaultAction};
use crate::self_test::SelfTestArgs;

const EXAMPLES: &str = "\
Examples:
  Run a command under a policy, without a cluster and without root:
    tunproxy-agent exec --policy policy.yaml -- curl https://api.example.com

  Carry what goes into a TUN over a SOCKS5 proxy:
    tunproxy-agent tun --device tun0 --upstream socks5://127.0.0.1:1080

  Ask what a policy says, without sending a packet:
    tunproxy-agent explain --policy policy.yaml --to api.example.com:443";

/// Decides and carries every flow that leaves a pod.
///
/// The agent owns the TUN of each pod, terminates TCP, UDP and ICMP in user space, asks the policy for each flow and
/// connects what is allowed, directly or through an upstream. What is refused is refused at once, with a record of
/// the rule that decided.
#[derive(Debug, Parser)]
#[command(name = "tunproxy-agent", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Print without colours (so does the variable NO_COLOR, or an output that is not a terminal).
    #[arg(long, global = true, display_order = 900)]
    pub no_color: bool,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The commands that a person types: what a shell is to complete.
    pub fn offered() -> clap::Command {
        let all = Self::command();
        let subcommands: Vec<_> =
            all.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
        clap::Command::new("tunproxy-agent").args(all.get_arguments().cloned()).subcommands(subcommands)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(Box<ServeArgs>),
    Exec(ExecArgs),
    Tun(TunArgs),
    Explain(ExplainArgs),
    Pcap(PcapArgs),
    SelfTest(SelfTestArgs),
    Validate(ValidateArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
    #[command(hide = true)]
    ExecInit(ExecInitArgs),
}

/// Serve the pods of this node.
///
/// Listens for the CNI plugin, keeps each attachment on disk, serves every attached pod again after a restart, and
/// applies policy documents as they change. A broken edit keeps the last good policies in force and says so.
///
/// Signals: TERM and INT stop in order, HUP reads the documents again and reopens the flow log.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tunproxy-agent serve --config agent.yaml --policy /etc/tunproxy/policies
  tunproxy-agent serve --config agent.yaml --print-config
  TUNPROXY_WORKERS=4 tunproxy-agent serve --flow-log-path stdout")]
pub struct ServeArgs {
    /// The settings' file; without it, defaults, environment and flags.
    #[arg(long, value_name = "FILE", hide_env_values = true, env = "TUNPROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the settings in force and where each comes from, and end.
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub settings: ConfigFlags,
}

/// Run a command in a network of its own, under a policy.
///
/// CMD starts in a new network namespace (a user namespace too when not root) whose only way out is the policy.
/// Its exit status is passed on (128+n when signal n ended it); nothing is left behind. Flows that were refused, or
/// whose upstream failed, are listed at the end.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tunproxy-agent exec --policy policy.yaml -- curl https://api.example.com
  tunproxy-agent exec --upstream socks5://127.0.0.1:1080 -- git fetch
  tunproxy-agent exec --policy policies/ --labels app=web -- ./run-tests
  tunproxy-agent exec --log flows.jsonl --log-begin -- ./run-tests
  tunproxy-agent exec --default Deny -- sh          (nothing leaves)")]
pub struct ExecArgs {
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub record: RecordArgs,
    /// Do not list refused and failed flows at the end.
    #[arg(long, short)]
    pub quiet: bool,
    /// How much the agent itself says on standard error: error, warn, info, debug, trace.
    #[arg(
        long,
        default_value = "warn",
        value_name = "FILTER",
        hide_env_values = true,
        env = "TUNPROXY_LOG_LEVEL"
    )]
    pub log_level: String,
    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        value_name = "CMD",
        value_hint = ValueHint::CommandWithArguments
    )]
    pub command: Vec<OsString>,
}

/// Serve a TUN of this network namespace.
///
/// The device is an existing one (made by `ip tuntap` or another program), a new one, or a descriptor handed over.
/// With --setup it gets addresses and routes that send this host's traffic into it, and all of it is removed at the
/// end; the agent's own connections stay outside by their firewall mark.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("tun").required(true), after_help = "\
Examples:
  ip tuntap add mode tun dev tun0
  ip addr add 198.18.0.1/15 dev tun0 && ip link set tun0 up
  tunproxy-agent tun --device tun0 --upstream socks5://127.0.0.1:1080

  tunproxy-agent tun --device tun0 --setup --policy policy.yaml --log flows.jsonl
  tunproxy-agent tun --fd 3          (a TUN that the parent process opened)")]
pub struct TunArgs {
    /// The TUN's name; made if it does not exist.
    #[arg(long, value_name = "NAME", group = "tun")]
    pub device: Option<String>,
    /// A descriptor of a TUN that was opened with IFF_NO_PI, inherited from the parent process; the device may be in
    /// another network namespace.
    #[arg(long, value_name = "N", group = "tun")]
    pub fd: Option<RawFd>,
    /// Add addresses and routes, and remove them at the end.
    #[arg(long, conflicts_with = "fd")]
    pub setup: bool,
    /// Firewall mark of the agent's own connections, which routing keeps out of the TUN.
    #[arg(long, default_value = "0x7470", value_name = "N", value_parser = parse_mark)]
    pub mark: u32,
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub record: RecordArgs,
    /// How much to say on standard error: error, warn, info, debug, trace.
    #[arg(
        long,
        default_value = "info",
        value_name = "FILTER",
        hide_env_values = true,
        env = "TUNPROXY_LOG_LEVEL"
    )]
    pub log_level: String,
}

/// What is written down about flows.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// Record each flow in FILE when it ends, one JSON line each (- is standard output).
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Write a line when a flow begins too: one without `time`, `close` and counts.
    #[arg(long, requires = "log")]
    pub log_begin: bool,
}

/// Which policy holds, and for whom.
#[derive(Clone, Debug, Args)]
pub struct PolicyArgs {
    /// A file or folder of policy documents; may be given several times.
    #[arg(long = "policy", value_name = "PATH")]
    pub policies: Vec<PathBuf>,
    /// What happens where no policy selects the workload.
    #[arg(long, value_enum, default_value_t = DefaultAction::Allow, value_name = "ACTION")]
    pub default: DefaultAction,
    /// The upstream of rules that name none: direct, a URL such as socks5://user:password@host:port, or the name of
    /// an Upstream document.
    #[arg(
        long,
        default_value = "direct",
        value_name = "URL|NAME",
        hide_env_values = true,
        env = "TUNPROXY_UPSTREAM"
    )]
    pub upstream: String,
    /// The namespace whose policies apply.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
    /// Labels that policies select by: a=b, separated by commas or given several times.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
}

impl PolicyArgs {
    /// The upstream without what must not be shown.
    pub fn upstream_shown(&self) -> String {
        crate::config::redact(&self.upstream)
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  tunproxy-agent completions bash > /etc/bash_completion.d/tunproxy-agent")]
pub struct CompletionsArgs {
    pub shell: clap_complete::Shell,
}

/// Print the manual page, or write the pages of all commands to a folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tunproxy-agent man | man -l -
  tunproxy-agent man --out /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write one page for each command into DIR.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// The child of `exec` before it becomes the command.
#[derive(Debug, Args)]
pub struct ExecInitArgs {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("a label is KEY=VALUE".to_owned()),
    }
}

fn parse_mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(mark) if mark > 0 => Ok(mark),
        Ok(_) | Err(_) => Err("a mark is a number from 1 to 4294967295, also as 0x7470".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every line of the help's examples that runs this program, as a shell would split it.
    #[test]
    fn the_examples_of_the_help_are_understood() {
        let command = Cli::command();
        let commands = command.get_subcommands().chain([&command]);
        let help: Vec<String> =
            commands.filter_map(|command| Some(command.get_after_help()?.to_string())).collect();
        let mut seen = 0;
        for line in help.iter().flat_map(|text| text.lines()) {
            let Some(start) = line.find("tunproxy-agent ").filter(|_| line.starts_with("  ")) else {
                continue;
            };
            // Every other part is in quotes.
            let parts = line[start..].split('\'').enumerate();
            let words = parts
                .flat_map(|(index, part)| match index % 2 {
                    0 => part.split_whitespace().collect(),
                    _ => vec![part],
                })
                .take_while(|word| !word.starts_with(['|', '>', '(']));
            if let Err(error) = Cli::command().try_get_matches_from(words) {
                panic!("{line}: {error}");
            }
            seen += 1;
        }
        assert!(seen >= 12, "only {seen} examples found");
    }

    #[test]
    fn what_follows_the_command_of_exec_is_its_own_and_what_stands_before_is_ours() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        for line in ["tunproxy-agent exec -q curl -sS --log x", "tunproxy-agent exec -q -- curl -sS --log x"]
        {
            let Ok(Cli { command: Command::Exec(args), .. }) = parse(line) else { panic!("{line}") };
            assert_eq!(args.command, ["curl", "-sS", "--log", "x"], "{line}");
            assert!(args.quiet && args.record.log.is_none());
        }
        let error = parse("tunproxy-agent exec --upstrem x -- true").unwrap_err().to_string();
        assert!(error.contains("'--upstream'"), "a slip is not taken for the command: {error}");
        let Ok(Cli { command: Command::Exec(args), .. }) = parse("tunproxy-agent exec -- --odd") else {
            panic!()
        };
        assert_eq!(args.command, ["--odd"]);
    }

    #[test]
    fn tun_wants_one_device() {
        for line in ["tunproxy-agent tun", "tunproxy-agent tun --device a --fd 3"] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err().to_string();
            assert!(error.contains("--device") && error.contains("--fd"), "{error}");
        }
    }

    #[test]
    fn labels_and_marks_are_read_or_refused() {
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_label("=b").is_err() && parse_label("a").is_err());
        assert_eq!(parse_mark("0x7470"), Ok(0x7470));
        assert_eq!(parse_mark("7"), Ok(7));
        assert!(parse_mark("0").is_err() && parse_mark("-1").is_err() && parse_mark("0xg").is_err());
    }
}
