//! What the agent tells the C library's allocator, which only the environment can.

use std::fs;

use tunproxy_testkit::root_or_skip;

use crate::lab::Lab;

/// The value of the variable in the process's environment.
fn tunables(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let mut entries = environment.split(|octet| *octet == 0);
    entries
        .find_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("GLIBC_TUNABLES=").map(str::to_owned))
}

#[test]
#[cfg(target_env = "gnu")]
fn threads_keep_hardly_any_free_memory_unless_the_environment_says_otherwise() {
    if !root_or_skip() {
        return;
    }
    let own = "glibc.malloc.arena_max=3";
    for (settings, expected) in
        [(vec![], "glibc.malloc.tcache_count=1"), (vec![("GLIBC_TUNABLES", own)], own)]
    {
        let lab = Lab::new();
        let agent = lab.agent_with(&settings);
        assert_eq!(tunables(agent.pid()).as_deref(), Some(expected));
        let name = fs::read_to_string(format!("/proc/{}/comm", agent.pid())).unwrap();
        assert_eq!(name.trim_end(), "tunproxy-agent");
    }
}
