//! The machine that a measurement was taken on, as far as it explains the figures.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// What stands above every table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// Of the directory that holds the servers' data.
    pub(crate) file_system: String,
    /// Average number of runnable tasks in the minute before the measurement; above zero others were at work.
    pub(crate) load_before: f64,
}

impl Machine {
    pub(crate) fn of(data: &Path) -> Result<Self> {
        let read =
            |path: &str| std::fs::read_to_string(path).with_context(|| format!("reading {path}"));
        let data = data
            .canonicalize()
            .with_context(|| format!("resolving {}", data.display()))?;
        let load = read("/proc/loadavg")?;
        Ok(Self {
            cpu: value(&read("/proc/cpuinfo")?, "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism()
                .context("asking for the number of cores")?
                .get(),
            memory_gib: value(&read("/proc/meminfo")?, "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
                .map_or(0.0, |kib| kib / f64::from(1 << 20)),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(&read("/proc/self/mountinfo")?, &data)
                .unwrap_or_else(|| "unknown".to_owned()),
            load_before: load
                .split(' ')
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0.0),
        })
    }
}

/// The text after `name` and a colon.
fn value(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The type of the file system with the longest mount point above `path`; the last such mount hides the others.
fn file_system(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        Some((mount.split(' ').nth(4)?, file_system.split(' ').next()?))
    });
    let above = mounts.filter(|(point, _)| path.starts_with(point));
    above
        .max_by_key(|(point, _)| point.len())
        .map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_names_the_file_system() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/a rw\n23 22 0:5 / /tmp rw shared:3 - tmpfs tmpfs rw\n\
                      24 22 8:2 / /tmpdata rw - xfs /dev/b rw\n";
        for (path, kind) in [
            ("/srv", "ext4"),
            ("/tmp/x", "tmpfs"),
            ("/tmpdata/x", "xfs"),
            ("/tmpd", "ext4"),
        ] {
            assert_eq!(
                file_system(mounts, Path::new(path)).as_deref(),
                Some(kind),
                "{path}"
            );
        }
        assert_eq!(file_system("", Path::new("/")), None);
    }

    #[test]
    fn values_are_trimmed() {
        let text = "model\t\t: 1\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(
            value(text, "model name").as_deref(),
            Some("Some CPU @ 2 GHz")
        );
        assert_eq!(value(text, "bogomips"), None);
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::of(&std::env::temp_dir()).unwrap();
        assert!(machine.cores > 0 && machine.memory_gib > 0.0, "{machine:?}");
        assert!(
            !machine.kernel.is_empty() && machine.file_system != "unknown",
            "{machine:?}"
        );
    }
}
