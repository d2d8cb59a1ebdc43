//! Settings as they were written: text, and where it stands. Nothing is interpreted here beyond the question which
//! setting is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::process::Process;
use super::settings::{ABSENT, Id, Mode, SETTINGS, Setting};
use super::source::{Problem, Source, did_you_mean};

/// The directories of configuration files. A drop-in in an earlier one hides its namesake in a later one, as in
/// systemd.
pub const ROOTS: [&str; 2] = ["/etc/e2d", "/run/e2d"];

/// The variable that names the configuration file, as `--config` does.
pub const CONFIG_ENV: &str = "E2D_CONFIG";

/// The flag whose number of occurrences is a log level.
pub const VERBOSE: &str = "verbose";

/// A value as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) text: String,
    pub(super) source: Source,
}

/// What one origin (a file, the environment, the command line) says. A setting that it does not mention is absent.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    values: BTreeMap<Id, Written>,
}

impl Layer {
    pub(super) fn get(&self, id: Id) -> Option<&Written> {
        self.values.get(&id)
    }

    /// Notes a value. Two names of one setting in one origin contradict each other, even with equal values: whoever
    /// changes one of them later would be surprised.
    pub(super) fn set(
        &mut self,
        id: Id,
        text: String,
        source: Source,
        problems: &mut Vec<Problem>,
    ) {
        if let Some(first) = self.values.get(&id) {
            problems.push(Problem::new(
                &source,
                format!(
                    "says again what {} says, expected one of them",
                    first.source
                ),
            ));
            return;
        }
        self.values.insert(id, Written { text, source });
    }
}

/// Everything that was written, lowest precedence first.
#[derive(Debug, Clone)]
pub struct Fragments {
    pub(super) mode: Mode,
    pub(super) layers: Vec<Layer>,
    pub(super) problems: Vec<Problem>,
    pub(super) notices: Vec<String>,
}

