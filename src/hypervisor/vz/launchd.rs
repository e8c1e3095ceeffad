//! What is said to launchd about a VM's process, and what it answers. Pure: nothing is run here.
//!
//! launchctl(1), launchd.plist(5). A job's plist lies in the vm's directory and goes with it; the job is gone when it
//! is booted out, at the latest with the session.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Where programs are found by a VM's process.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a VM's job is named, before the vm's id.
const LABEL: &str = "io.flyci.vm.";

/// The plist in a vm's directory.
const PLIST_FILE: &str = "launchd.plist";

/// What a new file of the process may be: its owner's (octal 077, which launchd takes in decimal).
const UMASK: u32 = 0o077;

/// How long launchd waits between SIGTERM and SIGKILL, in seconds.
const EXIT_TIMEOUT: u32 = 5;

/// How one VM's process is started and forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Where the plist lies.
    pub(super) file: PathBuf,
    /// What is in it.
    pub(super) plist: String,
    /// Starts the job.
    pub(super) bootstrap: Vec<String>,
    /// Ends the job, and forgets it.
    pub(super) bootout: Vec<String>,
}

impl Plan {
    /// The plan for a VM's directory; `words` are the program and its arguments.
    pub(super) fn new(uid: u32, words: &[String], directory: &Path, lock: &Path, log: &Path) -> Self {
        let vm = directory.file_name().unwrap_or_default().to_string_lossy();
        let label = format!("{LABEL}{vm}");
        let file = directory.join(PLIST_FILE);
        let domain = domain(uid);
        Self {
            plist: plist(&label, words, directory, lock, log),
            bootstrap: launchctl(&["bootstrap", &domain, &file.display().to_string()]),
            bootout: launchctl(&["bootout", &format!("{domain}/{label}")]),
            file,
        }
    }
}

fn domain(uid: u32) -> String {
    format!("gui/{uid}")
}

fn launchctl(arguments: &[&str]) -> Vec<String> {
    std::iter::once("/bin/launchctl").chain(arguments.iter().copied()).map(str::to_owned).collect()
}

/// Asks for a user's graphical session. It fails when there is none.
pub(super) fn print_session(uid: u32) -> Vec<String> {
    launchctl(&["print", &domain(uid)])
}

/// Lets loginwindow make the session of the user who logs in automatically again. VMs go on.
pub(super) fn restore_session() -> Vec<String> {
    ["sudo", "-n", "/usr/bin/killall", "-HUP", "loginwindow"].map(str::to_owned).into()
}

/// Whether what `launchctl print gui/UID` says is of a session at the screen.
pub(super) fn is_graphical(said: &str) -> bool {
    said.lines().any(|line| line.trim() == "session = Aqua")
}

/// Whether what launchctl complains of is that there is no such job, or no such session to have one.
pub(super) fn is_not_there(complaint: &str) -> bool {
    // 3: ESRCH; 113 and 125 are launchd's own: could not find service, domain does not support specified action.
    ["Boot-out failed: 3:", "Boot-out failed: 113:", "Boot-out failed: 125:", "Could not find domain"]
        .iter()
        .any(|known| complaint.contains(known))
}

fn plist(label: &str, words: &[String], directory: &Path, lock: &Path, log: &Path) -> String {
    let arguments = words.iter().fold(String::new(), |mut list, word| {
        // Writing to a string cannot fail.
        let _ = writeln!(list, "\t\t<string>{}</string>", escaped(word));
        list
    });
    let path = |path: &Path| escaped(&path.display().to_string());
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>{label}</string>
	<key>ProgramArguments</key>
	<array>
{arguments}	</array>
	<key>WorkingDirectory</key>
	<string>{directory}</string>
	<key>StandardInPath</key>
	<string>{lock}</string>
	<key>StandardOutPath</key>
	<string>/dev/null</string>
	<key>StandardErrorPath</key>
	<string>{log}</string>
	<key>EnvironmentVariables</key>
	<dict>
		<key>LC_ALL</key>
		<string>C.UTF-8</string>
		<key>PATH</key>
		<string>{PATH}</string>
	</dict>
	<key>Umask</key>
	<integer>{UMASK}</integer>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<false/>
	<key>ProcessType</key>
	<string>Interactive</string>
	<key>ExitTimeOut</key>
	<integer>{EXIT_TIMEOUT}</integer>
	<key>HardResourceLimits</key>
	<dict>
		<key>Core</key>
		<integer>0</integer>
	</dict>
</dict>
</plist>
"#,
        directory = path(directory),
        lock = path(lock),
        log = path(log),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "/var/db/flyci & co/vms/6f1c2a90-0000-4000-8000-000000000001";

    fn plan() -> Plan {
        let words = ["/usr/local/bin/flyci", "vm", "--directory", VM].map(str::to_owned);
        let vm = Path::new(VM);
        Plan::new(501, &words, vm, &vm.join("vm.lock"), &vm.join("vm.log"))
    }

    #[test]
    fn the_job_of_a_vm_is_as_it_was_read() {
        let plan = plan();
        insta::assert_snapshot!(format!("{}\n{}\n{}", plan.bootstrap.join(" "), plan.bootout.join(" "), plan.plist));
    }

    /// `launchctl print gui/501` of macOS 15 on a Mac where a user is logged in at the screen, cut.
    const AQUA: &str = "gui/501 = {\n\ttype = login\n\thandle = 100004\n\tactive count = 413\n\tservice count = 372\n\tactive service count = 128\n\tcreator = loginwindow[173]\n\tcreator euid = 0\n\tsession = Aqua\n\tendpoints = {\n\t}\n}\n";

    /// The same of a session that was made by ssh.
    const BACKGROUND: &str = "user/501 = {\n\ttype = user\n\tsession = Background\n\tsecurity context = {\n\t}\n}\n";

    #[test]
    fn a_session_at_the_screen_is_told_from_others() {
        assert!(is_graphical(AQUA));
        assert!(!is_graphical(BACKGROUND));
        assert!(!is_graphical("Bad request.\nCould not find domain for port-object 0\n"));
    }

    #[test]
    fn a_job_that_is_not_there_is_no_failure_and_others_are() {
        assert!(is_not_there("Boot-out failed: 3: No such process"));
        assert!(is_not_there("Boot-out failed: 113: Could not find specified service"));
        assert!(is_not_there("Could not find domain for port-object 0"), "the session is gone, and the job with it");
        assert!(!is_not_there("Boot-out failed: 5: Input/output error"));
        assert!(!is_not_there("Boot-out failed: 1: Operation not permitted"));
    }
}
