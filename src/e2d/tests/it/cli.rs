//! What the command line answers, and with which exit code it ends.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

/// The binary in a directory of its own and without the environment of whoever runs the tests.
fn e2d(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_e2d"));
    command.args(arguments).current_dir(dir).env_clear();
    command
}

struct Answer {
    code: i32,
    out: String,
    err: String,
}

fn answer(command: &mut Command) -> Answer {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Answer {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn run(arguments: &[&str]) -> Answer {
    let dir = tempfile::tempdir().unwrap();
    answer(&mut e2d(dir.path(), arguments))
}

#[test]
fn a_wrong_configuration_ends_with_2_names_everything_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("e2d.toml");
    std::fs::write(&config, "[node]\nnmae = \"a\"\n").unwrap();
    let arguments = [
        "run",
        "--config",
        "e2d.toml",
        "-n",
        "3",
        "--unsafe-no-fsync",
    ];
    let found = answer(e2d(dir.path(), &arguments).env("E2D_HOST", "here"));
    assert_eq!(found.code, 2);
    assert_eq!(
        found.err,
        "e2d: e2d.toml:2 node.nmae: there is no such setting, did you mean name?\n\
         e2d: flag --unsafe-no-fsync: is refused: a write is never acknowledged before it is on disk\n\
         e2d: environment variable E2D_HOST: expected an IP address of this machine such as 10.0.0.1 or fd00::1, \
         found \"here\"\n\
         e2d: flag --required-cluster-size: expected 1, found 3: clusters of more than one node are not in this \
         version\n"
    );
    assert_eq!(found.out, "");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn an_unknown_flag_or_command_ends_with_2() {
    for arguments in [
        &["run", "--nmae", "x"][..],
        &["run", "--name"],
        &["run", "--name", "a", "--name", "b"],
        &["run", "extra"],
        &["nonsense"],
        &["config"],
        &["completion", "elvish2"],
        &["-v", "version"],
        &[],
    ] {
        let found = run(arguments);
        assert_eq!(found.code, 2, "{arguments:?}");
        assert_eq!(found.out, "", "{arguments:?}");
        assert_ne!(found.err, "", "{arguments:?}");
    }
    assert!(run(&["run", "--nmae", "x"]).err.contains("'--name'"));
}

#[test]
fn verbose_and_a_level_contradict_each_other() {
    let found = run(&["-v", "run", "--log-level", "info"]);
    assert_eq!(found.code, 2);
    assert_eq!(
        found.err,
        "e2d: flag --verbose: says again what flag --log-level says, expected one of them\n"
    );
}

#[test]
fn help_and_version_are_answers() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["config", "check", "--help"],
    ] {
        let found = run(arguments);
        assert_eq!((found.code, found.err.as_str()), (0, ""), "{arguments:?}");
        assert!(found.out.contains("Exit codes:\n  0  "), "{}", found.out);
        assert!(found.out.contains("3  the data directory is in use"));
    }
    let help = run(&["run", "-h"]).out;
    for flag in ["--data-dir", "E2D_DATA_DIR", "[etcd: --listen-client-urls]"] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
    assert!(!help.contains("unsafe-no-fsync"), "{help}");

    let found = run(&["version"]);
    assert_eq!((found.code, found.out.lines().count()), (0, 1));
    let line: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(line["e2d"]["Version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(line["etcd"]["Version"], "3.6.14");
    for (object, key) in [
        ("build", "Date"),
        ("build", "GoVersion"),
        ("build", "RustVersion"),
        ("e2d", "GitSHA"),
    ] {
        assert!(line[object][key].is_string(), "{object}.{key} in {line}");
    }
}

#[test]
fn etcd_answers_by_either_name() {
    for (arguments, name) in [(&["etcd"][..], None), (&[], Some("/usr/bin/etcd"))] {
        let dir = tempfile::tempdir().unwrap();
        let ask = |flags: &[&str]| {
            let all = [arguments, flags].concat();
            let mut command = e2d(dir.path(), &all);
            if let Some(name) = name {
                command.arg0(name);
            }
            answer(&mut command)
        };
        for flag in ["--version", "-version"] {
            let found = ask(&[flag]);
            assert_eq!((found.code, found.err.as_str()), (0, ""));
            let lines: Vec<&str> = found.out.lines().collect();
            assert_eq!(lines.len(), 4, "{lines:?}");
            assert_eq!(lines[0], "etcd Version: 3.6.14");
            assert!(lines[1].starts_with("Git SHA: "), "{lines:?}");
            assert!(lines[2].starts_with("Go Version: none (e2d "), "{lines:?}");
            assert!(lines[3].starts_with("Go OS/Arch: linux/"), "{lines:?}");
        }
        let found = ask(&["--help"]);
        assert_eq!((found.code, found.err.as_str()), (0, ""));
        assert!(found.out.contains("--listen-client-urls"));

        let found = ask(&["-name", "a", "-nonsense=1"]);
        assert_eq!((found.code, found.out.as_str()), (2, ""));
        let first = found.err.lines().next();
        assert_eq!(first, Some("flag provided but not defined: -nonsense"));
        assert!(found.err.contains("Usage:"));

        let found = ask(&["-name=a", "--cert-file", "x", "--heartbeat-interval=fast"]);
        assert_eq!((found.code, found.out.as_str()), (2, ""));
        assert_eq!(
            found.err,
            "e2d: flag --cert-file: is refused: TLS is not in this version, and nothing is served in plain text \
             that was asked to be encrypted\n\
             e2d: flag --heartbeat-interval: expected milliseconds from 1 to 50000 or a duration such as 500ms, \
             found \"fast\"\n"
        );
    }
}

#[test]
fn a_configuration_is_checked_and_printed_without_starting() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("own.toml");
    std::fs::write(&config, "[storage]\ndata-dir = \"/data\"\n").unwrap();
    // The machine that checks need not be the one that runs: its environment says nothing.
    let check = |flags: &[&str]| {
        let arguments = [&["config", "check", "own.toml"], flags].concat();
        answer(e2d(dir.path(), &arguments).env("E2D_NAM", "x"))
    };
    let found = check(&[]);
    assert_eq!(
        (found.code, found.out, found.err),
        (0, String::new(), String::new())
    );
    let found = check(&["--print"]);
    assert_eq!((found.code, found.err.as_str()), (0, ""));
    assert!(
        found
            .out
            .contains("data-dir = \"/data\" # own.toml:2 storage.data-dir\n"),
        "{}",
        found.out
    );
    // What is printed is a configuration, and says the same.
    std::fs::write(&config, &found.out).unwrap();
    let again = check(&["--print"]);
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split(" # ").next().unwrap_or_default().to_string())
            .collect()
    };
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!(values(&again.out), values(&found.out));

    std::fs::write(
        &config,
        "[storage]\ndata-dir = 1\nquota-backend-bytes = \"much\"\n",
    )
    .unwrap();
    let found = check(&["--print"]);
    assert_eq!((found.code, found.out.as_str()), (2, ""));
    assert_eq!(found.err.lines().count(), 2, "{}", found.err);
    let missing = run(&["config", "check", "missing.toml"]);
    assert_eq!(missing.code, 2);
    assert_eq!(
        missing.err,
        "e2d: missing.toml: cannot be read: No such file or directory (os error 2)\n"
    );
}

