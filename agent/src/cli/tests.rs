//! The shape of the command line: it parses what the documents say, and every command has examples.

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn clap_finds_nothing_to_complain_about() {
    command().debug_assert();
}

#[test]
fn what_the_documents_say_parses() {
    for line in [
        "holdfast agent --config a.toml --data-dir d --listen unix:./a.sock --node n --data-ports 1-2 --bind ::1",
        "holdfast agent --bin-dir b --runtime-dir r --log-format json --stop-instances --replica-timeout 8s",
        "holdfast agent --suspend-timeout 5m --trash-ttl 24h",
        "holdfast quickstart --size 64M --data-dir d --replicas 3 --io-mode direct --ready-file r --data-ports 5-9",
        "holdfast volume create db --size 10GiB --replicas 3",
        "holdfast volume attach db",
        "holdfast volume attach db --nbd-tcp 10809",
        "holdfast volume detach db --force",
        "holdfast volume delete db --purge-data",
        "holdfast volume ls -o json",
        "holdfast -o json volume show db",
        "holdfast volume wait db --for healthy --timeout 60s",
        "holdfast volume wait db --for degraded",
        "holdfast instance ls",
        "holdfast instance show a",
        "holdfast instance logs a -f --tail 5",
        "holdfast instance stop a --uuid u",
        "holdfast replica ls",
        "holdfast agent --orphan-auto-cleanup instance,replica-data --orphan-grace-period 0s",
        "holdfast orphan ls",
        "holdfast orphan show a",
        "holdfast orphan hold a",
        "holdfast orphan release a --uuid u",
        "holdfast orphan delete a",
        "holdfast trash ls",
        "holdfast trash restore a",
        "holdfast trash empty",
        "holdfast trash empty a",
        "holdfast trash empty --yes",
        "holdfast volume delete db --purge-data --yes",
        "holdfast volume undelete db --from-trash",
        "holdfast uninstall --purge-data --yes",
        "holdfast node show --agent unix:/a",
        "holdfast node drain b --timeout 1h",
        "holdfast node drain b --no-wait",
        "holdfast node undrain b",
        "holdfast node safe-to-reboot",
        "holdfast node safe-to-reboot b",
        "holdfast node forget b --yes",
        "holdfast node rename old new",
        "holdfast node rename old new --config a.toml --data-dir d --registry etcd://127.0.0.1:2379/a",
        "holdfast agent --replenish-after 10m --disk-reserve 5%",
        "holdfast agent --no-wait",
        "holdfast registry show",
        "holdfast registry accept --yes",
        "holdfast --agent /a watch",
        "holdfast version",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn instances_are_started_by_the_same_words() {
    let flags = "--name demo.x --uuid 6f1c0d0e-0000-4000-8000-000000000001 --instance-dir /i --control /c";
    let engine = parse(&format!("holdfast engine {flags}")).unwrap();
    assert!(matches!(engine.command, Command::Engine(_)));
    let replica = parse(&format!("holdfast replica {flags}")).unwrap();
    assert!(matches!(replica.command, Command::Replica(replica::Args { command: None, process: Some(_) })));
    assert!(parse("holdfast replica --name only").is_err());
    assert!(matches!(
        parse("holdfast replica ls").unwrap().command,
        Command::Replica(replica::Args { command: Some(replica::Command::Ls), process: None })
    ));
}

#[test]
fn agent_of_the_environment_counts_where_none_is_given() {
    let asked = |line: &str, named: Option<&str>| {
        let mut global = parse(line).unwrap().global;
        global.ask(named.map(Into::into)).map(|()| global.agent)
    };
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!(asked("holdfast volume ls", Some("unix:/e")).unwrap(), path("/e"));
    assert_eq!(asked("holdfast volume ls --agent unix:/a", Some("unix:/e")).unwrap(), path("/a"));
    for nothing in [None, Some("")] {
        assert_eq!(asked("holdfast volume ls", nothing).unwrap(), None);
    }
    let error = asked("holdfast volume ls", Some("tcp:1.2.3.4")).unwrap_err();
    assert_eq!(error.kind.exit_code(), 2);
    assert!(error.to_string().contains("HOLDFAST_AGENT"), "{error}");
}

#[test]
fn usage_errors_exit_with_2() {
    for line in [
        "holdfast",
        "holdfast volume",
        "holdfast volume create db",
        "holdfast volume create Bad_Name --size 1G",
        "holdfast volume create db --size 1parsec",
        "holdfast volume create db --size 1G --replicas 9",
        "holdfast volume wait db --for ready",
        "holdfast volume wait db --for healthy --timeout 60",
        "holdfast nonsense",
        "holdfast volume ls -o yaml",
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.use_stderr() && error.exit_code() == 2, "{line}: {error}");
    }
}

#[test]
fn json_is_honoured_even_where_the_rest_does_not_parse() {
    let arguments = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
    for line in ["h volume -o json", "h -ojson x", "h x --output=json", "h x --output json"] {
        assert!(wants_json(&arguments(line)), "{line}");
    }
    for line in ["h volume", "h volume -o text json", "h json"] {
        assert!(!wants_json(&arguments(line)), "{line}");
    }
}

#[test]
fn every_command_a_person_can_run_has_examples() {
    fn walk(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        if command.is_hide_set() {
            return;
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Examples:"), "{path} has no examples");
        assert!(
            help.contains(path.trim()) || path.trim() == "holdfast",
            "{path}: its examples do not use it: {help}"
        );
        command.get_subcommands().for_each(|sub| walk(sub, &path));
    }
    walk(&command(), "");
}
