//! etcd's command line: its flags in Go's notation, its `ETCD_*` environment and its YAML file, mapped to the settings
//! of this node.
//!
//! Every flag of etcd 3.4 to 3.7 is known. It sets something here, or has no effect here and the log says so, or is
//! refused because starting without what it asks for would be unsafe or useless.

mod arguments;
mod flags;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::fragments::{Fragments, Layer, read_text};
use super::process::Process;
use super::settings::{Mode, SETTINGS, Setting, upper_snake};
use super::source::{Problem, Source};
use super::value::Kind;
use flags::{FOREIGN, Foreign, Shape, Then};

pub use flags::markdown;

/// What an etcd command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// A node.
    Run(Fragments),
    /// `--version`.
    Version,
    /// `--help`.
    Help,
    /// Something that is not etcd's command line; the text is etcd's own where etcd has one.
    Refused(String),
}

/// A flag of etcd.
#[derive(Debug, Clone, Copy)]
enum Flag {
    /// It sets something here.
    Setting(&'static Setting),
    /// It does not.
    Foreign(&'static Foreign),
    ConfigFile,
    Version,
    Help,
}

impl Flag {
    fn named(name: &str) -> Option<Flag> {
        match name {
            "config-file" => return Some(Flag::ConfigFile),
            "version" => return Some(Flag::Version),
            "help" | "h" => return Some(Flag::Help),
            _ => {}
        }
        let setting = SETTINGS
            .iter()
            .find(|row| row.etcd_flags().any(|flag| flag == name))
            .map(Flag::Setting);
        let foreign = || {
            FOREIGN
                .iter()
                .find(|row| row.name == name || row.old.contains(&name))
                .map(Flag::Foreign)
        };
        setting.or_else(foreign)
    }

    /// Whether the flag stands for itself, without a value.
    fn is_switch(self) -> bool {
        match self {
            Flag::Setting(_) | Flag::ConfigFile => false,
            Flag::Foreign(row) => row.shape == Shape::Bool,
            Flag::Version | Flag::Help => true,
        }
    }
}

/// Every flag's name, current and old ones.
fn names() -> impl Iterator<Item = &'static str> {
    let settings = SETTINGS.iter().flat_map(Setting::etcd_flags);
    let foreign = FOREIGN
        .iter()
        .flat_map(|row| std::iter::once(row.name).chain(row.old.iter().copied()));
    settings.chain(foreign)
}

/// The text of `--help`.
pub fn usage() -> String {
    flags::usage()
}

/// Reads etcd's command line (without the program's name), environment, and the file that they name.
pub fn read(process: &Process, arguments: &[OsString]) -> Asked {
    if let Some(command) = arguments.first().and_then(|first| first.to_str())
        && matches!(command, "gateway" | "grpc-proxy")
    {
        return Asked::Refused(format!(
            "{command} is not in e2d: clients connect to the nodes themselves"
        ));
    }
    let parsed = match arguments::parse(arguments) {
        Ok(parsed) => parsed,
        Err(message) => return Asked::Refused(message),
    };
    if parsed.help {
        return Asked::Help;
    }
    if parsed.version {
        return Asked::Version;
    }
    if let Some(rest) = parsed.rest.first() {
        return Asked::Refused(format!("{rest:?} is not a valid flag"));
    }
    let mut reader = Reader {
        all: Fragments::new(Mode::Etcd),
        layer: Layer::default(),
    };
    let file = parsed
        .config_file
        .map(PathBuf::from)
        .or_else(|| process.var("ETCD_CONFIG_FILE").map(PathBuf::from));
    match file {
        Some(file) => {
            reader.ignored(process, &parsed.values, &file);
            reader.file(&file);
        }
        None => {
            reader.environment(process, &parsed.values);
            for (name, (flag, text)) in &parsed.values {
                reader.take(*flag, text, Source::Flag(format!("--{name}")));
            }
        }
    }
    let Reader { mut all, layer } = reader;
    all.layers.push(layer);
    Asked::Run(all)
}

struct Reader {
    all: Fragments,
    layer: Layer,
}

impl Reader {
    /// Notes one value, or what it has instead of an effect.
    fn take(&mut self, flag: Flag, text: &str, source: Source) {
        match flag {
            // Go's zero value: nothing is asked for.
            Flag::Setting(_) if text.is_empty() => {}
            Flag::Setting(row) => {
                self.layer
                    .set(row.id, text.into(), source, &mut self.all.problems);
            }
            Flag::Foreign(row) => self.foreign(row, text, source),
            Flag::ConfigFile | Flag::Version | Flag::Help => {}
        }
    }

    fn foreign(&mut self, row: &Foreign, text: &str, source: Source) {
        match row.asks_for_something(text) {
            Ok(false) => return,
            Ok(true) => {}
            Err(message) => {
                self.all.problems.push(Problem::new(source, message));
                return;
            }
        }
        match row.then {
            Then::NoEffect(why) => self
                .all
                .notices
                .push(format!("{source}: accepted, no effect here: {why}")),
            Then::Refused(why) => self
                .all
                .problems
                .push(Problem::new(source, format!("is refused: {why}"))),
        }
    }

