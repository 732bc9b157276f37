//! Test support: network namespaces, link emulator, simulated pod, packet builders.
