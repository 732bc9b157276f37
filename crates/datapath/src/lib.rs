//! Sans-IO userspace datapath: packets, flow table, TCP engine, UDP, ICMP, DNS observation.
