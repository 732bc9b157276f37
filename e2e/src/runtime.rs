//! Real container runtimes around a CNI configuration list: cnitool (libcni) and containerd with runc.

mod image;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;
use tunproxy_testkit::process::{Background, run};
use tunproxy_testkit::{CniNetwork, Host, Namespace};

const IMAGE: &str = "localhost/busybox:test";

/// A Go program built by scripts/runtime-tools.sh.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.build/bin").join(name);
    path.canonicalize()
        .with_context(|| format!("{name} is not built; run scripts/runtime-tools.sh (make e2e does)"))
}

/// `cnitool VERB` for the namespace `pod`, run in `node`.
pub fn cnitool(node: &Namespace, network: &CniNetwork, verb: &str, pod: &Namespace) -> Result<String> {
    let directory = tempfile::tempdir()?;
    network.write_conflist(directory.path())?;
    let document = network.conflist();
    let name = document["name"].as_str().context("a network without name")?;
    let mut command = node.command(tool("cnitool")?);
    command.arg(verb).arg(name).arg(pod.path());
    command
        .env("CNI_PATH", std::env::join_paths(network.plugin_path())?)
        .env("NETCONFPATH", directory.path());
    command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=cnitool");
    run(&mut command)
}

/// containerd of its own in the node's namespace, with one image and one CNI network.
#[derive(Debug)]
pub struct Containerd {
    process: Background,
    node: Arc<Namespace>,
    directory: TempDir,
}

impl Containerd {
    pub fn start(node: &Arc<Namespace>, network: &CniNetwork) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-ctrd-").tempdir()?;
        let root = directory.path();
        network.write_conflist(&root.join("net.d"))?;
        fs::write(root.join("config.toml"), configuration(root, network))?;
        let mut command = node.command(tool("containerd")?);
        command.arg("--config").arg(root.join("config.toml"));
        // It finds its shim beside itself on the PATH, and runc in Debian's place.
        let bin = tool("containerd")?.parent().context("a tool without directory")?.display().to_string();
        command.env("PATH", format!("{bin}:/usr/sbin:/usr/bin:/sbin:/bin"));
        let mut process = Background::spawn(&mut command, "containerd", &root.join("containerd.log"))?;
        let socket = root.join("containerd.sock");
        process.wait_ready(Duration::from_secs(30), || {
            socket.exists() && crictl(node, root).and_then(|mut command| run(command.arg("info"))).is_ok()
        })?;
        let this = Self { process, node: Arc::clone(node), directory };
        this.import_image()?;
        Ok(this)
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `crictl ARGUMENTS`.
    pub fn crictl(&self, arguments: &[&str]) -> Result<String> {
        run(crictl(&self.node, self.directory.path())?.args(arguments)).map(|text| text.trim().to_owned())
    }

    /// Starts a pod sandbox with one busybox container, and gives both ids.
    pub fn run_pod(&self, name: &str) -> Result<(String, String)> {
        let root = self.directory.path();
        let (pod, container) = (root.join(format!("{name}.pod.json")), root.join(format!("{name}.ctr.json")));
        let metadata =
            json!({"name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0});
        fs::write(
            &pod,
            json!({
                "metadata": metadata,
                "log_directory": root.join("logs"),
                "dns_config": {"servers": [Host::Dns.v4()]},
                "linux": {"cgroup_parent": format!("/tpt-{}", std::process::id())},
            })
            .to_string(),
        )?;
        fs::write(
            &container,
            json!({
                "metadata": {"name": "main", "attempt": 0},
                "image": {"image": IMAGE},
                "command": ["/bin/busybox", "sleep", "100000"],
                "log_path": format!("{name}.log"),
                "linux": {},
            })
            .to_string(),
        )?;
        let (pod, container) = (pod.display().to_string(), container.display().to_string());
        let sandbox = self.crictl(&["runp", &pod])?;
        let id = self.crictl(&["create", "--no-pull", &sandbox, &container, &pod])?;
        self.crictl(&["start", &id])?;
        Ok((sandbox, id))
    }

    /// Stops and removes a sandbox with everything in it.
    pub fn remove_pod(&self, sandbox: &str) -> Result<()> {
        self.crictl(&["stopp", sandbox])?;
        self.crictl(&["rmp", sandbox]).map(drop)
    }

    fn import_image(&self) -> Result<()> {
        let archive = self.directory.path().join("busybox.tar");
        image::write_busybox(&archive, IMAGE)?;
        let mut command = self.node.command(tool("ctr")?);
        command.arg("--address").arg(self.directory.path().join("containerd.sock"));
        run(command.args(["--namespace", "k8s.io", "images", "import"]).arg(archive)).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.crictl(&["rmp", "--all", "--force"]) {
            eprintln!("removing the pods: {error:#}");
        }
        let _ = self.process.signal(rustix::process::Signal::TERM);
        let _ = self.process.wait(Duration::from_secs(10));
        // The parent of our pods' cgroups is empty now; the kernel refuses if it is not.
        let name = format!("tpt-{}", std::process::id());
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(controller.path().join(&name));
        }
    }
}

fn crictl(node: &Namespace, root: &Path) -> Result<Command> {
    let socket = format!("unix://{}", root.join("containerd.sock").display());
    let mut command = node.command(tool("crictl")?);
    command.args(["--config", "/dev/null", "--timeout", "30s"]);
    command.args(["--runtime-endpoint", &socket, "--image-endpoint", &socket]);
    Ok(command)
}

fn configuration(root: &Path, network: &CniNetwork) -> String {
    let directories: Vec<String> = network
        .plugin_path()
        .iter()
        .map(|directory| format!("{:?}", directory.display().to_string()))
        .collect();
    // restrict_oom_score_adj: where the machine denies CAP_SYS_RESOURCE, runc could not lower the score.
    format!(
        r#"version = 3
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{root}/containerd.sock"

[ttrpc]
address = "{root}/containerd.sock.ttrpc"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
disable_hugetlb_controller = true
tolerate_missing_hugetlb_controller = true
enable_selinux = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [{bin_dirs}]
conf_dir = "{root}/net.d"
max_conf_num = 1

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        root = root.display(),
        bin_dirs = directories.join(", "),
    )
}
