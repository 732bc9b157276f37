//! `tunproxy-agent self-test` on this kernel: as root and as an ordinary user, with things taken away from it, and what is
//! left of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tunproxy_testkit::{Namespace, root_or_skip, wait};

const AGENT: &str = env!("CARGO_BIN_EXE_tunproxy-agent");
const LIMIT: Duration = Duration::from_mins(1);
const NOBODY: &str = "65534";

/// A node of its own, so that nothing but the self-test can change it.
struct Node {
    namespace: Namespace,
    files: tempfile::TempDir,
}

impl Node {
    fn new(label: &str) -> Self {
        Self { namespace: Namespace::new(label).unwrap(), files: tempfile::tempdir().unwrap() }
    }

    /// The self-test, run by `before` (words of another program) if there are any.
    fn command(&self, before: &[&str], arguments: &[&str]) -> Command {
        let words = [before, &[AGENT, "self-test"], arguments].concat();
        let mut command = self.namespace.command(words[0]);
        command.args(&words[1..]).env("TMPDIR", self.files.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, before: &[&str], arguments: &[&str]) -> Output {
        self.command(before, arguments).output().unwrap()
    }

    /// Runs it for programs; its exit status and what it says.
    fn judged(&self, before: &[&str]) -> Judged {
        let output = self.run(before, &["-o", "json"]);
        let errors = text(&output.stderr);
        let document: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{errors}", text(&output.stdout)));
        Judged { code: output.status.code(), document, errors }
    }

    /// What it could leave: interfaces, addresses, rules, processes, files.
    fn traces(&self) -> (String, usize, usize) {
        let shown = ["-o addr", "rule", "-6 rule", "route show table all", "-6 route show table all"];
        let network = shown.map(|words| self.namespace.ip(words).unwrap()).concat();
        (network, self.namespace.pids().len(), fs::read_dir(self.files.path()).unwrap().count())
    }
}

/// A report.
struct Judged {
    code: Option<i32>,
    document: Value,
    errors: String,
}

impl Judged {
    /// Status by check.
    fn statuses(&self) -> BTreeMap<&str, &str> {
        let rows = self.document["rows"].as_array().unwrap();
        rows.iter().map(|row| (row["check"].as_str().unwrap(), row["status"].as_str().unwrap())).collect()
    }

    fn row(&self, check: &str) -> &Value {
        let rows = self.document["rows"].as_array().unwrap();
        rows.iter().find(|row| row["check"] == check).unwrap_or_else(|| panic!("no row {check}"))
    }

    /// The row says that it failed, and how to mend it.
    fn assert_failed(&self, check: &str, found: &str, remedy: &str) {
        let row = self.row(check);
        assert_eq!((self.code, row["status"].as_str()), (Some(1), Some("failed")), "{row}");
        assert_eq!(self.document["result"], "failed");
        assert!(row["found"].as_str().unwrap().contains(found), "{row}");
        assert!(row["remedy"].as_str().unwrap().contains(remedy), "{row}");
    }

