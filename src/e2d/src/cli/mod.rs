//! The commands: which one was asked for, and how it ends.

mod command;
mod exit;
mod version;

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ArgMatches;

pub use command::command;
pub use exit::{ExitCode, Failure, markdown as exit_codes_markdown};
pub use version::{DATE, ETCD_VERSION, GIT_SHA, RUSTC, VERSION};

use crate::config::settings::{ABSENT, SETTINGS};
use crate::config::{Config, Fragments, Invalid, Machine, Process, ROOTS, Resolved, VERBOSE, etcd};
use crate::logging;

/// Does what the command line says. `serve` runs a node until it is asked to stop.
pub fn main<F, S, E>(process: &Process, serve: F) -> ExitCode
where
    F: FnOnce(Config, logging::Control) -> S,
    S: Future<Output = Result<(), E>>,
    E: Into<Failure>,
{
    match dispatch(process, serve) {
        Ok(()) => ExitCode::Ok,
        Err(End::Said(code)) => code,
        Err(End::Failed(failure)) => {
            // Standard error may be closed; the exit code still tells.
            for line in failure.to_string().lines() {
                let _ = writeln!(std::io::stderr(), "e2d: {line}");
            }
            failure.code
        }
    }
}

/// Why a command ends early.
enum End {
    /// Everything is printed or logged.
    Said(ExitCode),
    /// The cause is still to be printed.
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Failed(failure)
    }
}

impl From<Invalid> for End {
    fn from(invalid: Invalid) -> Self {
        End::Failed(Failure::new(ExitCode::Usage, invalid))
    }
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> Self {
        End::Failed(Failure::new(ExitCode::Runtime, error))
    }
}

fn dispatch<F, S, E>(process: &Process, serve: F) -> Result<(), End>
where
    F: FnOnce(Config, logging::Control) -> S,
    S: Future<Output = Result<(), E>>,
    E: Into<Failure>,
{
    let (program, arguments) = match process.argv.split_first() {
        Some((program, arguments)) => (Path::new(program), arguments),
        None => (Path::new("e2d"), &[][..]),
    };
    // clap would take etcd's `-version` for `-v`, so etcd's command line never passes through it.
    if program.file_name().is_some_and(|name| name == "etcd") {
        return run_etcd(process, arguments, serve);
    }
    if let Some(("etcd", rest)) = arguments
        .split_first()
        .and_then(|(first, rest)| Some((first.to_str()?, rest)))
    {
        return run_etcd(process, rest, serve);
    }
    let matches = match command().try_get_matches_from(&process.argv) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return Err(End::Said(match error.use_stderr() {
                true => ExitCode::Usage,
                false => ExitCode::Ok,
            }));
        }
    };
    let verbose = matches.get_count("verbose-main");
    if verbose > 0 && matches.subcommand_name() != Some("run") {
        return Err(End::Failed(Failure::new(
            ExitCode::Usage,
            anyhow::anyhow!("flag --verbose: is for `e2d run` alone"),
        )));
    }
    match matches.subcommand() {
        Some(("run", run)) => {
            let fragments = Fragments::read(
                process,
                &ROOTS.map(PathBuf::from),
                run.get_one::<PathBuf>("config").map(PathBuf::as_path),
                &flags(run, verbose),
            );
            node(process, fragments, serve)
        }
        Some(("etcd", etcd)) => {
            let arguments: Vec<OsString> = etcd
                .get_many("arguments")
                .into_iter()
                .flatten()
                .cloned()
                .collect();
            run_etcd(process, &arguments, serve)
        }
        Some(("config", config)) => match config.subcommand() {
            Some(("check", check)) => config_check(process, check),
            _ => Err(End::Said(ExitCode::Usage)),
        },
        Some(("version", _)) => print(&format!("{}\n", version::line())),
        Some(("completion", completion)) => {
            let Some(shell) = completion.get_one::<clap_complete::Shell>("shell") else {
                return Err(End::Said(ExitCode::Usage));
            };
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command(), "e2d", &mut script);
            print_bytes(&script)
        }
        Some(("docs", docs)) => match docs.subcommand() {
            Some(("man", man)) => manual(man),
            _ => Err(End::Said(ExitCode::Usage)),
        },
        _ => Err(End::Said(ExitCode::Usage)),
    }
}

