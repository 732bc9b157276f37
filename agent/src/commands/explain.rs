//! `explain`: which rule would decide a flow, and why, without a packet.

mod json;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Args;
use tunproxy_policy::{
    Decision, DomainName, Explanation, FlowQuery, NodeDefault, NodeSettings, PolicySet, Verdict, Workload,
};

use crate::config::DefaultAction;
use crate::documents;
use crate::paint::{Paint, Painted};

use super::Output;
use super::target::{Host, Target};

/// Stands for a name's address where none is given (RFC 5737: nobody's).
const UNKNOWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

const ALLOWED: u8 = 0;
const DENIED: u8 = 1;

/// Tell which rule decides a flow, and why, without sending a packet.
///
/// Reads the documents, takes the place of a pod of the namespace with the labels, and asks for one flow. A name counts as
/// one that a trusted resolver gave the pod. Exit status: 0 allowed (also when a policy that only audits would refuse), 1
/// denied, 2 when the question or a document has a mistake.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  tunproxy-agent explain --policy policy.yaml --to api.github.com:443
  tunproxy-agent explain --policy policies/ --labels app=web --to 10.0.0.5:8443
  tunproxy-agent explain --policy policies/ --to '[2001:db8::1]:53/udp'
  tunproxy-agent explain --policy policies/ --to example.com/icmp
  tunproxy-agent explain --policy p/ --to example.com:443 --address 10.1.2.3
  tunproxy-agent explain --policy p/ --to example.com:443 -o json")]
pub struct ExplainArgs {
    /// A file or folder of policy documents; may be given several times.
    #[arg(long = "policy", value_name = "PATH", required = true)]
    pub policies: Vec<PathBuf>,
    /// The pod's namespace.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
    /// The pod's labels: a=b, separated by commas or given several times.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// The labels of its namespace; kubernetes.io/metadata.name is there without being given.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    pub namespace_labels: Vec<(String, String)>,
    /// The pod's service account; without it, policies for service accounts do not select the pod.
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// Where the flow goes: a name or an address, a port, and the protocol unless it is tcp.
    #[arg(long, value_name = "HOST:PORT[/PROTOCOL]")]
    pub to: Target,
    /// The address of the name in --to, for rules about networks.
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// What happens where no policy selects the pod.
    #[arg(long, value_enum, default_value_t = DefaultAction::Allow, value_name = "ACTION")]
    pub default: DefaultAction,
    /// The upstream of rules that name none: direct, a URL, or the name of an upstream document.
    #[arg(long, default_value = "direct", value_name = "URL|NAME")]
    pub upstream: String,
    /// A resolver that the node trusts; may be given several times.
    #[arg(long = "resolver", value_name = "IP")]
    pub resolvers: Vec<IpAddr>,
    /// How to print the answer.
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("a label is KEY=VALUE".to_owned()),
    }
}

/// Prints the answer and gives the exit status; an error is status 2.
pub fn run(args: &ExplainArgs, out: &mut dyn Write, paint: Paint) -> anyhow::Result<u8> {
    let explanation = explain(args)?;
    match args.output {
        Output::Text => print_text(args, &explanation, out, paint)?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &json::render(args, &explanation))?;
            writeln!(out)?;
        }
    }
    Ok(match explanation.decision {
        Decision::Allow(_) | Decision::ByName { .. } => ALLOWED,
        Decision::Deny(_) => DENIED,
    })
}

fn explain(args: &ExplainArgs) -> anyhow::Result<Explanation> {
    let report = documents::load(&args.policies);
    if !report.mistakes.is_empty() {
        let lines: Vec<_> = report.mistakes.iter().map(ToString::to_string).collect();
        anyhow::bail!("the documents have mistakes:\n{}", lines.join("\n"));
    }
    let mut documents = report.documents;
    let upstream = documents.default_upstream(&args.upstream)?;
    let default = match args.default {
        DefaultAction::Allow => NodeDefault::Allow,
        DefaultAction::Deny => NodeDefault::Deny,
    };
    let settings = NodeSettings { default, upstream, resolvers: args.resolvers.clone() };
    let (policies, _) = documents.compile_inputs();
    let policy = PolicySet::compile(&policies, settings).for_workload(&workload(args));
    let names: Vec<DomainName> = match &args.to.host {
        Host::Name(name) => vec![name.clone()],
        Host::Address(_) => Vec::new(),
    };
    let query = FlowQuery {
        protocol: args.to.protocol,
        destination: address(args)?,
        port: args.to.port,
        names: &names,
    };
    Ok(policy.explain(&query))
}

fn address(args: &ExplainArgs) -> anyhow::Result<IpAddr> {
    match (&args.to.host, args.address) {
        (Host::Address(_), Some(_)) => anyhow::bail!("--to has an address already; remove --address"),
        (Host::Address(address), None) => Ok(*address),
        (Host::Name(_), address) => Ok(address.unwrap_or(UNKNOWN_ADDRESS)),
    }
}

fn workload(args: &ExplainArgs) -> Workload {
    let labels = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<BTreeMap<_, _>>();
    Workload {
        namespace: args.namespace.clone(),
        labels: labels(&args.labels),
        namespace_labels: labels(&args.namespace_labels),
        service_account: args.service_account.clone(),
        ..Workload::default()
    }
}

fn print_text(
    args: &ExplainArgs,
    explanation: &Explanation,
    out: &mut dyn Write,
    paint: Paint,
) -> std::io::Result<()> {
    let labels: Vec<_> = args.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels =
        if labels.is_empty() { "without labels".to_owned() } else { format!("with {}", labels.join(",")) };
    writeln!(out, "{} from a pod of {} {labels}", args.to, args.namespace)?;
    writeln!(out, "{}\n", painted(&explanation.decision, paint))?;
    for walk in &explanation.walks {
        for line in walk.to_string().lines() {
            writeln!(out, "{}", step(line, paint))?;
        }
    }
    if matches!(args.to.host, Host::Name(_)) && args.address.is_none() {
        writeln!(
            out,
            "\nThe name's address is not known here: rules about networks are judged for {UNKNOWN_ADDRESS};"
        )?;
        writeln!(out, "give --address to judge them for a real one.")?;
    }
    Ok(())
}

/// The verdict in its colour.
fn painted(decision: &Decision, paint: Paint) -> Painted<&Decision> {
    match decision {
        Decision::Allow(permit) => match permit.verdict() {
            Verdict::Allowed => paint.good(decision),
            Verdict::Audited => paint.warning(decision),
        },
        Decision::Deny(_) => paint.bad(decision),
        Decision::ByName { .. } => paint.warning(decision),
    }
}

/// A line of the way to the verdict: the rule that decided stands out, those that did not stand back.
fn step(line: &str, paint: Paint) -> Painted<&str> {
    match line.trim_start().as_bytes().first() {
        Some(b'*') => paint.strong(line),
        Some(b'-') => paint.faint(line),
        Some(_) | None => paint.plain(line),
    }
}

#[cfg(test)]
mod tests;
