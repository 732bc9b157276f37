//! Segments the pod sends, and what it sees of ours. Sequence numbers are relative: 0 is the SYN, 1 the first octet.

use std::net::SocketAddr;

use tunproxy_testkit::packet::{self, Checksum, Tcp, flags};

pub use tunproxy_testkit::packet::flags::{ACK, FIN, PSH, RST, SYN, URG};

/// A segment of the pod.
#[derive(Clone, Debug)]
pub struct Seg {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    pub checksum: Checksum,
}

pub fn seg(flags: u8, seq: u32, ack: u32) -> Seg {
    Seg {
        seq,
        ack,
        flags,
        window: 65_535,
        urgent: 0,
        options: Vec::new(),
        payload: Vec::new(),
        checksum: Checksum::Right,
    }
}

pub fn syn() -> Seg {
    seg(SYN, 0, 0)
}

pub fn ack(seq: u32, ack: u32) -> Seg {
    seg(ACK, seq, ack)
}

pub fn data(seq: u32, ack: u32, payload: &[u8]) -> Seg {
    Seg { payload: payload.to_vec(), ..seg(ACK | PSH, seq, ack) }
}

pub fn fin(seq: u32, ack: u32) -> Seg {
    seg(FIN | ACK, seq, ack)
}

pub fn rst(seq: u32) -> Seg {
    seg(RST, seq, 0)
}

impl Seg {
    pub fn win(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Raw option octets, as they are.
    pub fn raw(mut self, octets: &[u8]) -> Self {
        self.options.extend_from_slice(octets);
        self
    }

    pub fn mss(self, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        self.raw(&[2, 4, high, low])
    }

    pub fn wscale(self, shift: u8) -> Self {
        self.raw(&[1, 3, 3, shift])
    }

    pub fn sack_ok(self) -> Self {
        self.raw(&[1, 1, 4, 2])
    }

    pub fn ts(self, value: u32, echo: u32) -> Self {
        let mut option = vec![1, 1, 8, 10];
        option.extend(value.to_be_bytes());
        option.extend(echo.to_be_bytes());
        self.raw(&option)
    }

    pub(crate) fn build(&self, ends: (SocketAddr, SocketAddr), irs: u32, iss: u32) -> Vec<u8> {
        let carries_ack = self.flags & ACK != 0;
        let tcp = Tcp {
            seq: self.seq.wrapping_add(irs),
            ack: if carries_ack { self.ack.wrapping_add(iss) } else { self.ack },
            flags: self.flags,
            window: self.window,
            urgent: self.urgent,
            options: self.options.clone(),
            payload: self.payload.clone(),
            checksum: self.checksum,
            ..Tcp::new(ends.0, ends.1)
        };
        tcp.build()
    }
}

/// A segment of ours as it reached the pod. The methods assert, and hand it on.
#[derive(Clone, Debug)]
pub struct Seen {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub mss: Option<u16>,
    pub wscale: Option<u8>,
    pub sack_ok: bool,
    pub ts: Option<(u32, u32)>,
    /// As they stand in the segment, not relative.
    pub sack: Vec<(u32, u32)>,
    pub payload: Vec<u8>,
    pub length: usize,
    pub irs: u32,
}

impl Seen {
    pub(crate) fn parse(packet: &[u8], irs: u32, iss: u32) -> Self {
        let (_, _, header) = packet::addresses(packet);
        let tcp = &packet[header..];
        let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let offset = usize::from(tcp[12] >> 4) * 4;
        let flags = tcp[13];
        let mut seen = Self {
            flags,
            seq: word(4).wrapping_sub(iss),
            ack: if flags & ACK != 0 { word(8).wrapping_sub(irs) } else { word(8) },
            window: u16::from_be_bytes([tcp[14], tcp[15]]),
            mss: None,
            wscale: None,
            sack_ok: false,
            ts: None,
            sack: Vec::new(),
            payload: tcp[offset..].to_vec(),
            length: packet.len(),
            irs,
        };
        seen.read_options(&tcp[20..offset]);
        seen
    }

    fn read_options(&mut self, mut options: &[u8]) {
        let word = |at: &[u8]| u32::from_be_bytes([at[0], at[1], at[2], at[3]]);
        while let Some(&kind) = options.first() {
            if kind < 2 {
                options = &options[1..];
                continue;
            }
            let (option, rest) = options.split_at(usize::from(options[1]));
            match kind {
                2 => self.mss = Some(u16::from_be_bytes([option[2], option[3]])),
                3 => self.wscale = Some(option[2]),
                4 => self.sack_ok = true,
                5 => self.sack.extend(option[2..].chunks(8).map(|block| (word(block), word(&block[4..])))),
                8 => self.ts = Some((word(&option[2..]), word(&option[6..]))),
                other => panic!("we never send option {other}"),
            }
            options = rest;
        }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers it takes.
    pub fn len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    #[track_caller]
    pub fn seq(&self, seq: u32) -> &Self {
        assert_eq!(self.seq, seq, "sequence number of {self:?}");
        self
    }

    #[track_caller]
    pub fn ack(&self, ack: u32) -> &Self {
        assert!(self.has(flags::ACK), "no ACK in {self:?}");
        assert_eq!(self.ack, ack, "acknowledgment of {self:?}");
        self
    }

    #[track_caller]
    pub fn win(&self, window: u16) -> &Self {
        assert_eq!(self.window, window, "window of {self:?}");
        self
    }

    #[track_caller]
    pub fn payload(&self, payload: &[u8]) -> &Self {
        assert!(self.payload == payload, "{} octets where {} were due", self.payload.len(), payload.len());
        self
    }

    #[track_caller]
    pub fn len_is(&self, octets: usize) -> &Self {
        assert_eq!(self.payload.len(), octets, "octets of {self:?}");
        self
    }

    /// SACK blocks, relative to the pod's sequence numbers.
    #[track_caller]
    pub fn sacks(&self, blocks: &[(u32, u32)]) -> &Self {
        let relative: Vec<_> =
            self.sack.iter().map(|&(s, e)| (s.wrapping_sub(self.irs), e.wrapping_sub(self.irs))).collect();
        assert_eq!(relative, blocks, "SACK blocks");
        self
    }
}