impl Fragments {
    /// Nothing written.
    pub fn new(mode: Mode) -> Self {
        Fragments {
            mode,
            layers: Vec::new(),
            problems: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Everything that `e2d run` looks at: files, over them the environment, over it `flags` as (name without
    /// dashes, value), where `verbose` has a log level as its value.
    ///
    /// With `config`, or `E2D_CONFIG` in its absence, that file and its drop-ins in `FILE.d` are read and `roots` are
    /// not.
    pub fn read(
        process: &Process,
        roots: &[PathBuf],
        config: Option<&Path>,
        flags: &[(String, OsString)],
    ) -> Self {
        let mut all = Fragments::new(Mode::Run);
        let named = config
            .map(Path::to_path_buf)
            .or_else(|| process.var(CONFIG_ENV).map(PathBuf::from));
        match named {
            Some(file) => all.named_file(&file),
            None => all.standard_files(roots),
        }
        all.environment(process);
        all.flags(flags);
        all
    }

    /// What a configuration file and its drop-ins say, and nothing else.
    pub fn file(path: &Path) -> Self {
        let mut all = Fragments::new(Mode::Run);
        all.named_file(path);
        all
    }

    /// What the configuration files in `roots` say, and nothing else.
    pub fn files(roots: &[PathBuf]) -> Self {
        let mut all = Fragments::new(Mode::Run);
        all.standard_files(roots);
        all
    }

    fn named_file(&mut self, path: &Path) {
        self.toml_file(path);
        let mut drop_ins = path.as_os_str().to_owned();
        drop_ins.push(".d");
        self.drop_ins(&[PathBuf::from(drop_ins)]);
    }

    fn standard_files(&mut self, roots: &[PathBuf]) {
        let mains: Vec<PathBuf> = roots.iter().map(|root| root.join("e2d.toml")).collect();
        // A file that cannot be looked at is not a file that does not exist.
        if let Some(main) = mains
            .iter()
            .find(|main| !matches!(main.try_exists(), Ok(false)))
        {
            self.toml_file(main);
        }
        let dirs: Vec<PathBuf> = roots.iter().map(|root| root.join("e2d.toml.d")).collect();
        self.drop_ins(&dirs);
    }

    fn drop_ins(&mut self, dirs: &[PathBuf]) {
        let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for dir in dirs {
            let entries = match std::fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    self.problems.push(Problem::new(
                        dir.display(),
                        format!("cannot be listed: {e}"),
                    ));
                    continue;
                }
            };
            for entry in entries {
                match entry {
                    Ok(entry) if entry.path().extension() == Some(OsStr::new("toml")) => {
                        files.entry(entry.file_name()).or_insert(entry.path());
                    }
                    Ok(_) => {}
                    Err(e) => self.problems.push(Problem::new(
                        dir.display(),
                        format!("cannot be listed: {e}"),
                    )),
                }
            }
        }
        for file in files.values() {
            self.toml_file(file);
        }
    }

    fn toml_file(&mut self, path: &Path) {
        match read_text(path) {
            Ok(text) => self.toml(path, &text),
            Err(problem) => self.problems.push(problem),
        }
    }

    /// Takes in the text of a TOML file. `path` is for messages alone.
    pub fn toml(&mut self, path: &Path, text: &str) {
        let line = |offset: usize| {
            let before = text.as_bytes().iter().take(offset);
            1 + before.filter(|byte| **byte == b'\n').count()
        };
        let place = |offset: usize| format!("{}:{}", path.display(), line(offset));
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What could be recovered from a broken file would add errors that are none.
            for error in errors {
                let offset = error.span().map_or(0, |span| span.start);
                self.problems.push(Problem::new(
                    place(offset),
                    format!("is not valid TOML: {}", error.message().replace('\n', ", ")),
                ));
            }
            return;
        }
        let sections: BTreeSet<&str> = SETTINGS
            .iter()
            .filter(|s| !s.name.is_empty())
            .map(|s| s.section)
            .collect();
        let mut layer = Layer::default();
        // Tables come sorted by name; problems are reported by line.
        let mut found = Vec::new();
        for (section, value) in table.get_ref() {
            let name = section.get_ref().as_ref();
            let at = place(section.span().start);
            let Some(known) = sections.get(name) else {
                let hint = match section_of(name) {
                    Some(setting) => {
                        format!(", did you mean {} in [{}]?", setting.name, setting.section)
                    }
                    None => did_you_mean(name, sections.iter().copied()),
                };
                found.push((
                    section.span().start,
                    Problem::new(at, format!("there is no section {name:?}{hint}")),
                ));
                continue;
            };
            let DeValue::Table(keys) = value.get_ref() else {
                found.push((
                    section.span().start,
                    Problem::new(at, format!("expected the section [{known}], found a value")),
                ));
                continue;
            };
            for (key, value) in keys {
                let offset = key.span().start;
                let key = key.get_ref().as_ref();
                let source = Source::File {
                    path: path.to_path_buf(),
                    line: line(offset),
                    key: format!("{name}.{key}"),
                };
                let row = SETTINGS
                    .iter()
                    .find(|s| s.section == *known && s.name == key);
                let Some(row) = row else {
                    let message = unknown_key(key, known);
                    found.push((offset, Problem::new(source, message)));
                    continue;
                };
                match toml_text(row, value.get_ref()) {
                    Ok(text) => layer.set(row.id, text, source, &mut self.problems),
                    Err(message) => found.push((offset, Problem::new(source, message))),
                }
            }
        }
        found.sort_by_key(|(offset, _)| *offset);
        self.problems
            .extend(found.into_iter().map(|(_, problem)| problem));
        self.layers.push(layer);
    }

    fn environment(&mut self, process: &Process) {
        let mut layer = Layer::default();
        let mut names: Vec<&(OsString, OsString)> = process.env.iter().collect();
        names.sort();
        for (name, value) in names {
            if !name.as_encoded_bytes().starts_with(b"E2D_") || value.is_empty() {
                continue;
            }
            let name = name.to_string_lossy().into_owned();
            if name == CONFIG_ENV {
                continue;
            }
            let source = Source::Env(name.clone());
            let row = SETTINGS.iter().find(|s| s.env().as_ref() == Some(&name));
            if let Some(row) = row {
                match value.to_str() {
                    Some(text) => {
                        layer.set(row.id, text.to_string(), source, &mut self.problems);
                    }
                    None => self
                        .problems
                        .push(Problem::new(source, "expected UTF-8 text")),
                }
            } else if is_kubernetes_link(&name) {
                self.notices.push(format!(
                    "environment variable {name} is ignored: Kubernetes sets it for a service called e2d"
                ));
            } else {
                let message = unknown_variable(&name);
                self.problems.push(Problem::new(source, message));
            }
        }
        self.layers.push(layer);
    }

