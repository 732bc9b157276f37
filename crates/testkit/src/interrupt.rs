//! SIGINT, SIGTERM and SIGHUP as an error between two steps of a long program: what it made goes as after a failure.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether a signal came. A second one ends the process at once, whatever it then leaves.
#[derive(Debug)]
pub struct Interrupt {
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    fn listen() -> Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&again))
                .and_then(|_| flag::register(number, Arc::clone(&again)))
                .and_then(|_| flag::register_usize(number, Arc::clone(&signal), number as usize))
                .with_context(|| format!("cannot listen for signal {number}"))?;
        }
        Ok(Self { signal })
    }

    /// Runs a program: an error of its work is printed after its `name`, and becomes its status.
    pub fn run(name: &str, work: impl FnOnce(&Self) -> Result<ExitCode>) -> ExitCode {
        let failed = |error: &anyhow::Error, status| {
            eprintln!("{name}: {error:#}");
            status
        };
        match Self::listen() {
            Ok(interrupt) => work(&interrupt).unwrap_or_else(|error| failed(&error, interrupt.exit_code())),
            Err(error) => failed(&error, ExitCode::FAILURE),
        }
    }

    /// An error once a signal came.
    pub fn check(&self) -> Result<()> {
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => bail!("interrupted by signal {number}"),
        }
    }

    /// The status of a program that failed: as a shell has it for the signal that came, else 1. A terminal sends its
    /// signals to the program's children too, so any step may have failed for it.
    fn exit_code(&self) -> ExitCode {
        match self.signal.load(Ordering::Relaxed) {
            0 => ExitCode::FAILURE,
            number => ExitCode::from(128 + number as u8),
        }
    }
}
