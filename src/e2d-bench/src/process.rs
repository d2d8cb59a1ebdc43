//! What the kernel charges to a process: CPU, context switches, bytes written, memory. Read from `/proc`.
//!
//! CPU per operation is the figure that holds on a busy machine, where rates and latencies do not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// A process whose accounts are readable, that is, one of the same user.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    directory: PathBuf,
}

/// The accounts of a process since it started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    cpu: Duration,
    // By thread, because the accounts of a thread vanish when it ends.
    switches: BTreeMap<String, u64>,
    write_bytes: u64,
}

/// What a process used between two readings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Charge {
    /// User and system time of all threads.
    pub(crate) cpu: Duration,
    /// Voluntary and involuntary, of the threads alive at the end.
    pub(crate) context_switches: u64,
    /// Bytes that the process caused to be sent to the block layer.
    pub(crate) write_bytes: u64,
}

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Memory {
    /// Heap and stacks; a mapped database file does not count.
    pub(crate) anonymous: u64,
    /// Everything resident, pages of mapped files included.
    pub(crate) resident: u64,
}

impl Process {
    pub(crate) fn of(pid: u32) -> Self {
        Self {
            directory: PathBuf::from(format!("/proc/{pid}")),
        }
    }

    pub(crate) fn own() -> Self {
        Self {
            directory: PathBuf::from("/proc/self"),
        }
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.directory.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// The accounts so far. The CPU time has the resolution of the clock tick, usually 10 ms.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let stat = self.read("stat")?;
        let ticks = cpu_ticks(&stat)
            .ok_or_else(|| anyhow!("utime and stime expected in stat, found {stat:?}"))?;
        let io = self.read("io")?;
        let write_bytes = field(&io, "write_bytes:")
            .ok_or_else(|| anyhow!("write_bytes expected, found {io:?}"))?;
        Ok(Usage {
            cpu: Duration::from_secs_f64(
                ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            ),
            switches: self.switches()?,
            write_bytes,
        })
    }

    fn switches(&self) -> Result<BTreeMap<String, u64>> {
        let tasks = self.directory.join("task");
        let mut switches = BTreeMap::new();
        for task in
            std::fs::read_dir(&tasks).with_context(|| format!("listing {}", tasks.display()))?
        {
            let task = task.with_context(|| format!("listing {}", tasks.display()))?;
            // A thread may end between the listing and the reading; its switches are then not counted.
            if let Ok(status) = std::fs::read_to_string(task.path().join("status")) {
                let thread = task.file_name().to_string_lossy().into_owned();
                switches.insert(thread, context_switches(&status));
            }
        }
        Ok(switches)
    }

    /// The memory resident at this moment.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = self.read("status")?;
        memory(&status)
            .ok_or_else(|| anyhow!("RssAnon and VmRSS expected in status, found {status:?}"))
    }
}

impl Usage {
    /// What was used since `earlier`, a reading of the same process.
    pub(crate) fn since(&self, earlier: &Usage) -> Charge {
        let switched = |(thread, count): (&String, &u64)| {
            count.saturating_sub(earlier.switches.get(thread).copied().unwrap_or(0))
        };
        Charge {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            context_switches: self.switches.iter().map(switched).sum(),
            write_bytes: self.write_bytes.saturating_sub(earlier.write_bytes),
        }
    }
}

/// utime + stime of `/proc/PID/stat`, in clock ticks. The command name may itself hold spaces and parentheses, so
/// the fields are counted from the last parenthesis.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The first number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn context_switches(status: &str) -> u64 {
    let count = |name| field(status, name).unwrap_or(0);
    count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:")
}

fn memory(status: &str) -> Option<Memory> {
    Some(Memory {
        anonymous: field(status, "RssAnon:")? * 1024,
        resident: field(status, "VmRSS:")? * 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_found_behind_a_hostile_command_name() {
        let stat = "77 (a) R 1 (b) S 1 77 77 0 -1 4194304 400 0 5 0 120 45 7 8 20 0 9 0 1000 1 2";
        assert_eq!(cpu_ticks(stat), Some(165));
        assert_eq!(cpu_ticks("77 (cut) S 1 77"), None);
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn voluntary_switches_are_not_read_from_the_nonvoluntary_line() {
        let status = "Name:\tetcd\nnonvoluntary_ctxt_switches:\t3\nvoluntary_ctxt_switches:\t40\n";
        assert_eq!(context_switches(status), 43);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status =
            "VmHWM:\t  999 kB\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\nRssFile:\t 1024 kB\n";
        assert_eq!(
            memory(status),
            Some(Memory {
                anonymous: 1 << 20,
                resident: 2 << 20
            })
        );
        assert_eq!(memory("VmRSS:\t 1 kB\n"), None);
    }

    #[test]
    fn a_charge_counts_new_threads_and_forgets_ended_ones() {
        let usage = |cpu, threads: &[(&str, u64)], write_bytes| Usage {
            cpu: Duration::from_millis(cpu),
            switches: threads.iter().map(|(t, n)| ((*t).to_owned(), *n)).collect(),
            write_bytes,
        };
        let before = usage(100, &[("1", 10), ("2", 500)], 4096);
        let after = usage(350, &[("1", 15), ("3", 7)], 12288);
        let charge = Charge {
            cpu: Duration::from_millis(250),
            context_switches: 12,
            write_bytes: 8192,
        };
        assert_eq!(after.since(&before), charge);
    }

    #[test]
    fn the_own_accounts_are_readable_and_grow() {
        let own = Process::own();
        let before = own.usage().unwrap();
        let mut sum = 0u64;
        // Until the clock tick shows it, not for a fixed amount of work.
        while own.usage().unwrap().since(&before).cpu.is_zero() {
            sum = (0..100_000u64).fold(sum, |a, b| std::hint::black_box(a ^ b));
        }
        let memory = own.memory().unwrap();
        assert!(
            memory.anonymous > 0 && memory.anonymous <= memory.resident,
            "{memory:?}"
        );
    }
}
