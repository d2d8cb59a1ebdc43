//! The command line as clap sees it. Flags of `run` come from the table of settings.

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Arg, ArgAction, Command, value_parser};

use super::exit::ExitCode;
use super::version::{ETCD_VERSION, VERSION};
use crate::config::settings::{ABSENT, Fallback, SETTINGS, Setting};

/// The whole command line.
pub fn command() -> Command {
    Command::new("e2d")
        .about("A self-forming, self-healing store that speaks etcd's v3 API.")
        .version(VERSION)
        .styles(
            Styles::styled()
                .header(AnsiColor::Green.on_default().bold())
                .literal(AnsiColor::Cyan.on_default()),
        )
        .after_help(exit_codes())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .arg(verbose("verbose-main"))
        .subcommand(run())
        .subcommand(etcd())
        .subcommand(config())
        .subcommand(
            Command::new("version")
                .about("Print the versions of e2d and of etcd's API as one line of JSON"),
        )
        .subcommand(
            Command::new("completion")
                .about("Print the completion script of a shell")
                .arg(
                    Arg::new("shell")
                        .value_name("SHELL")
                        .required(true)
                        .value_parser(value_parser!(clap_complete::Shell)),
                ),
        )
        .subcommand(docs())
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for code in ExitCode::ALL {
        text.push_str(&format!("  {}  {}\n", code as u8, code.meaning()));
    }
    text
}

fn verbose(id: &'static str) -> Arg {
    Arg::new(id)
        .short('v')
        .long("verbose")
        .action(ArgAction::Count)
        .help("Log more: -v is debug, -vv is trace")
}

fn config_file() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(std::path::PathBuf))
        .help(
            "Read FILE and the drop-ins in FILE.d instead of /etc/e2d/e2d.toml and its drop-ins \
             [env: E2D_CONFIG]",
        )
}

fn run() -> Command {
    let mut run = Command::new("run")
        .about("Run a node")
        .long_about(
            "Run a node. What a flag does not say is taken from the environment, then from \
             /etc/e2d/e2d.toml and the drop-ins in /etc/e2d/e2d.toml.d and /run/e2d/e2d.toml.d, then from the \
             defaults.",
        )
        .after_help(exit_codes())
        .arg(config_file())
        .arg(verbose("verbose"));
    for setting in SETTINGS {
        for (i, flag) in setting.run_flags().enumerate() {
            let arg = Arg::new(flag)
                .long(flag)
                .value_name(setting.kind.placeholder())
                .value_parser(value_parser!(std::ffi::OsString))
                // `-1` is a value of the quota.
                .allow_hyphen_values(true);
            run = run.arg(match i {
                0 => describe(arg, setting),
                // An argument of its own, so that a message names the flag that was typed.
                _ => arg.hide(true),
            });
        }
    }
    // Known to the parser so that the answer is a reason, not "unexpected argument".
    for absent in ABSENT {
        run = run.arg(
            Arg::new(absent.name)
                .long(absent.name)
                .num_args(0..=1)
                .value_parser(value_parser!(std::ffi::OsString))
                .default_missing_value("true")
                .hide(true),
        );
    }
    run
}

fn describe(arg: Arg, setting: &Setting) -> Arg {
    let mut help = setting.help.to_string();
    if setting.etcd != setting.name && !setting.etcd.is_empty() {
        help.push_str(&format!(" [etcd: --{}]", setting.etcd));
    }
    match setting.default {
        Fallback::Text("") => {}
        Fallback::Text(text) => help.push_str(&format!(" [default: {text}]")),
        Fallback::Derived(text) => help.push_str(&format!(" [default: {text}]")),
    }
    if let Some(env) = setting.env() {
        help.push_str(&format!(" [env: {env}]"));
    }
    let arg = match setting.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    arg.help(help)
}

fn etcd() -> Command {
    Command::new("etcd")
        .about(format!(
            "Run a node with the command line, environment and configuration file of etcd {ETCD_VERSION}"
        ))
        .long_about(
            "Run a node with etcd's command line, ETCD_* environment and YAML configuration file. A link to \
             this binary that is called `etcd` does the same. `e2d etcd --help` lists the flags.",
        )
        .after_help(exit_codes())
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(
            Arg::new("arguments")
                .value_name("ETCD-FLAG")
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .value_parser(value_parser!(std::ffi::OsString)),
        )
}

fn config() -> Command {
    Command::new("config")
        .about("Look at configuration files")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(
            Command::new("check")
                .about("Say everything that is wrong with a configuration file")
                .long_about(
                    "Say everything that is wrong with FILE and the drop-ins in FILE.d, or with the standard \
                     files where no FILE is given. The environment is not looked at. Ends with 2 when something \
                     is wrong.",
                )
                .after_help(exit_codes())
                .arg(
                    Arg::new("file")
                        .value_name("FILE")
                        .value_parser(value_parser!(std::path::PathBuf)),
                )
                .arg(
                    Arg::new("print")
                        .long("print")
                        .action(ArgAction::SetTrue)
                        .help("Print every setting with its value and where it comes from, as TOML"),
                ),
        )
}

fn docs() -> Command {
    Command::new("docs")
        .about("Write documentation for packages")
        .hide(true)
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(
            Command::new("man")
                .about("Write a manual page for every command")
                .arg(
                    Arg::new("dir")
                        .long("dir")
                        .value_name("DIR")
                        .required(true)
                        .value_parser(value_parser!(std::path::PathBuf)),
                ),
        )
}
