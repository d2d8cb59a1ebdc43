//! The table of settings as text: documentation, and what holds on a node.

use super::resolve::Effective;
use super::settings::{ABSENT, Fallback, SETTINGS, setting};

/// docs/configuration.md.
pub fn markdown() -> String {
    let mut text = String::from(HEAD);
    let mut section = "";
    for row in SETTINGS {
        let (Some(env), Some(_)) = (row.env(), row.key()) else {
            continue;
        };
        if row.section != section {
            section = row.section;
            text.push_str(&format!(
                "\n### [{section}]\n\n| TOML key | flag | environment | value | default | |\n|---|---|---|---|---|---|\n"
            ));
        }
        let mut flags: Vec<String> = row.short.iter().map(|c| format!("`-{c}`")).collect();
        flags.extend(row.run_flags().map(|flag| format!("`--{flag}`")));
        let default = match row.default {
            Fallback::Text("") => "none".to_string(),
            Fallback::Text(text) => format!("`{text}`"),
            Fallback::Derived(text) => text.to_string(),
        };
        text.push_str(&format!(
            "| `{}` | {} | `{env}` | {} | {default} | {} |\n",
            row.name,
            flags.join("<br>"),
            row.kind.describe(),
            row.help,
        ));
    }
    text.push_str("\n## Refused\n\n");
    text.push_str(
        "These names are known from the original e2d or from etcd. Giving one ends the start with its reason:\n\n",
    );
    let mut reasons: Vec<&str> = ABSENT.iter().map(|absent| absent.why).collect();
    reasons.dedup();
    let mut told: Vec<&str> = Vec::new();
    for why in reasons {
        if told.contains(&why) {
            continue;
        }
        told.push(why);
        let names: Vec<String> = ABSENT
            .iter()
            .filter(|absent| absent.why == why)
            .map(|absent| format!("`{}`", absent.name))
            .collect();
        text.push_str(&format!("- {}: {why}.\n", names.join(", ")));
    }
    text.push_str(&super::etcd::markdown());
    text
}

const HEAD: &str = "# Configuration

Generated from the table in `src/e2d/src/config/settings.rs`; do not edit.

## Where settings come from

`e2d run` takes each setting from the first of these that has it:

1. a flag,
2. an environment variable, `E2D_` and the flag's name in upper snake case; an empty one counts as not set,
3. drop-ins `/etc/e2d/e2d.toml.d/*.toml` and `/run/e2d/e2d.toml.d/*.toml`, sorted by file name, the last one first; a
   file in `/etc` hides its namesake in `/run`,
4. `/etc/e2d/e2d.toml`, or `/run/e2d/e2d.toml` where that does not exist,
5. the default.

`--config FILE` or `E2D_CONFIG=FILE` replaces 3 and 4 by `FILE.d/*.toml` and `FILE`.

A node starts only when everything that is written can be read, overridden values included. Unknown keys, flags and
`E2D_` variables are errors, except the variables by which Kubernetes announces a service called `e2d`. All errors are
printed at once, each with its place. `e2d config check [FILE]` does the same without starting anything, and with
`--print` shows what holds and where it comes from.

## How values are written

- Durations: `500ms`, `1m30s`, `1h`. Where the table says milliseconds, a bare integer is that.
- Sizes: bytes, or a number with `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `kB`, `MB`, `GB`, `TB` (of 1000).
- Addresses: `10.0.0.1`, `10.0.0.1:2379`, `[fd00::1]:2379`, `localhost`, each optionally behind `http://`. Lists are
  separated by commas; in TOML they may be arrays.

Without `--host` and `--client-addr` only this machine is served: there is no encryption in this version, and a store
that everybody can write to is nobody's wish. `--client-addr 0.0.0.0` serves every address.

## Settings
";

/// What holds, as a TOML file that says the same, with the source of every value as a comment.
pub fn effective_toml(effective: &[Effective]) -> String {
    let mut text = String::new();
    let mut section = "";
    for one in effective {
        let row = setting(one.setting);
        if row.name.is_empty() {
            continue;
        }
        if row.section != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            section = row.section;
            text.push_str(&format!("{gap}[{section}]\n"));
        }
        let number = row.kind.is_number() && one.text.bytes().all(|b| b.is_ascii_digit());
        let value = match one.text.parse::<i64>() {
            Ok(number_value) if number => number_value.to_string(),
            _ => toml::Value::String(one.text.clone()).to_string(),
        };
        text.push_str(&format!("{} = {value} # {}\n", row.name, one.source));
    }
    text
}
