//! The agent on a real terminal: colours, and the keys that stop and continue a command.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tunproxy_testkit::{Topology, Wire, root_or_skip, wait};

const AGENT: &str = env!("CARGO_BIN_EXE_tunproxy-agent");
const LIMIT: Duration = Duration::from_mins(1);
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";

const POLICY: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: default}
spec: {rules: [{name: site, action: Allow, to: [{domains: [good.test]}]}]}
";

/// A program on a terminal of its own, which script(1) makes.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn run(mut script: Command, program: &str) -> Self {
        script.args(["-qefc", program, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let seen = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                seen.lock().unwrap().extend(&bytes[..len]);
            }
        });
        let keys = child.stdin.take().unwrap();
        Self { child, keys, screen }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        self.wait_for_nth(1, text);
    }

    #[track_caller]
    fn wait_for_nth(&self, times: usize, text: &str) {
        let shown = wait::until_true(text, LIMIT, || self.shown().matches(text).count() >= times);
        assert!(shown.is_ok(), "{text:?} was not shown {times} times, but: {}", self.shown());
    }

    fn end(mut self) -> String {
        wait::until_true("the end", LIMIT, || self.child.try_wait().unwrap().is_some()).unwrap();
        self.shown()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its hang-up ends what runs on the terminal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An interactive shell on the node. What it echoes of the input is told from output by quotes: `re''ady`.
fn shell(topology: &Topology) -> Terminal {
    let mut terminal =
        Terminal::run(topology.node.command_with_resolver("script"), "bash --norc --noprofile -i");
    terminal.press("PS1='pro''mpt> '; bind 'set enable-bracketed-paste off'\n");
    terminal.wait_for("prompt> ");
    terminal
}

#[test]
fn control_c_reaches_the_command_once_and_its_end_is_told() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let mut terminal = shell(&topology);
    terminal.press(&format!("{AGENT} exec -- sh -c 'echo re\"\"ady; exec sleep 1000'; echo status\"\"=$?\n"));
    terminal.wait_for("ready");
    terminal.press(CTRL_C);
    terminal.wait_for("status=130");

    // A command that goes on: the agent, which the same key reached, must neither end nor send it again.
    let script =
        "trap \"n=\\$((n+1))\" INT; echo wai\"\"ting; while ! read line; do :; done; echo $line$n; exit 7";
    terminal.press(&format!("{AGENT} exec -- bash -c '{script}'; echo left\"\"=$?\n"));
    terminal.wait_for("waiting");
    terminal.press(CTRL_C);
    terminal.press("count\n");
    terminal.wait_for("count1");
    terminal.wait_for("left=7");
}

#[test]
fn control_z_stops_the_command_and_fg_continues_it() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let mut terminal = shell(&topology);
    terminal.press(&format!("{AGENT} exec -- sh -c 'echo re\"\"ady; exec cat'; echo status\"\"=$?\n"));
    terminal.wait_for("ready");
    terminal.press(CTRL_Z);
    terminal.wait_for("Stopped");
    // The shell has the terminal again.
    terminal.press("echo in''between\n");
    terminal.wait_for("inbetween");
    // What is typed while the shell still reads keys by itself would not be a line for cat: fg says when it does not.
    terminal.press("fg; echo ended''=$?\n");
    terminal.wait_for_nth(3, "exec cat'");
    terminal.press("once more\n");
    // As it is typed, and as cat says it.
    terminal.wait_for_nth(2, "once more");
    terminal.press(CTRL_D);
    terminal.wait_for("ended=0");
}

#[test]
fn a_terminal_is_coloured_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let there = policy.display();
    for (line, colour) in [
        (format!("explain --policy {there} --to good.test:443"), "\x1b[32mallowed by"),
        (format!("explain --policy {there} --to bad.test:443"), "\x1b[31mdenied by"),
        (format!("validate {there}"), "\x1b[32mno mistakes"),
        ("validate /nonexistent.yaml".to_owned(), "\x1b[1m/nonexistent.yaml:"),
        ("serve --config /nonexistent".to_owned(), "\x1b[1;31merror:"),
    ] {
        let shown = |before: &str, after: &str| {
            Terminal::run(Command::new("script"), &format!("{before} {AGENT} {line} {after}")).end()
        };
        let on_terminal = shown("", "");
        assert!(on_terminal.contains(colour), "{line}: {on_terminal:?}");
        for plain in [
            shown("NO_COLOR=1", ""),
            shown("TERM=dumb", ""),
            shown("", "--no-color"),
            shown("", "2>&1 | cat"),
        ] {
            assert!(!plain.contains('\x1b') && plain.contains(':'), "{line}: {plain:?}");
        }
    }
}
