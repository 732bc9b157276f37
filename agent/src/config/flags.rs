//! The settings as command line flags, made from the table of keys.

use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches};

use super::value::{Origin, Raw};
use super::{Config, KEYS};

const HEADING: &str = "Settings (flag over environment over file over default)";

/// The settings given as flags. Flattened into a command, it adds one flag for each key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFlags(Vec<Raw>);

impl ConfigFlags {
    pub(super) fn raw(&self) -> Vec<Raw> {
        self.0.clone()
    }
}

impl clap::Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        let defaults = Config::default();
        command.args(KEYS.iter().map(|key| {
            let default = (key.show)(&defaults).join(",");
            let sources = format!("[env: {}] [key: {}]", key.variable(), key.path);
            // What depends on the machine is described in words, so that help and man pages are the same everywhere.
            let help = if key.help.contains("[default:") {
                format!("{} {sources}", key.help)
            } else if default.is_empty() {
                format!("{}\n{sources}", key.help)
            } else {
                format!("{}\n[default: {default}] {sources}", key.help)
            };
            Arg::new(key.path)
                .long(key.flag())
                .value_name(key.value_name)
                .help(help)
                .help_heading(HEADING)
                .action(if key.is_list { ArgAction::Append } else { ArgAction::Set })
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = KEYS.iter().enumerate().filter_map(|(key, spec)| {
            let texts = matches.get_many::<String>(spec.path)?;
            let values = texts.flat_map(|text| spec.split(text)).collect();
            Some(Raw { key, values, origin: Origin::Flag(spec.flag()) })
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
