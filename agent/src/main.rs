//! The node agent's program: reads the command line and calls the library.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory, FromArgMatches};
use tunproxy_agent::causes::told;
use tunproxy_agent::cli::{Cli, Command, CompletionsArgs, ManArgs};
use tunproxy_agent::paint::Paint;
use tunproxy_agent::{commands, exec, self_test, serve, tun};

/// Exit status when explain, validate or self-test cannot answer: 1 says "denied", "mistakes" or "failed".
const UNANSWERED: u8 = 2;

fn main() -> ExitCode {
    let cli = parse();
    let no_color = cli.no_color;
    let (result, failed) = match cli.command {
        Command::Serve(args) => {
            serve::restart_with_small_caches();
            (serve::run(&args, no_color), 1)
        }
        Command::Exec(args) => (exec::run(&args, no_color), exec::FAILED),
        Command::Tun(args) => (tun::run(&args, no_color), 1),
        Command::Explain(args) => {
            (answer(no_color, |out, paint| commands::explain::run(&args, out, paint)), UNANSWERED)
        }
        Command::Validate(args) => {
            (answer(no_color, |out, paint| commands::validate::run(&args, out, paint)), UNANSWERED)
        }
        Command::SelfTest(args) => {
            (answer(no_color, |out, paint| self_test::run(&args, no_color, out, paint)), UNANSWERED)
        }
        Command::Pcap(args) => (commands::pcap::run(&args), 1),
        Command::Completions(args) => (print_completions(&args), 1),
        Command::Man(args) => (print_manual(&args), 1),
        Command::ExecInit(args) => return exec::init::run(&args.command),
    };
    result.unwrap_or_else(|error| fail(&error, failed, no_color))
}

/// `--no-color` counts for the help and the errors of the command line too, so it is looked for before the rest.
fn parse() -> Cli {
    let no_color =
        std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--no-color");
    let color = if no_color { ColorChoice::Never } else { ColorChoice::Auto };
    let matches = Cli::command().color(color).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn answer(
    no_color: bool,
    run: impl FnOnce(&mut dyn Write, Paint) -> anyhow::Result<u8>,
) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let paint = Paint::of(&out, no_color);
    let code = run(&mut out, paint)?;
    out.flush()?;
    Ok(ExitCode::from(code))
}

/// Several mistakes are told as they are, one a line, for tools that jump to them.
fn fail(error: &anyhow::Error, status: u8, no_color: bool) -> ExitCode {
    let text = told(error);
    let mut out = std::io::stderr().lock();
    let label = Paint::of(&out, no_color).error("error:");
    // With standard error gone there is only the exit status left to tell.
    let _ = if text.contains('\n') { writeln!(out, "{text}") } else { writeln!(out, "{label} {text}") };
    ExitCode::from(status)
}

fn print_completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut command = Cli::offered();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tunproxy-agent", &mut text);
    // clap_complete 4.6 spells the hyphen of the program's name in two ways for bash, and no subcommand is found.
    let text = String::from_utf8(text)?.replace("tunproxy__subcmd__agent", "tunproxy__agent");
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn print_manual(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let Some(folder) = &args.out else {
        let mut text = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut text)?;
        std::io::stdout().lock().write_all(&text)?;
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)?;
    if std::io::stderr().is_terminal() {
        eprintln!("manual pages written to {}", folder.display());
    }
    Ok(ExitCode::SUCCESS)
}