    /// Takes in `ETCD_*`. A flag and a variable for the same thing end the start, as in etcd.
    fn environment(&mut self, process: &Process, flags: &BTreeMap<String, (Flag, String)>) {
        let known: BTreeMap<String, &str> = names()
            .map(|name| (format!("ETCD_{}", upper_snake(name)), name))
            .collect();
        let mut variables: Vec<_> = process
            .env
            .iter()
            .filter(|(name, value)| {
                name.as_encoded_bytes().starts_with(b"ETCD_") && !value.is_empty()
            })
            .collect();
        variables.sort();
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            if name == "ETCD_VERSION" || name == "ETCD_CONFIG_FILE" {
                continue;
            }
            let source = Source::Env(name.clone());
            let Some((flag_name, flag)) = known
                .get(&name)
                .and_then(|flag| Some((*flag, Flag::named(flag)?)))
            else {
                self.all
                    .notices
                    .push(format!("unrecognized environment variable {name}"));
                continue;
            };
            if flags.contains_key(flag_name) {
                self.all.problems.push(Problem::new(
                    source,
                    format!(
                        "conflicts with flag --{flag_name}, expected one of them: unset the variable or drop the flag"
                    ),
                ));
                continue;
            }
            match value.to_str() {
                Some(text) => self.take(flag, text, source),
                None => self
                    .all
                    .problems
                    .push(Problem::new(source, "expected UTF-8 text")),
            }
        }
    }

    /// Notes what a configuration file silences.
    fn ignored(
        &mut self,
        process: &Process,
        flags: &BTreeMap<String, (Flag, String)>,
        file: &Path,
    ) {
        let known: Vec<String> = names()
            .map(|name| format!("ETCD_{}", upper_snake(name)))
            .collect();
        let mut ignored: Vec<String> = flags.keys().map(|name| format!("--{name}")).collect();
        let variables = process.env.iter().filter_map(|(name, value)| {
            let name = name.to_str()?;
            (!value.is_empty() && known.iter().any(|k| k == name)).then(|| name.to_string())
        });
        ignored.extend(variables);
        if !ignored.is_empty() {
            ignored.sort();
            self.all.notices.push(format!(
                "ignored because the configuration file {} is given: {}",
                file.display(),
                ignored.join(", ")
            ));
        }
    }

    fn file(&mut self, path: &Path) {
        match read_text(path) {
            Ok(text) => self.yaml(path, &text),
            Err(problem) => self.all.problems.push(problem),
        }
    }

    /// Takes in the text of etcd's YAML file.
    fn yaml(&mut self, path: &Path, text: &str) {
        let leaves = match yaml::leaves(text) {
            Ok(leaves) => leaves,
            Err(yaml::Bad { line, message }) => {
                self.all.problems.push(Problem::new(
                    format!("{}:{line}", path.display()),
                    format!("is not a configuration file of etcd: {message}"),
                ));
                return;
            }
        };
        for leaf in leaves {
            let source = Source::File {
                path: path.to_path_buf(),
                line: leaf.line,
                key: leaf.key.clone(),
            };
            let Some(flag) = file_key(&leaf.key) else {
                let hint = super::source::did_you_mean(&leaf.key, names());
                self.all.notices.push(format!(
                    "{source}: unknown key is ignored, as in etcd{hint}"
                ));
                continue;
            };
            let duration = match flag {
                Flag::Setting(row) => matches!(row.kind, Kind::Duration { .. }),
                Flag::Foreign(row) => row.shape == Shape::Duration,
                _ => false,
            };
            // Go reads a duration from YAML as a number of nanoseconds.
            let digits = leaf.text.bytes().all(|b| b.is_ascii_digit());
            let text = match duration && digits && !leaf.text.is_empty() {
                true => format!("{}ns", leaf.text),
                false => leaf.text,
            };
            self.take(flag, &text, source);
        }
    }
}

/// The flag that a key of the YAML file stands for. Keys below a table are joined by points.
fn file_key(key: &str) -> Option<Flag> {
    let Some((table, key)) = key.split_once('.') else {
        return match Flag::named(key)? {
            Flag::ConfigFile | Flag::Version | Flag::Help => None,
            flag => Some(flag),
        };
    };
    let name = match (table, key) {
        ("client-transport-security", "allowed-hostname" | "allowed-hostnames") => {
            "client-cert-allowed-hostname".to_string()
        }
        ("client-transport-security", key) => key.to_string(),
        ("peer-transport-security", "allowed-cn" | "allowed-cns") => {
            "peer-cert-allowed-cn".to_string()
        }
        ("peer-transport-security", "allowed-hostname" | "allowed-hostnames") => {
            "peer-cert-allowed-hostname".to_string()
        }
        ("peer-transport-security", key) => format!("peer-{key}"),
        ("discovery-config", key) => format!("discovery-{key}"),
        ("socket-options", key) => format!("socket-{key}"),
        _ => return None,
    };
    match Flag::named(&name)? {
        flag @ Flag::Foreign(_) => Some(flag),
        _ => None,
    }
}
