//! `tunproxy-agent tun`: serve a TUN of this namespace.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use ipnet::IpNet;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use tokio::signal::unix::{SignalKind, signal};
use tunproxy_linux_net::Netlink;
use tunproxy_linux_net::host_tun::{HostPlan, HostTun};
use tunproxy_linux_net::tun::{self, TunSpec};

use crate::cli::TunArgs;
use crate::config::LogFormat;
use crate::flowlog::Recorder;
use crate::logging;
use crate::policies::Trigger;
use crate::session::{Governed, Session, Wire, open_log};
use crate::worker::{FlowSink, MAX_SHARDS};

const MTU: u16 = 1500;
/// Of the range for benchmarks (RFC 2544), which nobody routes, and of this program's ULA prefix.
const SETUP_ADDRESSES: [&str; 2] = ["198.19.254.1/30", "fdb4:7c1e:52a9:1::1/64"];

/// Serves until a signal stops it.
pub fn run(args: &TunArgs, no_color: bool) -> anyhow::Result<ExitCode> {
    logging::start(&args.log_level, LogFormat::Text, no_color)?;
    let governed = Governed::read(&args.policy, None)?;
    let log = open_log(args.record.log.as_deref())?;
    let mut device = Device::open(args)?;
    let wire = Wire {
        queues: std::mem::take(&mut device.queues),
        vnet_header: device.vnet_header,
        // A TUN may route for others.
        addresses: Vec::new(),
        mtu: device.mtu,
        dns_alias: None,
        record_begin: args.record.log_begin,
        mark: device.set_up.is_some().then_some(args.mark),
    };
    let sink: Arc<dyn FlowSink> = Arc::new(Recorder::new(log));
    let session = Session::start(&governed, wire, &sink)?;
    session.follow_documents(&governed);
    tracing::info!(device = device.name, upstream = args.policy.upstream_shown(), "serving");
    session.runtime.block_on(wait_for_stop(&session))?;
    session.stop();
    tracing::info!(device = device.name, "stopped");
    // The routes go first and the device after the flows: nothing is led into a TUN that nobody serves.
    device.close()
}

/// The TUN and what was set up for it.
struct Device {
    name: String,
    queues: Vec<OwnedFd>,
    vnet_header: bool,
    mtu: u16,
    set_up: Option<HostTun>,
}

impl Device {
    fn open(args: &TunArgs) -> anyhow::Result<Self> {
        match (&args.device, args.fd) {
            (_, Some(fd)) => Self::adopt(fd),
            (Some(name), None) if args.setup => Self::set_up(name, args.mark),
            (Some(name), None) => Self::by_name(name),
            (None, None) => bail!("name a TUN with --device, or hand one over with --fd"),
        }
    }

    fn adopt(fd: RawFd) -> anyhow::Result<Self> {
        let inherited = inherited(fd).with_context(|| format!("--fd {fd} cannot be used"))?;
        let adopted = tun::adopt(inherited).with_context(|| format!("--fd {fd}"))?;
        let mtu = mtu_of(&adopted.name)?.unwrap_or_else(|| {
            tracing::info!(
                device = adopted.name,
                mtu = MTU,
                "the device is in another namespace; its MTU is assumed"
            );
            MTU
        });
        Ok(Self {
            name: adopted.name,
            queues: vec![adopted.queue],
            vnet_header: adopted.vnet_header,
            mtu,
            set_up: None,
        })
    }

    fn set_up(name: &str, mark: u32) -> anyhow::Result<Self> {
        let addresses =
            SETUP_ADDRESSES.iter().map(|text| text.parse::<IpNet>().expect("a constant")).collect();
        let plan = HostPlan { name: name.to_owned(), queues: queues(), mtu: u32::from(MTU), addresses, mark };
        let mut host = HostTun::set_up(&plan)?;
        let queues = std::mem::take(&mut host.tun.queues);
        Ok(Self {
            name: name.to_owned(),
            queues,
            vnet_header: true,
            mtu: mtu_here(name)?,
            set_up: Some(host),
        })
    }

    fn by_name(name: &str) -> anyhow::Result<Self> {
        let mut netlink = Netlink::open()?;
        let existing = netlink.link(name)?;
        if existing.as_ref().is_some_and(|link| link.tun.is_none_or(|info| !info.is_tun)) {
            bail!("--device {name}: that interface is no TUN; name one, or a name that is free");
        }
        let tun = if existing.is_some() {
            tun::reopen(&mut netlink, name, queues())?
        } else {
            let spec = TunSpec { name, queues: queues(), mtu: u32::from(MTU), persistent: None };
            tun::create(&mut netlink, &spec)?
        };
        Ok(Self { name: tun.name, queues: tun.queues, vnet_header: true, mtu: mtu_here(name)?, set_up: None })
    }

    fn close(self) -> anyhow::Result<ExitCode> {
        if let Some(host) = self.set_up {
            host.remove().context("not everything that --setup made could be removed")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A duplicate of a descriptor that the parent process left open for us, by way of a descriptor of this process: the
/// kernel checks that the number is one.
fn inherited(fd: RawFd) -> rustix::io::Result<OwnedFd> {
    let myself = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    rustix::process::pidfd_getfd(myself.as_fd(), fd, PidfdGetfdFlags::empty())
}

/// `None`: there is no such device in this namespace.
fn mtu_of(name: &str) -> anyhow::Result<Option<u16>> {
    let link = Netlink::open()?.link(name)?;
    Ok(link.map(|link| u16::try_from(link.mtu).unwrap_or(u16::MAX)))
}

fn mtu_here(name: &str) -> anyhow::Result<u16> {
    mtu_of(name)?.with_context(|| format!("{name} is gone"))
}

/// One for each core: the kernel spreads flows over them.
fn queues() -> u16 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_SHARDS) as u16)
}

async fn wait_for_stop(session: &Session) -> anyhow::Result<()> {
    let listen = |kind| signal(kind).context("signals cannot be caught");
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hang_up.recv() => session.reload.run(Trigger::Signal).await,
        }
    }
}
