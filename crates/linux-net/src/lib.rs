//! Network namespaces, rtnetlink, TUN devices, sysctls: every unsafe block of the workspace.
