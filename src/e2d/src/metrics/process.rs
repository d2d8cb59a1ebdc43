//! The process as the kernel sees it: `process_*` and `os_fd_*`.
//!
//! The `prometheus` crate has a collector of its own, which counts the processor's time in whole seconds only and so
//! makes a staircase of every rate; it would also bring `procfs` for six numbers.

use std::fs;
use std::sync::OnceLock;

use prometheus::proto::{MetricFamily, MetricType};

use super::observed::{family, metric};

/// What can be read; what cannot (no `/proc`, say) is left out.
pub(super) fn families() -> Vec<MetricFamily> {
    let mut families = Vec::with_capacity(10);
    let mut add = |kind, name, help, value: Option<f64>| {
        families.extend(value.map(|value| family(kind, name, help, vec![metric(kind, vec![], value)])));
    };
    let (counter, gauge) = (MetricType::COUNTER, MetricType::GAUGE);

    let stat = fs::read_to_string("/proc/self/stat").ok();
    let stat = stat.as_deref().and_then(Stat::parse);
    add(
        counter,
        "process_cpu_seconds_total",
        "Seconds of processor time that the process has used, in user and kernel mode.",
        stat.map(|stat| stat.cpu_ticks as f64 / ticks_per_second()),
    );
    add(gauge, "process_threads", "Threads of the process.", stat.map(|stat| stat.threads as f64));
    add(
        gauge,
        "process_virtual_memory_bytes",
        "Bytes of address space of the process.",
        stat.map(|stat| stat.virtual_bytes as f64),
    );
    add(
        gauge,
        "process_resident_memory_bytes",
        "Bytes of memory that the process occupies.",
        stat.map(|stat| stat.resident_pages as f64 * rustix::param::page_size() as f64),
    );
    add(
        gauge,
        "process_start_time_seconds",
        "When the process started, in Unix time.",
        stat.zip(boot_time()).map(|(stat, boot)| boot + stat.start_ticks as f64 / ticks_per_second()),
    );

    let limit = |resource| rustix::process::getrlimit(resource).current.map(|limit| limit as f64);
    add(
        gauge,
        "process_virtual_memory_max_bytes",
        "Bytes of address space that the process may have.",
        // Without a limit etcd says 2^64 - 1.
        Some(limit(rustix::process::Resource::As).unwrap_or(u64::MAX as f64)),
    );
    let files = limit(rustix::process::Resource::Nofile);
    add(gauge, "process_max_fds", "Files that the process may have open.", files);
    add(gauge, "os_fd_limit", "Files that the process may have open.", files);
    // The listing itself is open while it is counted.
    let open = fs::read_dir("/proc/self/fd").ok().map(|listing| (listing.count() as f64 - 1.0).max(0.0));
    add(gauge, "process_open_fds", "Files that the process has open.", open);
    add(gauge, "os_fd_used", "Files that the process has open.", open);
    families
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// When the machine started, in seconds since 1970.
fn boot_time() -> Option<f64> {
    static BOOT: OnceLock<Option<f64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    })
}

/// Of `/proc/self/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// The fields are numbered from 1 in proc(5); the second is the program's name in parentheses, which may hold
    /// anything, spaces and parentheses included, so that counting begins behind the last parenthesis.
    fn parse(stat: &str) -> Option<Stat> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)?.checked_add(field(15)?)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_odd_name_is_read() {
        let line = "7 (a) R (b) S 1 7 7 0 -1 4194560 1 2 3 4 50 25 8 9 20 0 12 0 4242 1000000 345 18446744073709551615";
        let expected =
            Stat { cpu_ticks: 75, threads: 12, start_ticks: 4242, virtual_bytes: 1_000_000, resident_pages: 345 };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_has_plausible_figures() {
        let value = |name: &str| {
            let families = families();
            let family = families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("no {name}"));
            let metric = &family.get_metric()[0];
            if family.get_field_type() == MetricType::COUNTER {
                metric.get_counter().get_value()
            } else {
                metric.get_gauge().get_value()
            }
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let start = value("process_start_time_seconds");
        assert!(start > now - 86_400.0 && start < now + 5.0, "{start} {now}");
        let before = value("process_open_fds");
        let files: Vec<_> = (0..64).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        // Other tests open and close files at the same time, though hardly so many.
        assert!(value("os_fd_used") > before + 16.0);
        drop(files);
    }
}
