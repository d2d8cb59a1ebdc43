//! Benchmarks of e2d beside a real etcd: the same loads, on the same disk, in turn, and the ratio of the two.
//!
//! Start at [`compare`]; `load/` says what is asked, `measure` what counts, `server` how servers live, `report` how
//! figures become tables. docs/performance.md says how to run it and how to read it.

mod connection;
mod floor;
mod load;
mod machine;
mod measure;
mod process;
mod report;
mod server;
mod store;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use connection::Connection;
use load::keys::{Keys, Values};
use load::{Cell, Load, fill};
use machine::Machine;
use measure::{Bound, Plan};
use report::{Comparison, Loads, Measured, Row, Run, ServerInfo};
use server::{Server, Spec};

/// Keys of the store under all loads.
const KEYS: usize = 10_000;
const DISK_FLOOR_TIME: Duration = Duration::from_secs(1);

/// Runs the same loads against e2d and a real etcd, in turn and on the same disk, and prints the ratio.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    loads: LoadOptions,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Debug, Args)]
struct Common {
    /// The e2d to measure [default: e2d beside this program]
    #[arg(long, global = true, value_name = "PATH")]
    e2d: Option<PathBuf>,
    /// The etcd to compare with
    #[arg(long, global = true, value_name = "PATH", default_value = "etcd")]
    etcd: PathBuf,
    /// Measures these servers instead of e2d and etcd; etcd's flags are appended to the command. Ratios are taken to
    /// the last one
    #[arg(long = "server", global = true, value_name = "NAME=COMMAND")]
    servers: Vec<Spec>,
    /// Where the servers' data goes, into a directory that is removed at the end
    #[arg(long, global = true, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// Measures everything so many times, the servers in turn [default: 3]
    #[arg(long, global = true, value_name = "N")]
    rounds: Option<usize>,
    /// How long to measure each load [default: 3]
    #[arg(long, global = true, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,
    /// How long to run each load before measuring it [default: 1]
    #[arg(long, global = true, value_name = "S", value_parser = seconds)]
    warm_up: Option<Duration>,
    /// Connections that the clients share [default: 8 for up to 100 clients, else 32]
    #[arg(long, global = true, value_name = "N")]
    connections: Option<usize>,
    /// A smoke run: one short round, 64 clients, 100 watchers, unless told otherwise
    #[arg(long, global = true)]
    quick: bool,
    /// Writes all rounds to this file
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rewrites the generated section of this Markdown file
    #[arg(long, global = true, value_name = "FILE")]
    update_doc: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LoadOptions {
    /// The loads to run [default: all]
    #[arg(long, global = true, value_delimiter = ',', value_name = "LOAD")]
    loads: Vec<Load>,
    /// Numbers of clients [default: 1,64,100,512,1000]
    #[arg(long, global = true, value_delimiter = ',', value_name = "N")]
    clients: Vec<usize>,
    /// Numbers of watchers in the watch loads [default: 100,1000]
    #[arg(long, value_delimiter = ',', value_name = "N")]
    watchers: Vec<usize>,
    /// Tasks that put what the watchers see
    #[arg(long, value_name = "N", default_value_t = 16)]
    watch_writers: usize,
    /// Measures so many operations instead of a time
    #[arg(long, global = true, value_name = "N", conflicts_with = "seconds")]
    ops: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Measures the floors alone: the least server and the disk
    Floor,
    /// Disk, memory and start-up time with a million keys
    Million(StoreOptions),
    /// Time of a snapshot, and what writing clients notice of it
    Snapshot(StoreOptions),
    /// What writing clients notice of a compaction and a defragmentation
    Stall {
        #[command(flatten)]
        store: StoreOptions,
        /// How often each key is written before
        #[arg(long, value_name = "N", default_value_t = 4)]
        overwrites: usize,
    },
    /// Answers Put and Range with constants
    #[command(name = floor::SUBCOMMAND, hide = true)]
    FloorServer {
        /// etcd's flags, of which it heeds --listen-client-urls
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct StoreOptions {
    /// Keys of the store [default: 1000000; for stall 100000]
    #[arg(long, value_name = "N")]
    keys: Option<usize>,
    /// Clients that put meanwhile
    #[arg(long, value_name = "N", default_value_t = 64)]
    writers: usize,
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text
        .parse()
        .with_context(|| format!("expected seconds, found {text:?}"))?;
    Duration::try_from_secs_f64(seconds)
        .with_context(|| format!("expected a time of seconds, found {text:?}"))
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that RUST_BACKTRACE would add: the chain of causes is what says where.
            eprintln!("Error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        // The floor server leaves SIGTERM alone, so that it ends as any server without state may.
        if let Some(Sub::FloorServer { flags }) = &cli.command {
            return floor::serve(floor::address(flags)?).await;
        }
        // Whatever runs is dropped on a signal, and a dropped server is killed.
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .context("listening for SIGTERM")?;
        tokio::select! {
            done = run(cli) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

async fn run(cli: Cli) -> Result<()> {
    let Cli {
        common,
        loads,
        command,
    } = cli;
    ensure!(
        common.connections != Some(0),
        "--connections must be at least 1"
    );
    ensure!(common.rounds != Some(0), "--rounds must be at least 1");
    let section = match &command {
        None => "loads",
        Some(Sub::Floor) => "floor",
        Some(Sub::Million(_)) => "million",
        Some(Sub::Snapshot(_)) => "snapshot",
        Some(Sub::Stall { .. }) => "stall",
        Some(Sub::FloorServer { .. }) => {
            unreachable!("served before the signals are listened for")
        }
    };
    if let Some(path) = &common.update_doc {
        // Now, not when the figures of half an hour have nowhere to go.
        report::check_document(path, section)?;
    }
    let data = tempfile::Builder::new()
        .prefix("e2d-bench-")
        .tempdir_in(&common.data);
    let data = data.with_context(|| {
        format!(
            "making a directory for the data in {}",
            common.data.display()
        )
    })?;
    let data = data.path();
    match command {
        None => {
            let specs = common.specs()?;
            let report = compare(&common, &loads, &specs, data).await?;
            common.publish(section, &report.markdown(), &report)
        }
        Some(Sub::Floor) => {
            let report = compare(&common, &loads, &[], data).await?;
            common.publish(section, &report.markdown(), &report)
        }
        Some(Sub::Million(options)) => {
            let specs = common.specs()?;
            let mut report = Comparison::new(common.describe(&specs, data)?);
            store::million(
                &specs,
                data,
                common.store(&options, 1_000_000)?,
                &mut report,
            )
            .await?;
            common.publish(section, &report.markdown(), &report)
        }
        Some(Sub::Snapshot(options)) => {
            let specs = common.specs()?;
            let mut report = Comparison::new(common.describe(&specs, data)?);
            store::snapshot(
                &specs,
                data,
                common.store(&options, 1_000_000)?,
                &mut report,
            )
            .await?;
            common.publish(section, &report.markdown(), &report)
        }
        Some(Sub::Stall { store, overwrites }) => {
            ensure!(overwrites > 0, "--overwrites must be at least 1");
            let specs = common.specs()?;
            let mut report = Comparison::new(common.describe(&specs, data)?);
            store::stall(
                &specs,
                data,
                common.store(&store, 100_000)?,
                overwrites,
                &mut report,
            )
            .await?;
            common.publish(section, &report.markdown(), &report)
        }
        Some(Sub::FloorServer { .. }) => unreachable!("it has no section"),
    }
}

/// Runs every load on every server, and on the floor where that can answer.
///
/// Each load begins with a store of its own, so that no load pays for the history of another, and the servers take
/// turns within a load: what they are compared by lies seconds apart, not minutes.
async fn compare(
    common: &Common,
    options: &LoadOptions,
    specs: &[Spec],
    data: &Path,
) -> Result<Loads> {
    let floor = Spec::floor()?;
    let (keys, values) = (Keys::new(load::PREFIX, KEYS), Values::new());
    let rounds = common.rounds();
    let plan = Plan {
        warm_up: common.warm_up(),
        bound: options
            .ops
            .map_or_else(|| Bound::Time(common.seconds()), Bound::Count),
    };
    ensure!(
        !options.all_clients(common).contains(&0),
        "--clients and --watchers must be at least 1"
    );
    ensure!(
        options.watch_writers > 0,
        "--watch-writers must be at least 1"
    );
    let run = common.describe(specs, data)?;
    let mut rows = Vec::new();
    for load in options.loads(specs.is_empty()) {
        let clients = options.clients(load, common);
        let mut measured: Vec<Row> = clients
            .iter()
            .map(|c| common.row(load, *c, specs))
            .collect();
        for round in 0..rounds {
            let floors = load.has_floor().then_some(&floor);
            for (index, spec) in specs.iter().chain(floors).enumerate() {
                eprintln!(
                    "{}: {}, round {} of {rounds}",
                    load.name(),
                    spec.name,
                    round + 1
                );
                let directory = data.join(format!("{}-{round}-{index}", load.name()));
                let mut server = Server::start(spec, &directory).await?;
                if !spec.floor {
                    let filled = async {
                        fill::in_batches(&Connection::open(server.address()).await?, &keys, &values)
                            .await
                    };
                    filled.await.map_err(|error| server.blame(error))?;
                }
                for (number, row) in measured.iter_mut().enumerate() {
                    let cell = Cell {
                        load,
                        clients: row.clients,
                        connections: row.connections,
                        writers: options.watch_writers,
                        number,
                        keys: &keys,
                        values: &values,
                    };
                    let figures = load::run(&cell, &mut server, &plan).await?;
                    match row.servers.get_mut(index) {
                        Some(measured) => measured.rounds.push(figures),
                        None => row
                            .floor
                            .get_or_insert_with(Measured::floor)
                            .rounds
                            .push(figures),
                    }
                }
                server.stop().await?;
                // The floor keeps nothing, so that there may be no directory.
                if directory.exists() {
                    std::fs::remove_dir_all(&directory)
                        .with_context(|| format!("removing {}", directory.display()))?;
                }
            }
        }
        rows.extend(measured);
    }
    let mut disk = Vec::new();
    for clients in options.clients(Load::Put, common) {
        disk.push(floor::disk(
            data,
            clients,
            common.seconds().min(DISK_FLOOR_TIME),
        )?);
    }
    Ok(Loads { run, rows, disk })
}

impl LoadOptions {
    fn loads(&self, only_floor: bool) -> Vec<Load> {
        let loads = if self.loads.is_empty() {
            Load::value_variants()
        } else {
            &self.loads
        };
        loads
            .iter()
            .copied()
            .filter(|load| !only_floor || load.has_floor())
            .collect()
    }

    fn clients(&self, load: Load, common: &Common) -> Vec<usize> {
        let (given, quick, usual): (_, &[usize], &[usize]) = if load.watches() {
            (&self.watchers, &[100], &[100, 1000])
        } else {
            (&self.clients, &[64], &[1, 64, 100, 512, 1000])
        };
        match (given.is_empty(), common.quick) {
            (false, _) => given.clone(),
            (true, true) => quick.to_vec(),
            (true, false) => usual.to_vec(),
        }
    }

    fn all_clients(&self, common: &Common) -> Vec<usize> {
        [Load::Put, Load::Watch]
            .into_iter()
            .flat_map(|load| self.clients(load, common))
            .collect()
    }
}

impl Common {
    fn specs(&self) -> Result<Vec<Spec>> {
        if !self.servers.is_empty() {
            for (index, spec) in self.servers.iter().enumerate() {
                let twice = self.servers[..index]
                    .iter()
                    .any(|other| other.name == spec.name);
                ensure!(!twice, "two servers are named {}", spec.name);
            }
            return Ok(self.servers.clone());
        }
        let e2d = match &self.e2d {
            Some(path) => path.clone(),
            None => {
                let own = std::env::current_exe().context("finding this program's own path")?;
                let e2d = own.with_file_name("e2d");
                ensure!(
                    e2d.exists(),
                    "expected e2d at {}; build it or name one with --e2d",
                    e2d.display()
                );
                e2d
            }
        };
        let e2d = Spec {
            name: "e2d".into(),
            program: e2d,
            arguments: vec!["etcd".into()],
            floor: false,
        };
        let etcd = Spec {
            name: "etcd".into(),
            program: self.etcd.clone(),
            arguments: vec![],
            floor: false,
        };
        Ok(vec![e2d, etcd])
    }

    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    fn seconds(&self) -> Duration {
        self.seconds
            .unwrap_or(Duration::from_millis(if self.quick { 500 } else { 3000 }))
    }

    fn warm_up(&self) -> Duration {
        self.warm_up
            .unwrap_or(Duration::from_millis(if self.quick { 200 } else { 1000 }))
    }

    /// Never more connections than clients.
    fn connections(&self, clients: usize) -> usize {
        self.connections
            .unwrap_or(if clients <= 100 { 8 } else { 32 })
            .min(clients)
    }

    fn row(&self, load: Load, clients: usize, specs: &[Spec]) -> Row {
        let servers = specs
            .iter()
            .map(|spec| Measured {
                server: spec.name.clone(),
                rounds: Vec::new(),
            })
            .collect();
        Row {
            load,
            clients,
            connections: self.connections(clients),
            servers,
            floor: None,
        }
    }

    fn store(&self, options: &StoreOptions, usual_keys: usize) -> Result<store::Options> {
        let keys = options
            .keys
            .unwrap_or(if self.quick { 10_000 } else { usual_keys });
        ensure!(
            keys > 0 && options.writers > 0,
            "--keys and --writers must be at least 1"
        );
        Ok(store::Options {
            keys,
            rounds: self.rounds(),
            writers: options.writers,
            connections: self.connections(options.writers),
            warm_up: self.warm_up(),
            before: self.seconds(),
        })
    }

    fn describe(&self, specs: &[Spec], data: &Path) -> Result<Run> {
        let machine = Machine::of(data)?;
        if machine.file_system == "tmpfs" {
            eprintln!(
                "warning: the data is on tmpfs, where flushes cost nothing; choose a disk with --data"
            );
        }
        let arguments: Vec<String> = std::env::args().collect();
        let info = |spec: &Spec| ServerInfo {
            name: spec.name.clone(),
            version: spec.version(),
        };
        Ok(Run {
            command: printable(&arguments),
            machine,
            servers: specs.iter().map(info).collect(),
            rounds: self.rounds(),
        })
    }

    /// Prints the table, and writes what was asked for.
    fn publish(&self, section: &str, markdown: &str, report: &impl Serialize) -> Result<()> {
        // Before printing, which fails when nobody reads.
        if let Some(path) = &self.json {
            let json = serde_json::to_vec_pretty(report).context("encoding the report")?;
            std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &self.update_doc {
            report::update_document(path, section, markdown)?;
        }
        std::io::stdout()
            .write_all(markdown.as_bytes())
            .context("printing the table")
    }
}

/// A command line for a document: absolute paths say nothing to its readers, so only their last part is kept.
fn printable(arguments: &[String]) -> String {
    let short = |word: &str| match word.starts_with('/') {
        true => Path::new(word)
            .file_name()
            .map_or_else(|| word.into(), |name| name.to_string_lossy().into_owned()),
        false => word.to_owned(),
    };
    let words = arguments.iter().enumerate().map(|(index, argument)| {
        if index == 0 {
            return Path::new(argument)
                .file_name()
                .map_or_else(|| argument.clone(), |n| n.to_string_lossy().into());
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (format!("{name}="), value),
            None => (String::new(), argument.as_str()),
        };
        let words: Vec<String> = value.split(' ').map(short).collect();
        let quote = if words.len() > 1 { "'" } else { "" };
        format!("{quote}{name}{}{quote}", words.join(" "))
    });
    words.collect::<Vec<_>>().join(" ")
}

impl Measured {
    fn floor() -> Self {
        Self {
            server: "floor".into(),
            rounds: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_work_before_and_after_the_subcommand() {
        for line in [
            "b --rounds 5 million --keys 10",
            "b million --keys 10 --rounds 5",
        ] {
            let cli = parse(line);
            assert_eq!(cli.common.rounds(), 5);
            assert!(matches!(
                cli.command,
                Some(Sub::Million(StoreOptions { keys: Some(10), .. }))
            ));
        }
    }

    #[test]
    fn quick_changes_only_what_was_not_given() {
        let cli = parse("b --quick --rounds 2 --clients 1,8");
        assert_eq!(
            (cli.common.rounds(), cli.common.seconds()),
            (2, Duration::from_millis(500))
        );
        assert_eq!(cli.loads.clients(Load::Get, &cli.common), [1, 8]);
        assert_eq!(cli.loads.clients(Load::Watch, &cli.common), [100]);
    }

    #[test]
    fn connections_follow_the_clients_unless_given() {
        let common = parse("b").common;
        let found = [1, 64, 100, 512].map(|clients| common.connections(clients));
        assert_eq!(found, [1, 8, 8, 32]);
        assert_eq!(parse("b --connections 4").common.connections(1000), 4);
    }

    #[test]
    fn a_printed_command_names_no_directory_of_the_machine() {
        let arguments = [
            "/opt/x/e2d-bench",
            "--server",
            "a=/opt/e2d etcd",
            "--update-doc",
            "docs/p.md",
            "--e2d=/o/e2d",
        ];
        let arguments = arguments.map(str::to_owned);
        assert_eq!(
            printable(&arguments),
            "e2d-bench --server 'a=e2d etcd' --update-doc docs/p.md --e2d=e2d"
        );
    }

    #[test]
    fn the_floor_server_takes_the_command_line_of_etcd() {
        let line = "b floor-server --name bench --data-dir /d --listen-client-urls http://127.0.0.1:1 --x y";
        let Some(Sub::FloorServer { flags }) = parse(line).command else {
            panic!("the subcommand of {line:?}")
        };
        assert_eq!(floor::address(&flags).unwrap().port(), 1);
    }
}
