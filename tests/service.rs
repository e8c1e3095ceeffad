//! `flyci service` as an operator meets it: the plan is printed, files are really installed below a directory and
//! taken away again, and systemd itself reads the unit where it is there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const CONFIG: &str = "roles = [\"host\"]\n[database]\nurl = \"postgres://db.example.com/flyci\"\n[host]\nname = \"h\"\n\
                      hypervisor = \"fake\"\n";

/// A machine's root, below a directory.
struct Machine {
    home: TempDir,
}

impl Machine {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("flyci.toml"), format!("data_dir = \"/var/lib/flyci\"\n{CONFIG}"))
            .expect("it is written");
        std::fs::create_dir(home.path().join("root")).expect("it is made");
        Self { home }
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flyci"));
        command.args(line.split_whitespace()).arg("--config").arg(self.home.path().join("flyci.toml"));
        for name in ["FLYCI_CONFIG", "FLYCI_LOG", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).output().expect("it starts")
    }

    fn does(&self, line: &str) -> String {
        let output = self.run(line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {said}");
        String::from_utf8(output.stdout).expect("output is UTF-8")
    }

    #[cfg(target_os = "linux")]
    fn install(&self) -> String {
        self.does(&format!("service install --root {}", self.root().display()))
    }

    fn files(&self) -> Vec<PathBuf> {
        files_below(&self.root())
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it is readable").path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_plans_of_both_systems_can_be_read_anywhere_and_do_nothing() {
    let machine = Machine::new();
    let mac = machine.does("service install --dry-run --system macos --mode attended");
    for part in
        ["io.flyci.host.plist", "codesign --force", "AbandonProcessGroup", "# attended: FileVault is on", "undo:"]
    {
        assert!(mac.contains(part), "{part}:\n{mac}");
    }
    let linux = machine.does("service install --dry-run --system linux");
    for part in ["useradd --system", "KillMode=process", "systemctl enable flyci-host.service"] {
        assert!(linux.contains(part), "{part}:\n{linux}");
    }
    assert!(machine.files().is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_installed_twice_is_there_once_and_uninstalling_leaves_nothing() {
    let machine = Machine::new();
    assert!(machine.install().contains('\u{2714}'));
    let unit = machine.root().join("etc/systemd/system/flyci-host.service");
    assert!(std::fs::read_to_string(&unit).expect("the unit is there").contains("KillMode=process"));
    let there = machine.files();
    let again = machine.install();
    assert!(!again.contains('\u{2714}'), "nothing is left to do: {again}");
    assert_eq!(machine.files(), there);
    systemd_accepts(&unit);
    machine.does(&format!("service uninstall --root {}", machine.root().display()));
    assert_eq!(machine.files(), Vec::<PathBuf>::new());
}

/// systemd-analyze looks for the program and the user on this machine, so it is shown ones that are there.
#[cfg(target_os = "linux")]
fn systemd_accepts(unit: &Path) {
    let text = std::fs::read_to_string(unit).expect("the unit is there");
    let here =
        text.replace("/usr/local/bin/flyci", env!("CARGO_BIN_EXE_flyci")).replace("User=flyci-host", "User=daemon");
    let copy = unit.with_file_name("flyci-copy.service");
    std::fs::write(&copy, here).expect("it is written");
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output() {
        Ok(output) => {
            // It also tells of what else is on the machine: only what it says of this unit counts.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("flyci-copy")).collect();
            assert!(ours.is_empty(), "{said}");
        }
        Err(error) => println!("systemd-analyze is not here ({error}): the unit was not verified by it"),
    }
    std::fs::remove_file(&copy).expect("it is ours");
}

#[test]
fn the_system_itself_is_changed_by_root_only() {
    if nix::unistd::Uid::effective().is_root() {
        println!("as root the refusal cannot be seen");
        return;
    }
    let machine = Machine::new();
    let output = machine.run("service install");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("sudo") && said.contains("--dry-run"), "{said}");
}
