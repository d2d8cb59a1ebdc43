//! Go's notation of flags: one dash or two, `-x=v` or `-x v`, switches take a value only with `=`, the last one wins,
//! and the first argument that is no flag ends them. Messages are etcd's own, since scripts look for them.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::Flag;

/// A command line taken apart.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// By name as it was typed.
    pub(super) values: BTreeMap<String, (Flag, String)>,
    pub(super) config_file: Option<String>,
    pub(super) version: bool,
    pub(super) help: bool,
    /// What follows the flags.
    pub(super) rest: Vec<String>,
}

pub(super) fn parse(arguments: &[OsString]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = utf8(argument)?;
        let name = match text.strip_prefix('-') {
            Some("") | None => {
                parsed.rest.push(text.to_string());
                break;
            }
            Some("-") => break,
            Some(one) => one.strip_prefix('-').unwrap_or(one),
        };
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(format!("bad flag syntax: {text}"));
        }
        let Some(flag) = Flag::named(name) else {
            return Err(format!("flag provided but not defined: -{name}"));
        };
        let value = match given {
            Some(value) => value.to_string(),
            None if flag.is_switch() => "true".into(),
            None => match arguments.next() {
                Some(value) => utf8(value)?.to_string(),
                None => return Err(format!("flag needs an argument: -{name}")),
            },
        };
        match flag {
            Flag::Version => parsed.version = switch(name, &value)?,
            Flag::Help => {
                // Go answers a request for help at once, whatever follows.
                parsed.help = switch(name, &value)?;
                if parsed.help {
                    return Ok(parsed);
                }
            }
            Flag::ConfigFile => parsed.config_file = Some(value).filter(|path| !path.is_empty()),
            Flag::Setting(_) | Flag::Foreign(_) => {
                parsed.values.insert(name.to_string(), (flag, value));
            }
        }
    }
    for argument in arguments {
        parsed.rest.push(utf8(argument)?.to_string());
    }
    Ok(parsed)
}

fn utf8(argument: &OsString) -> Result<&str, String> {
    argument
        .to_str()
        .ok_or_else(|| format!("expected UTF-8 text, found {argument:?}"))
}

fn switch(name: &str, value: &str) -> Result<bool, String> {
    super::flags::go_bool(value)
        .ok_or_else(|| format!("invalid boolean value {value:?} for -{name}: parse error"))
}