    /// Nothing is wrong with what this kernel certainly has.
    fn assert_works(&self, except: &[&str]) {
        assert_eq!(self.code, Some(0), "{:#}{}", self.document, self.errors);
        // Limits are this machine's affair.
        let of_the_machine = ["kernel", "descriptors", "conntrack", "ephemeral-ports"];
        let others = self.statuses().into_iter().filter(|(check, _)| !of_the_machine.contains(check));
        for (check, status) in others.filter(|(check, _)| !except.contains(check)) {
            assert_eq!(status, "ok", "{}", self.row(check));
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program where an ordinary user may run it, and the words that make one of root.
fn ordinary_user() -> (tempfile::TempDir, PathBuf, Vec<&'static str>) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("agent");
    fs::copy(AGENT, &program).unwrap();
    let become_user = vec!["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    (folder, program, become_user)
}

#[test]
fn root_learns_that_this_machine_can_do_it() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("self");
    let before = node.traces();
    let judged = node.judged(&[]);
    judged.assert_works(&[]);
    assert_eq!(judged.document["privilege"], "root");
    assert_eq!(judged.document["version"], env!("CARGO_PKG_VERSION"));
    let kernel = Command::new("uname").arg("-r").output().unwrap();
    assert_eq!(judged.document["kernel"], text(&kernel.stdout).trim());
    assert_eq!(node.traces(), before);
    let for_people = text(&node.run(&[], &[]).stdout);
    for check in judged.statuses().keys() {
        assert!(for_people.contains(&format!("  {check} ")), "{check} is missing:\n{for_people}");
    }
}

/// Each check is told, in the order in which the document lists them.
#[test]
fn the_document_lists_the_checks() {
    if !root_or_skip() {
        return;
    }
    let judged = Node::new("listed").judged(&[]);
    let rows = judged.document["rows"].as_array().unwrap();
    let told: Vec<&str> = rows.iter().map(|row| row["check"].as_str().unwrap()).collect();
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/self-test.md");
    let document = fs::read_to_string(document).unwrap();
    let listed: Vec<&str> =
        document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(told, listed);
}

#[test]
fn an_ordinary_user_learns_it_too() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("user");
    let (_folder, program, mut words) = ordinary_user();
    words.extend([program.to_str().unwrap(), "self-test", "-o", "json"]);
    let output = node.namespace.command(words[0]).args(&words[1..]).output().unwrap();
    let errors = text(&output.stderr);
    let judged = Judged {
        code: output.status.code(),
        document: serde_json::from_slice(&output.stdout).unwrap(),
        errors,
    };
    judged.assert_works(&["queue-program"]);
    assert_eq!(judged.document["privilege"], "user");
}

#[test]
fn pings_are_judged_by_the_node_that_sends_them() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("pings");
    let no_raw = ["setpriv", "--bounding-set", "-net_raw", "--"];
    let judged = node.judged(&no_raw);
    judged.assert_works(&[]);
    assert!(judged.row("icmp-sockets")["found"].as_str().unwrap().starts_with("ping sockets"));
    node.namespace.sysctl("net.ipv4.ping_group_range", "1 0").unwrap();
    assert!(node.judged(&[]).row("icmp-sockets")["found"].as_str().unwrap().starts_with("raw sockets"));
    let judged = node.judged(&no_raw);
    let statuses = judged.statuses();
    assert_eq!((judged.code, statuses["icmp-sockets"]), (Some(0), "degraded"));
    assert_eq!((statuses["ping-v4"], statuses["ping-v6"]), ("skipped", "skipped"));
    assert!(judged.row("icmp-sockets")["remedy"].as_str().unwrap().contains("CAP_NET_RAW"));
}

#[test]
fn too_few_descriptors_fail_and_name_the_limit() {
    if !root_or_skip() {
        return;
    }
    let judged = Node::new("few").judged(&["prlimit", "--nofile=64:64"]);
    judged.assert_failed("descriptors", "a hard limit of 64", "LimitNOFILE");
    assert_eq!(judged.row("tcp-v4")["found"], "not tried, see descriptors");
}

#[test]
fn a_missing_tun_driver_fails_and_names_the_module() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("notun");
    // Read-only, or the device node is made again.
    let hide = "mount -t tmpfs -o ro tmpfs /dev/net && exec \"$0\" \"$@\"";
    let judged = node.judged(&["unshare", "--mount", "sh", "-c", hide]);
    judged.assert_failed("tun", "/dev/net/tun is absent", "modprobe tun");
    assert_eq!(judged.statuses()["udp-v6"], "skipped");
}

#[test]
fn settings_that_cannot_be_written_fail_and_are_named() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("ro");
    let protect =
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    let judged = node.judged(&["unshare", "--mount", "sh", "-c", protect]);
    judged.assert_failed("steering", "/proc/sys/net/", "a writable /proc/sys/net");
    assert_eq!((judged.statuses()["ping-v4"], judged.statuses()["tcp-v4"]), ("skipped", "ok"));
}

#[test]
fn where_it_cannot_run_it_says_why_and_the_way_out() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("cannot");
    let output = node.run(&["setpriv", "--bounding-set", "-sys_admin", "--"], &["-o", "json"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stdout));
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    assert!(said.contains("no network namespace") && said.contains("CAP_SYS_ADMIN"), "{said}");
    let output = node.run(&[], &["--outptu", "json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--output"), "{}", text(&output.stderr));
}

/// Names and addresses are the same in each: they must not meet.
#[test]
fn several_run_at_once() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("both");
    let start = || node.command(&[], &["-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let running: [Child; 3] = std::array::from_fn(|_| start());
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    }
}

/// The network namespace a process is in, as the kernel names it; `None` when there is no process.
fn network_of(pid: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new("ended");
    let before = node.traces();
    let outside = network_of("self");
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15), (Signal::KILL, 9)] {
        let mut child = node.command(&[], &[]).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id().to_string();
        let node_network = node.namespace.enter(|| network_of("thread-self"));
        let mut own = None;
        wait::until_true("the self-test in a network of its own", LIMIT, || {
            own = network_of(&pid).filter(|found| Some(found) != node_network.as_ref());
            own.as_ref().is_some_and(|found| Some(found) != outside.as_ref())
        })
        .unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(number));
        let name = own.unwrap().display().to_string();
        let inode = name.trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
        let listed = || Command::new("lsns").args(["-t", "net", "-n", "-r", "-o", "NS"]).output().unwrap();
        wait::until_true("the end of its namespace", LIMIT, || {
            !text(&listed().stdout).lines().any(|line| line.trim() == inode)
        })
        .unwrap();
    }
    assert_eq!(node.traces(), before);
}
