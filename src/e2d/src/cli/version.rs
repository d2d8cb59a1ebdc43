//! What this binary is.

use serde_json::json;

/// The version of etcd whose API and semantics are spoken.
pub const ETCD_VERSION: &str = "3.6.14";

/// The version of e2d.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the binary was built from, or `unknown`.
pub const GIT_SHA: &str = env!("BUILT_E2D_GIT_SHA");

/// When the source was committed or, where `SOURCE_DATE_EPOCH` was set, that time; `unknown` in debug builds. Never
/// the time of the build, which would make every binary a different one.
pub const DATE: &str = env!("BUILT_E2D_DATE");

/// The compiler.
pub const RUSTC: &str = env!("BUILT_E2D_RUSTC");

/// One line of JSON with the keys that scripts know from the original. There is no Go in here and the line says so.
pub(super) fn line() -> String {
    json!({
        "build": { "Date": DATE, "GoVersion": "none", "RustVersion": RUSTC },
        "e2d": { "GitSHA": GIT_SHA, "Version": VERSION },
        "etcd": { "Version": ETCD_VERSION },
    })
    .to_string()
}

/// The four lines of `etcd --version`. Test rigs read the first one.
pub(super) fn etcd_lines() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: {GIT_SHA}\nGo Version: none (e2d {VERSION}, {RUSTC})\n\
         Go OS/Arch: {}/{arch}\n",
        std::env::consts::OS
    )
}
