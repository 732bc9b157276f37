//! A BPF program that spreads a TUN's packets over its queues (`TUNSETSTEERINGEBPF`): TCP by its ends, so that a flow's
//! packets are always on one queue, and everything else to the first.
//!
//! Without it the kernel spreads by a hash of its own and then by where the flow's packets were written last.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JA, BPF_JMP, BPF_LD, BPF_LSH, BPF_MUL, BPF_RSH,
    BPF_W, BPF_X, BPF_XOR, c_int,
};

/// The loaded program; it lives as long as a TUN has it or this does.
#[derive(Debug)]
pub struct QueueProgram(OwnedFd);

/// The multipliers that mix a flow's ends; whoever reads the queues spreads by the same.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    pub first: u32,
    pub second: u32,
}

impl QueueProgram {
    /// Needs `CAP_BPF`, or the right to load programs of this kind without it (`kernel.unprivileged_bpf_disabled`).
    pub fn load(mix: Mix) -> io::Result<Self> {
        load(&program(mix)).map(Self)
    }

    /// Has the TUN of this queue spread its packets, until the device is gone.
    pub fn attach(&self, queue: impl AsFd) -> io::Result<()> {
        let program: c_int = self.0.as_raw_fd();
        // SAFETY: TUNSETSTEERINGEBPF reads one int from the pointer, which is valid for the call.
        let result =
            unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const program) };
        super::check_result(result)
    }
}

// Registers: r0 takes what is loaded from the packet, r6 is the context that such loads want, r7 and r8 outlive them.
const R0: u8 = 0;
const R1: u8 = 1;
const R6: u8 = 6;
const R7: u8 = 7;
const R8: u8 = 8;

// Of linux/bpf.h; libc has those of the classic machine.
const MOV: u32 = 0xb0;
const ALU64: u32 = 0x07;
const JNE: u32 = 0x50;
const EXIT: u32 = 0x90;

/// `struct bpf_insn`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Where a jump goes: forward, to a place that is not known yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    NotIpv4,
    Hash,
    FirstQueue,
}

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn push(&mut self, code: u32, destination: u8, source: u8, immediate: u32) {
        let registers = destination | source << 4;
        self.code.push(Instruction { code: code as u8, registers, offset: 0, immediate: immediate as i32 });
    }

    fn copy(&mut self, to: u8, from: u8) {
        self.push(BPF_ALU | MOV | BPF_X, to, from, 0);
    }

    fn set(&mut self, register: u8, value: u32) {
        self.push(BPF_ALU | MOV, register, 0, value);
    }

    /// `register = register <operation> value`, in 32 bits as everything here.
    fn with(&mut self, operation: u32, register: u8, value: u32) {
        self.push(BPF_ALU | operation, register, 0, value);
    }

    /// r0 = what lies at `offset` of the packet, in host order; a packet that ends before ends the program with 0.
    fn load(&mut self, size: u32, offset: u32) {
        self.push(BPF_LD | BPF_ABS | size, R0, 0, offset);
    }

    /// r0 = the word of the packet at the offset in `register`.
    fn load_word_at(&mut self, register: u8) {
        self.push(BPF_LD | BPF_IND | BPF_W, R0, register, 0);
    }

    /// r0 = r0 ^ (r0 >> bits)
    fn fold(&mut self, bits: u32) {
        self.copy(R8, R0);
        self.with(BPF_RSH, R8, bits);
        self.push(BPF_ALU | BPF_XOR | BPF_X, R0, R8, 0);
    }

    /// Goes on if r0 is `value`.
    fn expect(&mut self, value: u32, otherwise: Label) {
        self.jumps.push((self.code.len(), otherwise));
        self.push(BPF_JMP | JNE, R0, 0, value);
    }

    fn go(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(BPF_JMP | BPF_JA, 0, 0, 0);
    }

    fn label(&mut self, label: Label) {
        let here = self.code.len();
        for &(from, _) in self.jumps.iter().filter(|(_, to)| *to == label) {
            self.code[from].offset = (here - from - 1) as i16;
        }
    }

    fn exit(&mut self) {
        self.push(BPF_JMP | EXIT, 0, 0, 0);
    }
}

/// What it ends with is cut to 16 bits by the kernel, and taken modulo the number of queues.
///
/// Offset 0 of the packet is its IP header: a TUN has no other.
fn program(mix: Mix) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    // The context is a pointer: all 64 bits.
    asm.push(ALU64 | MOV | BPF_X, R6, R1, 0);
    asm.load(BPF_B, 0);
    asm.copy(R7, R0);
    asm.with(BPF_RSH, R0, 4);
    asm.expect(4, Label::NotIpv4);
    // The header's octets; TCP, and no fragment.
    asm.with(BPF_AND, R7, 0x0f);
    asm.with(BPF_LSH, R7, 2);
    asm.load(BPF_B, 9);
    asm.expect(6, Label::FirstQueue);
    asm.load(BPF_H, 6);
    asm.with(BPF_AND, R0, 0x3fff);
    asm.expect(0, Label::FirstQueue);
    asm.load(BPF_W, 16);
    asm.go(Label::Hash);

    asm.label(Label::NotIpv4);
    asm.expect(6, Label::FirstQueue);
    // TCP at once, without extension headers.
    asm.load(BPF_B, 6);
    asm.expect(6, Label::FirstQueue);
    asm.set(R7, 40);
    asm.load(BPF_W, 36);

    // r0: the destination's last word; r7: where the ports are.
    asm.label(Label::Hash);
    asm.copy(R8, R0);
    asm.load_word_at(R7);
    asm.push(BPF_ALU | BPF_XOR | BPF_X, R0, R8, 0);
    asm.fold(16);
    asm.with(BPF_MUL, R0, mix.first);
    asm.fold(13);
    asm.with(BPF_MUL, R0, mix.second);
    asm.fold(16);
    asm.exit();

    asm.label(Label::FirstQueue);
    asm.set(R0, 0);
    asm.exit();
    asm.code
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what is left out for zero.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    const SOCKET_FILTER: u32 = 1;
    let attributes = LoadAttributes {
        kind: SOCKET_FILTER,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"tunproxy_queue\0\0",
    };
    // SAFETY: the kernel reads the attributes, and the instructions and the text that they point to; all outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
