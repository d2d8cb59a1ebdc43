//! Medians, ratios, and the tables that show them.
//!
//! A ratio is the median of the ratios of each round, because the two servers of one round saw the same machine;
//! the ratio of two medians may compare a calm round with a busy one.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::floor;
use crate::load::Load;
use crate::machine::Machine;
use crate::measure::{Observed, quantile_ms};

const MIB: f64 = 1_048_576.0;

/// What one measurement found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figures {
    pub(crate) operations_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) server_cpu_us: f64,
    pub(crate) context_switches: f64,
    pub(crate) written_bytes: f64,
    pub(crate) anonymous_mib: f64,
    pub(crate) resident_mib: f64,
    pub(crate) generator_cpu_us: f64,
}

impl Figures {
    pub(crate) fn new(latencies: &Histogram<u64>, observed: &Observed) -> Result<Self> {
        ensure!(
            !latencies.is_empty(),
            "no operation ended within {:?}",
            observed.elapsed
        );
        let operations = latencies.len() as f64;
        Ok(Self {
            operations_per_second: operations / observed.elapsed.as_secs_f64(),
            p50_ms: quantile_ms(latencies, 0.5),
            p99_ms: quantile_ms(latencies, 0.99),
            p999_ms: quantile_ms(latencies, 0.999),
            server_cpu_us: observed.server.cpu.as_secs_f64() * 1e6 / operations,
            context_switches: observed.server.context_switches as f64 / operations,
            written_bytes: observed.server.write_bytes as f64 / operations,
            anonymous_mib: observed.memory.anonymous as f64 / MIB,
            resident_mib: observed.memory.resident as f64 / MIB,
            generator_cpu_us: observed.generator.cpu.as_secs_f64() * 1e6 / operations,
        })
    }

    fn to_array(self) -> [f64; 10] {
        [
            self.operations_per_second,
            self.p50_ms,
            self.p99_ms,
            self.p999_ms,
            self.server_cpu_us,
            self.context_switches,
            self.written_bytes,
            self.anonymous_mib,
            self.resident_mib,
            self.generator_cpu_us,
        ]
    }

    fn from_array(array: [f64; 10]) -> Self {
        let [
            operations_per_second,
            p50_ms,
            p99_ms,
            p999_ms,
            server_cpu_us,
            context_switches,
            written_bytes,
            anonymous_mib,
            resident_mib,
            generator_cpu_us,
        ] = array;
        Self {
            operations_per_second,
            p50_ms,
            p99_ms,
            p999_ms,
            server_cpu_us,
            context_switches,
            written_bytes,
            anonymous_mib,
            resident_mib,
            generator_cpu_us,
        }
    }

    /// The median of every figure by itself.
    fn median(rounds: &[Self]) -> Self {
        Self::from_array(std::array::from_fn(|i| {
            median(rounds.iter().map(|round| round.to_array()[i]))
        }))
    }

    /// The median over the rounds of every figure's ratio.
    fn ratio(subject: &[Self], reference: &[Self]) -> Self {
        Self::from_array(std::array::from_fn(|i| {
            median(ratios(subject, reference, |figures| figures.to_array()[i]))
        }))
    }
}

/// The ratio in each round. Without anything to divide by it is not a number, and printed as a dash.
fn ratios<'a, T>(
    subject: &'a [T],
    reference: &'a [T],
    figure: impl Fn(&T) -> f64 + 'a,
) -> impl Iterator<Item = f64> + 'a {
    subject
        .iter()
        .zip(reference)
        .map(move |(subject, reference)| {
            let by = figure(reference);
            if by == 0.0 {
                f64::NAN
            } else {
                figure(subject) / by
            }
        })
}

/// The middle value, or the mean of the two middle ones; not a number if there is none. Values that are not numbers
/// are left out.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        (_, middle) => values[middle],
    }
}

/// Three significant digits, and thousands separated: `12,345`, `8.31`, `0.0420`.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if magnitude < 3 {
        let decimals = usize::try_from(2 - magnitude).unwrap_or(0).min(4);
        return format!("{value:.decimals$}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The median of ratios and, of several rounds, the smallest and the largest.
fn spread(ratios: impl Iterator<Item = f64>) -> String {
    let ratios: Vec<f64> = ratios.filter(|ratio| !ratio.is_nan()).collect();
    let middle = format!("**{}**", number(median(ratios.iter().copied())));
    if ratios.len() < 2 {
        return middle;
    }
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    format!("{middle} ({} to {})", number(least), number(most))
}

/// A server as the tables name it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ServerInfo {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// The circumstances of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Run {
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) servers: Vec<ServerInfo>,
    pub(crate) rounds: usize,
}

