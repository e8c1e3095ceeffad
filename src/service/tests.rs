//! Plans as they are shown, property lists as a parser reads them, and a whole install below a directory.

use super::apply::{Done, Place};
use super::*;
use crate::doctor::shown;
use std::fs;

fn settings(system: System, duty: Duty, mode: BootMode) -> Settings {
    Settings {
        system,
        duty,
        user: None,
        mode,
        config_file: "/usr/local/etc/flyci/flyci.toml".into(),
        data_dir: if system == System::Mac { "/var/db/flyci".into() } else { "/var/lib/flyci".into() },
        kvm: true,
        program: "/Users/admin/Downloads/flyci".into(),
        version: "1.2.3".to_owned(),
        identity: "-".to_owned(),
        start: true,
        purge: false,
        shared: false,
    }
}

/// Each step as a line, and the text of each file.
fn page(steps: &[Step]) -> String {
    let act = |act: &Act| match act {
        Act::Directory { path, mode, owner } => format!("directory {} {mode:04o} {owner:?}", path.display()),
        Act::Write { path, mode, owner, text } => format!("write {} {mode:04o} {owner:?}\n{text}", path.display()),
        Act::Copy { from, to, mode } => format!("copy {} {} {mode:04o}", from.display(), to.display()),
        Act::Link { link, to } => format!("link {} {}", link.display(), to.display()),
        Act::Remove { path } => format!("remove {}", path.display()),
        Act::RemoveAll { path } => format!("remove all {}", path.display()),
        Act::Run { command, unless, may_fail } => {
            let unless = unless.as_ref().map(|unless| format!(" unless {}", shown(unless))).unwrap_or_default();
            format!("run{} {}{unless}", if *may_fail { " (may fail)" } else { "" }, shown(command))
        }
        Act::Ask { command } => format!("ask {command}"),
    };
    let line = |step: &Step| {
        let undo = step.undo.as_ref().map(|undo| format!("\n  undo: {}", act(undo))).unwrap_or_default();
        format!("# {}\n{}{undo}\n", step.why, act(&step.act))
    };
    steps.iter().map(line).collect()
}

#[test]
fn what_a_mac_host_becomes_was_read() {
    let settings = settings(System::Mac, Duty::Host, BootMode::Unattended);
    insta::assert_snapshot!("mac_host_install", page(&install(&settings)));
    insta::assert_snapshot!("mac_host_uninstall", page(&uninstall(&Settings { purge: true, ..settings })));
}

#[test]
fn what_a_mac_gateway_becomes_was_read() {
    insta::assert_snapshot!(
        "mac_gateway_install",
        page(&install(&settings(System::Mac, Duty::Gateway, BootMode::Attended)))
    );
}

#[test]
fn what_a_linux_machine_becomes_was_read() {
    let both = settings(System::Linux, Duty::Both, BootMode::Unattended);
    insta::assert_snapshot!("linux_install", page(&install(&both)));
    insta::assert_snapshot!("linux_uninstall", page(&uninstall(&Settings { purge: true, ..both })));
    insta::assert_snapshot!(
        "linux_gateway_install",
        page(&install(&settings(System::Linux, Duty::Gateway, BootMode::Unattended)))
    );
}

fn files(steps: &[Step]) -> Vec<(&Path, &str)> {
    steps
        .iter()
        .filter_map(|step| match &step.act {
            Act::Write { path, text, .. } => Some((path.as_path(), text.as_str())),
            _ => None,
        })
        .collect()
}

#[test]
fn launchd_would_read_the_property_lists() {
    for duty in [Duty::Host, Duty::Gateway, Duty::Both] {
        let odd = Settings {
            config_file: "/Volumes/R&D <1>/flyci.toml".into(),
            ..settings(System::Mac, duty, BootMode::Attended)
        };
        let steps = install(&odd);
        let (path, text) = files(&steps)
            .into_iter()
            .find(|(path, _)| path.starts_with("/Library/LaunchDaemons"))
            .expect("there is a property list");
        let value = plist::Value::from_reader_xml(text.as_bytes()).expect("it is a property list");
        let job = value.as_dictionary().expect("it is a dictionary");
        let label = job["Label"].as_string().expect("a label");
        assert_eq!(path, Path::new(&format!("/Library/LaunchDaemons/{label}.plist")));
        let arguments: Vec<_> =
            job["ProgramArguments"].as_array().expect("a list").iter().filter_map(plist::Value::as_string).collect();
        assert_eq!(arguments[..4], [PROGRAM, "serve", "--config", "/Volumes/R&D <1>/flyci.toml"]);
        assert_eq!(job["UserName"].as_string(), Some(odd.user().as_str()));
        assert_eq!(job["AbandonProcessGroup"].as_boolean(), Some(true), "a restart must not end VMs");
        assert_eq!(job["KeepAlive"].as_boolean(), Some(true));
        assert_eq!(job["ProcessType"].as_string(), Some("Interactive"));
        assert_eq!(job["Umask"].as_signed_integer(), Some(0o077));
        assert!(job["ExitTimeOut"].as_signed_integer() > Some(20), "the daemon's own deadline is 20 s");
        assert!(!job.contains_key("StandardOutPath"), "launchd never rotates it");
        assert!(!job.contains_key("SessionCreate") && !text.contains("<string>root</string>"));
    }
}