    fn flags(&mut self, flags: &[(String, OsString)]) {
        let mut layer = Layer::default();
        for (flag, value) in flags {
            let source = Source::Flag(format!("--{flag}"));
            if let Some(absent) = ABSENT.iter().find(|absent| absent.name == flag) {
                self.problems
                    .push(Problem::new(source, format!("is refused: {}", absent.why)));
                continue;
            }
            let row = SETTINGS.iter().find(|s| {
                s.run_flags().any(|known| known == flag) || s.id == Id::LogLevel && flag == VERBOSE
            });
            match (row, value.to_str()) {
                (Some(row), Some(text)) => {
                    layer.set(row.id, text.to_string(), source, &mut self.problems);
                }
                (Some(_), None) => self
                    .problems
                    .push(Problem::new(source, "expected UTF-8 text")),
                (None, _) => self
                    .problems
                    .push(Problem::new(source, "there is no such flag")),
            }
        }
        self.layers.push(layer);
    }
}

/// The text of a file, or why there is none. Every configuration file goes through here.
pub(super) fn read_text(path: &Path) -> Result<String, Problem> {
    let bytes = std::fs::read(path)
        .map_err(|e| Problem::new(path.display(), format!("cannot be read: {e}")))?;
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Problem::new(format!("{}:{line}", path.display()), "expected UTF-8 text")
    })
}

/// The setting that was written without its section.
fn section_of(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name && !name.is_empty())
}

fn unknown_key(key: &str, section: &str) -> String {
    if let Some(absent) = ABSENT.iter().find(|absent| absent.name == key) {
        return format!("is refused: {}", absent.why);
    }
    let here = SETTINGS
        .iter()
        .filter(|s| s.section == section && !s.name.is_empty());
    let hint = match SETTINGS
        .iter()
        .find(|s| !s.name.is_empty() && (s.name == key || s.etcd == key))
    {
        Some(setting) => format!(", did you mean {} in [{}]?", setting.name, setting.section),
        None => did_you_mean(key, here.map(|s| s.name)),
    };
    format!("there is no such setting{hint}")
}

fn unknown_variable(name: &str) -> String {
    let flag = name
        .trim_start_matches("E2D_")
        .replace('_', "-")
        .to_ascii_lowercase();
    if let Some(absent) = ABSENT.iter().find(|absent| absent.name == flag) {
        return format!("is refused: {}", absent.why);
    }
    let alias = SETTINGS
        .iter()
        .find(|s| s.etcd == flag)
        .and_then(Setting::env);
    let hint = match alias {
        Some(env) => format!(", did you mean {env}?"),
        None => {
            let known: Vec<String> = SETTINGS.iter().filter_map(Setting::env).collect();
            did_you_mean(name, known.iter().map(String::as_str))
        }
    };
    format!("there is no such setting{hint}")
}

/// The variables that Kubernetes gives to every container beside a service called `e2d`: `E2D_SERVICE_HOST`,
/// `E2D_SERVICE_PORT_…`, `E2D_PORT`, `E2D_PORT_2379_TCP_…`. Also of services called `e2d-client` and the like.
fn is_kubernetes_link(name: &str) -> bool {
    let ends = name.ends_with("_SERVICE_HOST") || name.ends_with("_PORT");
    let port = |rest: &str| {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        digits.len() < rest.len() && (digits.starts_with("_TCP") || digits.starts_with("_UDP"))
    };
    ends || name.contains("_SERVICE_PORT")
        || name
            .match_indices("_PORT_")
            .any(|(at, text)| port(&name[at + text.len()..]))
}

/// The value of a TOML key as the text that a flag would have.
fn toml_text(row: &Setting, value: &DeValue<'_>) -> Result<String, String> {
    let kind = row.kind;
    let expected = |found: String| Err(format!("expected {}, found {found}", toml_shape(row)));
    match value {
        DeValue::String(text) if kind.is_text() => Ok(text.to_string()),
        DeValue::Integer(number) if kind.is_number() => {
            match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Ok(number.to_string()),
                // Wider than TOML's own integers; the number is in the message of whoever reads the text.
                Err(_) => Ok(number.as_str().to_string()),
            }
        }
        DeValue::Array(items) if kind.is_list() => {
            let mut texts = Vec::new();
            for item in items.iter() {
                match item.get_ref() {
                    // A comma inside would make two of one.
                    DeValue::String(text) if !text.contains(',') => texts.push(text.as_ref()),
                    other => return expected(format!("an array with {}", toml_found(other))),
                }
            }
            Ok(texts.join(","))
        }
        other => expected(toml_found(other)),
    }
}

fn toml_shape(row: &Setting) -> &'static str {
    match (row.kind.is_text(), row.kind.is_number(), row.kind.is_list()) {
        (true, _, true) => "a string or an array of strings",
        (true, true, _) => "a string or an integer",
        (true, false, _) => "a string",
        (false, ..) => "an integer",
    }
}

fn toml_found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {:?}", text.as_ref()),
        DeValue::Integer(number) => format!("the integer {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}