impl Run {
    fn markdown(&self) -> String {
        let mut text = format!("Command: `{}`\n\n", self.command);
        let m = &self.machine;
        let _ = writeln!(
            text,
            "Machine: {}, {} cores, {:.1} GiB, Linux {}, data on {}, load average before {:.2}. {}.\n",
            m.cpu,
            m.cores,
            m.memory_gib,
            m.kernel,
            m.file_system,
            m.load_before,
            match self.rounds {
                1 => "One round".to_owned(),
                rounds => format!("Medians of {rounds} rounds"),
            }
        );
        for server in &self.servers {
            let _ = writeln!(text, "- {}: {}", server.name, server.version);
        }
        text.push('\n');
        text
    }
}

/// One load at one number of clients on all servers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) clients: usize,
    pub(crate) connections: usize,
    pub(crate) servers: Vec<Measured>,
    /// The floor server under the same load, if it can answer it.
    pub(crate) floor: Option<Measured>,
}

/// The rounds of one server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Measured {
    pub(crate) server: String,
    pub(crate) rounds: Vec<Figures>,
}

/// All loads of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Loads {
    pub(crate) run: Run,
    pub(crate) rows: Vec<Row>,
    pub(crate) disk: Vec<floor::Disk>,
}

const COLUMNS: [&str; 14] = [
    "load",
    "clients",
    "server",
    "ops/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "CPU µs/op",
    "× floor",
    "switches/op",
    "written B/op",
    "anon MiB",
    "RSS MiB",
    "generator µs/op",
];

impl Loads {
    pub(crate) fn markdown(&self) -> String {
        let mut text = self.run.markdown();
        header(&mut text, COLUMNS, 3);
        for row in &self.rows {
            row.markdown(&mut text);
        }
        if !self.disk.is_empty() {
            text.push_str(
                "\nDisk floor: a prefilled file, one write and one fdatasync for each batch.\n\n",
            );
            let columns = [
                "puts a batch",
                "bytes",
                "flushes/s",
                "p50 ms",
                "p99 ms",
                "puts/s",
            ];
            header(&mut text, columns, 0);
            for d in &self.disk {
                let batch = [d.batch_puts.to_string(), d.batch_bytes.to_string()];
                let figures =
                    [d.flushes_per_second, d.p50_ms, d.p99_ms, d.puts_per_second].map(number);
                line(&mut text, batch.into_iter().chain(figures));
            }
        }
        text
    }
}

impl Row {
    fn markdown(&self, text: &mut String) {
        let (load, clients) = (self.load.name(), self.clients.to_string());
        for measured in self.servers.iter().chain(&self.floor) {
            let figures = Figures::median(&measured.rounds);
            let floor = self
                .floor
                .iter()
                .filter(|floor| floor.server != measured.server);
            let over = floor
                .map(|floor| median(ratios(&measured.rounds, &floor.rounds, |f| f.server_cpu_us)))
                .next();
            let names = [load.clone(), clients.clone(), measured.server.clone()];
            let mut cells = figures.to_array().map(number).to_vec();
            cells.insert(5, over.map(number).unwrap_or_default());
            line(text, names.into_iter().chain(cells));
        }
        let Some((reference, subjects)) = self.servers.split_last() else {
            return;
        };
        for subject in subjects {
            let ratio = Figures::ratio(&subject.rounds, &reference.rounds).to_array();
            let mut cells = ratio.map(|ratio| format!("**{}**", number(ratio))).to_vec();
            cells[4] = spread(ratios(&subject.rounds, &reference.rounds, |figures| {
                figures.server_cpu_us
            }));
            cells.insert(5, String::new());
            let names = [
                load.clone(),
                clients.clone(),
                format!("**{}/{}**", subject.server, reference.server),
            ];
            line(text, names.into_iter().chain(cells));
        }
    }
}

/// Figures that are not rates of one load: sizes, start-up times, stalls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Comparison {
    pub(crate) run: Run,
    pub(crate) figures: Vec<Figure>,
}

/// One figure of all servers, in the order of the run's servers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) rounds: Vec<Vec<f64>>,
}

impl Comparison {
    pub(crate) fn new(run: Run) -> Self {
        Self {
            run,
            figures: Vec::new(),
        }
    }

