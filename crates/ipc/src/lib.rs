//! Messages between the CNI plugin and the node agent, and the seqpacket socket that carries them.
