use std::process::Command;

use super::*;

#[test]
fn the_commands_resolver_is_ours_and_the_rest_of_the_file_stays() {
    let system = NamedTempFile::new().unwrap();
    fs::write(
        system.path(),
        "# mine\nsearch a.test\nnameserver 127.0.0.53\n nameserver ::1\noptions ndots:2\n",
    )
    .unwrap();
    let file = write_resolv_conf(system.path()).unwrap();
    let text = fs::read_to_string(file.path()).unwrap();
    assert_eq!(text, "nameserver 198.19.255.1\n# mine\nsearch a.test\noptions ndots:2\n");
    assert_eq!(file.as_file().metadata().unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn a_system_without_resolv_conf_is_no_failure() {
    let file = write_resolv_conf(Path::new("/nonexistent")).unwrap();
    assert_eq!(fs::read_to_string(file.path()).unwrap(), "nameserver 198.19.255.1\n");
}

#[test]
fn the_exit_code_is_the_commands_or_tells_its_signal() {
    let status = |script: &str| Command::new("sh").args(["-c", script]).status().unwrap();
    let code = |script: &str| format!("{:?}", exit_code(status(script)));
    assert_eq!(code("exit 7"), format!("{:?}", ExitCode::from(7)));
    assert_eq!(code("kill -TERM $$"), format!("{:?}", ExitCode::from(143)));
}

#[test]
fn the_resolver_is_in_the_network_of_the_tun() {
    let plan = plan(Path::new("/x"));
    assert!(plan.addresses.iter().any(|network| network.contains(&IpAddr::V4(RESOLVER))));
    assert!(plan.addresses.iter().all(|network| network.addr() != IpAddr::V4(RESOLVER)));
}