    /// Adds a round's value of the server with index `server`. Figures keep the order in which they first came.
    pub(crate) fn add(&mut self, server: usize, name: &str, value: f64) {
        let index = self
            .figures
            .iter()
            .position(|figure| figure.name == name)
            .unwrap_or_else(|| {
                self.figures.push(Figure {
                    name: name.to_owned(),
                    rounds: vec![Vec::new(); self.run.servers.len()],
                });
                self.figures.len() - 1
            });
        self.figures[index].rounds[server].push(value);
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = self.run.markdown();
        let names: Vec<&str> = self
            .run
            .servers
            .iter()
            .map(|server| server.name.as_str())
            .collect();
        let mut columns = vec!["figure".to_owned()];
        columns.extend(names.iter().map(|name| (*name).to_owned()));
        if let Some((reference, subjects)) = names.split_last() {
            columns.extend(
                subjects
                    .iter()
                    .map(|subject| format!("{subject}/{reference}")),
            );
        }
        header(&mut text, &columns, 1);
        for figure in &self.figures {
            let mut cells = vec![figure.name.clone()];
            cells.extend(
                figure
                    .rounds
                    .iter()
                    .map(|rounds| number(median(rounds.iter().copied()))),
            );
            if let Some((reference, subjects)) = figure.rounds.split_last() {
                cells.extend(
                    subjects
                        .iter()
                        .map(|subject| spread(ratios(subject, reference, |value| *value))),
                );
            }
            line(&mut text, cells);
        }
        text
    }
}

/// A header of a table whose first `text_columns` columns are text and the others numbers.
fn header(
    text: &mut String,
    columns: impl IntoIterator<Item = impl Into<String>>,
    text_columns: usize,
) {
    let columns: Vec<String> = columns.into_iter().map(Into::into).collect();
    let rule = (0..columns.len())
        .map(|index| if index < text_columns { "---" } else { "---:" }.to_owned());
    let rule: Vec<String> = rule.collect();
    line(text, columns);
    line(text, rule);
}

fn line(text: &mut String, cells: impl IntoIterator<Item = String>) {
    text.push('|');
    for cell in cells {
        let _ = write!(text, " {cell} |");
    }
    text.push('\n');
}

/// Whether the Markdown file at `path` has a section `name`.
pub(crate) fn check_document(path: &Path, name: &str) -> Result<()> {
    let document =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    replace_section(&document, name, "")
        .with_context(|| format!("looking for the section to rewrite in {}", path.display()))?;
    Ok(())
}

/// Rewrites the section `name` of the Markdown file at `path`, between its markers.
pub(crate) fn update_document(path: &Path, name: &str, section: &str) -> Result<()> {
    let document =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let updated = replace_section(&document, name, section)
        .with_context(|| format!("updating {}", path.display()))?;
    std::fs::write(path, updated).with_context(|| format!("writing {}", path.display()))
}