/// The flags of `run` that were typed, as (name, value).
fn flags(run: &ArgMatches, verbose_main: u8) -> Vec<(String, OsString)> {
    let known = SETTINGS.iter().flat_map(|setting| setting.run_flags());
    let absent = ABSENT.iter().map(|absent| absent.name);
    let mut flags: Vec<(String, OsString)> = known
        .chain(absent)
        .filter_map(|flag| {
            let value = run.get_one::<OsString>(flag)?;
            Some((flag.to_string(), value.clone()))
        })
        .collect();
    match run.get_count("verbose") + verbose_main {
        0 => {}
        1 => flags.push((VERBOSE.into(), "debug".into())),
        _ => flags.push((VERBOSE.into(), "trace".into())),
    }
    flags
}

fn run_etcd<F, S, E>(process: &Process, arguments: &[OsString], serve: F) -> Result<(), End>
where
    F: FnOnce(Config, logging::Control) -> S,
    S: Future<Output = Result<(), E>>,
    E: Into<Failure>,
{
    match etcd::read(process, arguments) {
        etcd::Asked::Help => print(&etcd::usage()),
        etcd::Asked::Version => print(&version::etcd_lines()),
        etcd::Asked::Refused(message) => {
            // etcd's own words, which scripts look for, come without a prefix.
            let _ = writeln!(std::io::stderr(), "{message}\n\n{}", etcd::usage());
            Err(End::Said(ExitCode::Usage))
        }
        etcd::Asked::Run(fragments) => node(process, fragments, serve),
    }
}

/// Runs a node.
fn node<F, S, E>(process: &Process, fragments: Fragments, serve: F) -> Result<(), End>
where
    F: FnOnce(Config, logging::Control) -> S,
    S: Future<Output = Result<(), E>>,
    E: Into<Failure>,
{
    let machine = Machine::inspect(process);
    let Resolved {
        config, notices, ..
    } = Config::resolve(fragments, &machine)?;
    let log = logging::start(&config.log).map_err(|error| {
        Failure::new(
            ExitCode::Runtime,
            anyhow::Error::new(error).context("starting the log"),
        )
    })?;
    for notice in notices {
        tracing::warn!("{notice}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the threads")?;
    let ended = runtime.block_on(serve(config, log.control()));
    // Nothing waits for a task that does not end.
    runtime.shutdown_background();
    let ended = ended.map_err(Into::into);
    if let Err(failure) = &ended {
        tracing::error!(code = failure.code as u8, "{failure}");
    }
    log.finish();
    ended.map_err(|failure| End::Said(failure.code))
}

fn config_check(process: &Process, check: &ArgMatches) -> Result<(), End> {
    let fragments = match check.get_one::<PathBuf>("file") {
        Some(file) => Fragments::file(file),
        None => Fragments::files(&ROOTS.map(PathBuf::from)),
    };
    let resolved = Config::resolve(fragments, &Machine::inspect(process))?;
    match check.get_flag("print") {
        true => print(&crate::config::effective_toml(&resolved.effective)),
        false => Ok(()),
    }
}

fn manual(man: &ArgMatches) -> Result<(), End> {
    let Some(dir) = man.get_one::<PathBuf>("dir") else {
        return Err(End::Said(ExitCode::Usage));
    };
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    clap_mangen::generate_to(command(), dir)
        .with_context(|| format!("writing manual pages to {}", dir.display()))?;
    Ok(())
}

fn print(text: &str) -> Result<(), End> {
    print_bytes(text.as_bytes())
}

/// Writes to standard output. A reader that went away, as in `e2d completion bash | head`, is no failure.
fn print_bytes(bytes: &[u8]) -> Result<(), End> {
    let mut out = std::io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(e).context("writing to standard output"))?
        }
        _ => Ok(()),
    }
}
