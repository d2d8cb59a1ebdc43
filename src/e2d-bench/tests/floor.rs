//! The whole program at work, with the floor server as the only server.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_e2d-bench"));
    command.arg("--data").arg(data).args(arguments);
    command.output().expect("the program under test starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}

#[test]
fn the_floor_is_measured_and_reported_in_table_json_and_document() {
    let directory = tempfile::tempdir().unwrap();
    let (json, document) = (
        directory.path().join("report.json"),
        directory.path().join("performance.md"),
    );
    let frame = "# Performance\n<!-- e2d-bench floor: begin -->\nnone\n<!-- e2d-bench floor: end -->\nThe end.\n";
    std::fs::write(&document, frame).unwrap();
    let (json_path, document_path) = (json.to_str().unwrap(), document.to_str().unwrap());
    let output = bench(
        directory.path(),
        &[
            "floor",
            "--ops",
            "500",
            "--warm-up",
            "0",
            "--rounds",
            "2",
            "--clients",
            "1,4",
            "--quick",
            "--json",
            json_path,
            "--update-doc",
            document_path,
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let shape: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["load"].as_str().unwrap(),
                row["clients"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(shape, [("put", 1), ("put", 4), ("get", 1), ("get", 4)]);
    for row in rows {
        let rounds = row["floor"]["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2);
        for round in rounds {
            let figure = |name: &str| round[name].as_f64().unwrap();
            assert!(figure("operations_per_second") > 0.0, "{round}");
            assert!(
                figure("p50_ms") > 0.0 && figure("p50_ms") <= figure("p999_ms"),
                "{round}"
            );
            assert!(
                figure("anonymous_mib") > 0.0 && figure("anonymous_mib") < figure("resident_mib"),
                "{round}"
            );
        }
    }
    assert_eq!(report["disk"].as_array().unwrap().len(), 2);

    let table = text(&output.stdout);
    assert!(table.contains("| put | 4 | floor |"), "{table}");
    let updated = std::fs::read_to_string(&document).unwrap();
    assert!(updated.contains(table.trim_end()), "{updated}");
    assert!(
        updated.starts_with("# Performance\n") && updated.ends_with("end -->\nThe end.\n"),
        "{updated}"
    );
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(
        left, 2,
        "only the report and the document are left in the data directory"
    );
}

#[test]
fn a_refused_operation_fails_the_run_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    // Given as a foreign server, the floor has to be filled, which it refuses.
    let server = format!("refuser={} floor-server", env!("CARGO_BIN_EXE_e2d-bench"));
    let output = bench(
        directory.path(),
        &["--quick", "--loads", "get", "--server", &server],
    );
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("server refuser still runs"), "{error}");
    assert!(error.contains("filling the store from key 0"), "{error}");
    assert!(error.contains("the floor server answers no Txn"), "{error}");
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "the data is removed after a failure"
    );
}

#[test]
fn a_document_without_the_section_is_refused_before_anything_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let document = directory.path().join("performance.md");
    std::fs::write(&document, "# Performance\n").unwrap();
    let path = document.to_str().unwrap();
    let output = bench(directory.path(), &["floor", "--update-doc", path]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("e2d-bench floor: begin"), "{error}");
    assert!(!error.contains("round 1"), "{error}");
}