#[test]
fn shells_and_man_get_what_they_read() {
    for shell in ["bash", "zsh", "fish"] {
        let found = run(&["completion", shell]);
        assert_eq!((found.code, found.err.as_str()), (0, ""), "{shell}");
        assert!(found.out.contains("client-addr"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let found = answer(&mut e2d(dir.path(), &["docs", "man", "--dir", "man"]));
    assert_eq!((found.code, found.err.as_str()), (0, ""));
    let mut pages: Vec<String> = std::fs::read_dir(dir.path().join("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    assert_eq!(
        pages,
        [
            "e2d-completion.1",
            "e2d-config-check.1",
            "e2d-config.1",
            "e2d-etcd.1",
            "e2d-run.1",
            "e2d-version.1",
            "e2d.1",
        ]
    );
    let page = std::fs::read_to_string(dir.path().join("man/e2d-run.1")).unwrap();
    assert!(page.contains("E2D_DATA_DIR"), "{page}");
    // A name that is taken by a file.
    std::fs::write(dir.path().join("taken"), "").unwrap();
    let found = answer(&mut e2d(dir.path(), &["docs", "man", "--dir", "taken"]));
    assert_eq!(found.code, 1);
    assert!(
        found.err.starts_with("e2d: creating taken: "),
        "{}",
        found.err
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = e2d(Path::new("/"), &["completion", "bash"])
        .stdout(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}