#[test]
fn the_entitlement_is_the_one_and_no_other() {
    let steps = install(&settings(System::Mac, Duty::Host, BootMode::Attended));
    let written = files(&steps);
    let (_, text) = written.iter().find(|(path, _)| path.ends_with("flyci.entitlements")).expect("it is written");
    let value = plist::Value::from_reader_xml(text.as_bytes()).expect("it is a property list");
    let keys: Vec<&String> = value.as_dictionary().expect("it is a dictionary").keys().collect();
    assert_eq!(keys, ["com.apple.security.virtualization"]);
}

#[test]
fn what_another_service_needs_is_left_to_it() {
    for system in [System::Mac, System::Linux] {
        let alone = settings(system, Duty::Host, BootMode::Attended);
        let removes = |settings: &Settings| page(&uninstall(settings)).contains(PROGRAMS);
        assert!(removes(&alone) && !removes(&Settings { shared: true, ..alone.clone() }));
        assert_eq!(others(&alone).len(), 2);
    }
}

#[test]
fn the_gateway_and_the_host_of_one_mac_are_two_users() {
    let user = |duty| settings(System::Mac, duty, BootMode::Attended).user();
    assert_ne!(user(Duty::Gateway), user(Duty::Host));
}

#[tokio::test]
async fn what_is_installed_is_there_once_and_gone_after_uninstalling() {
    let (root, source) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let program = source.path().join("flyci");
    fs::write(&program, "a program").expect("it is written");
    let place = Place::below(root.path());
    for system in [System::Linux, System::Mac] {
        let settings =
            Settings { program: program.clone(), purge: true, ..settings(system, Duty::Host, BootMode::Attended) };
        let plan = install(&settings);
        assert!(apply(&place, &plan).await.contains(&Done::Changed));
        assert!(!apply(&place, &plan).await.contains(&Done::Changed), "the second time there is nothing to do");
        let link = root.path().join("usr/local/bin/flyci");
        assert_eq!(fs::read_link(link).expect("a link"), Path::new("/usr/local/lib/flyci/flyci-1.2.3"));
        assert_eq!(
            fs::read_to_string(root.path().join("usr/local/lib/flyci/flyci-1.2.3")).expect("it is there"),
            "a program"
        );
        assert!(apply(&place, &uninstall(&settings)).await.contains(&Done::Changed));
        assert_eq!(files_below(root.path()), Vec::<PathBuf>::new(), "something was left");
        assert!(!apply(&place, &uninstall(&settings)).await.contains(&Done::Changed), "it can be done twice");
    }
}

#[tokio::test]
async fn an_upgrade_leaves_the_running_program_alone() {
    let (root, source) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let place = Place::below(root.path());
    for version in ["1.2.3", "1.2.4"] {
        let program = source.path().join(version);
        fs::write(&program, version).expect("it is written");
        let one = settings(System::Linux, Duty::Host, BootMode::Attended);
        apply(&place, &install(&Settings { program, version: version.to_owned(), ..one })).await;
    }
    let programs = root.path().join("usr/local/lib/flyci");
    assert_eq!(fs::read_to_string(programs.join("flyci-1.2.3")).expect("the old one is there"), "1.2.3");
    let link = fs::read_link(root.path().join("usr/local/bin/flyci")).expect("a link");
    assert_eq!(link, Path::new("/usr/local/lib/flyci/flyci-1.2.4"));
}

async fn apply(place: &Place, steps: &[Step]) -> Vec<Done> {
    let mut all = Vec::new();
    for step in steps {
        all.push(
            place.apply(step).await.unwrap_or_else(|error| panic!("{}: {}", step.why, crate::errors::chain(&error))),
        );
    }
    all
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it is readable").path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}