fn replace_section(document: &str, name: &str, section: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- e2d-bench {name}: begin -->"),
        format!("<!-- e2d-bench {name}: end -->"),
    );
    let (before, rest) = document
        .split_once(&begin)
        .ok_or_else(|| anyhow!("expected a line {begin:?}, found none"))?;
    let (_, after) = rest
        .split_once(&end)
        .ok_or_else(|| anyhow!("expected a line {end:?} after {begin:?}"))?;
    Ok(format!(
        "{before}{begin}\n{}\n{end}{after}",
        section.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::{Charge, Memory};

    fn figures(cpu: f64) -> Figures {
        Figures::from_array([1000.0, 1.0, 2.0, 3.0, cpu, 5.0, 0.0, 7.0, 8.0, 9.0])
    }

    fn measured(server: &str, cpu: [f64; 3]) -> Measured {
        Measured {
            server: server.to_owned(),
            rounds: cpu.map(figures).to_vec(),
        }
    }

    fn run() -> Run {
        let machine = Machine {
            cpu: "Some CPU".into(),
            cores: 2,
            memory_gib: 4.0,
            kernel: "6.1".into(),
            file_system: "ext4".into(),
            load_before: 0.5,
        };
        let server = |name: &str| ServerInfo {
            name: name.into(),
            version: format!("{name} 1.0"),
        };
        Run {
            command: "e2d-bench".into(),
            machine,
            servers: vec![server("a"), server("b")],
            rounds: 3,
        }
    }

    #[test]
    fn costs_are_per_operation_of_the_window() {
        let mut latencies = Histogram::new_with_bounds(1, 1_000_000, 2).unwrap();
        latencies.record_n(250, 2000).unwrap();
        let observed = Observed {
            elapsed: Duration::from_secs(4),
            server: Charge {
                cpu: Duration::from_millis(100),
                context_switches: 6000,
                write_bytes: 2_048_000,
            },
            generator: Charge {
                cpu: Duration::from_millis(50),
                ..Default::default()
            },
            memory: Memory {
                anonymous: 3 << 20,
                resident: 5 << 20,
            },
        };
        let found = Figures::new(&latencies, &observed).unwrap();
        assert_eq!(found.operations_per_second, 500.0);
        assert_eq!(found.server_cpu_us, 50.0);
        assert_eq!((found.context_switches, found.written_bytes), (3.0, 1024.0));
        assert_eq!((found.anonymous_mib, found.resident_mib), (3.0, 5.0));
        assert_eq!(found.generator_cpu_us, 25.0);
        latencies.clear();
        assert!(Figures::new(&latencies, &observed).is_err());
    }

    #[test]
    fn medians_leave_out_what_is_not_a_number() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, f64::NAN, 1.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The third round was busy for both: the medians alone would say 20/40.
        let (a, b) = (
            measured("a", [10.0, 20.0, 90.0]),
            measured("b", [40.0, 20.0, 100.0]),
        );
        assert_eq!(Figures::ratio(&a.rounds, &b.rounds).server_cpu_us, 0.9);
        assert!(Figures::ratio(&a.rounds, &b.rounds).written_bytes.is_nan());
        assert_eq!(
            spread(ratios(&a.rounds, &b.rounds, |f| f.server_cpu_us)),
            "**0.900** (0.250 to 1.00)"
        );
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.042, "0.0420"),
            (8.314, "8.31"),
            (83.14, "83.1"),
            (831.4, "831"),
            (1234.4, "1,234"),
            (1_234_567.0, "1,234,567"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_row_shows_servers_floor_and_ratio() {
        let row = Row {
            load: Load::PutNew,
            clients: 64,
            connections: 8,
            servers: vec![measured("a", [40.0; 3]), measured("b", [80.0; 3])],
            floor: Some(measured("floor", [20.0; 3])),
        };
        let mut text = String::new();
        row.markdown(&mut text);
        assert_eq!(
            text,
            "| put-new | 64 | a | 1,000 | 1.00 | 2.00 | 3.00 | 40.0 | 2.00 | 5.00 | 0 | 7.00 | 8.00 | 9.00 |\n\
             | put-new | 64 | b | 1,000 | 1.00 | 2.00 | 3.00 | 80.0 | 4.00 | 5.00 | 0 | 7.00 | 8.00 | 9.00 |\n\
             | put-new | 64 | floor | 1,000 | 1.00 | 2.00 | 3.00 | 20.0 |  | 5.00 | 0 | 7.00 | 8.00 | 9.00 |\n\
             | put-new | 64 | **a/b** | **1.00** | **1.00** | **1.00** | **1.00** | **0.500** (0.500 to 0.500) |  \
             | **1.00** | **–** | **1.00** | **1.00** | **1.00** |\n"
        );
        assert!(
            text.lines()
                .all(|line| line.matches('|').count() == COLUMNS.len() + 1)
        );
    }

    #[test]
    fn a_comparison_keeps_the_order_and_the_rounds() {
        let mut comparison = Comparison::new(run());
        for (server, name, value) in [
            (0, "start ms", 10.0),
            (1, "start ms", 40.0),
            (0, "size MiB", 1.0),
            (0, "start ms", 30.0),
        ] {
            comparison.add(server, name, value);
        }
        let text = comparison.markdown();
        let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(table[0], "| figure | a | b | a/b |");
        assert_eq!(
            table[2..],
            [
                "| start ms | 20.0 | 40.0 | **0.250** |",
                "| size MiB | 1.00 | – | **–** |"
            ]
        );
        assert!(
            text.contains("Some CPU, 2 cores, 4.0 GiB, Linux 6.1, data on ext4"),
            "{text}"
        );
        assert!(text.contains("- b: b 1.0"), "{text}");
    }

    #[test]
    fn only_the_named_section_of_a_document_changes() {
        let document = "# T\n<!-- e2d-bench x: begin -->\nold\n<!-- e2d-bench x: end -->\nafter\n";
        let updated = replace_section(document, "x", "new\n\n").unwrap();
        assert_eq!(
            updated,
            "# T\n<!-- e2d-bench x: begin -->\nnew\n<!-- e2d-bench x: end -->\nafter\n"
        );
        assert_eq!(replace_section(&updated, "x", "new").unwrap(), updated);
        let error = replace_section(document, "y", "new")
            .unwrap_err()
            .to_string();
        assert!(error.contains("e2d-bench y: begin"), "{error}");
    }
}
