//! Two recorded Macs, one as it should be and one that is not, and what doctor says of them.

use super::probe::recorded::Recorded;
use super::*;
use std::path::Path;

const HOME: &str = "/var/db/flyci";
const PROGRAM: &str = "/usr/local/bin/flyci";
const UPDATER: &str = "defaults read /Library/Preferences/com.apple.SoftwareUpdate";
const LOGIN: &str = "defaults read /Library/Preferences/com.apple.loginwindow autoLoginUser";
const BOOTPD: &str = "defaults read /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default bootpd";
const ENTITLEMENTS: &str = "codesign -d --entitlements - --xml /usr/local/bin/flyci";
const QUARANTINE: &str = "xattr -p com.apple.quarantine /usr/local/bin/flyci";
const KEYCHAIN: &str = "security show-keychain-info /Users/user502/Library/Keychains/login.keychain-db";
const GB: u64 = 1_000_000_000;

fn config() -> Config {
    let text = "data_dir = \"/var/db/flyci\"\nroles = [\"host\"]\n[database]\nurl = \"postgres://db.example.com/flyci\"\n\
                [host]\nname = \"mini-1\"\nhypervisor = \"fake\"\n";
    Config::from_toml(text, Path::new("/usr/local/etc/flyci")).expect("it is right")
}

fn good_mac() -> Recorded {
    Recorded::default()
        .directory(HOME, 502, 200 * GB)
        .holds("/var/db/flyci/.metadata_never_index", "")
        .holds(MODE_FILE, "unattended\n")
        .holds("/var/db/dhcpd_leases", include_str!("recorded/good/dhcpd_leases.txt"))
        .says("sw_vers -productVersion", include_str!("recorded/good/sw_vers.txt"))
        .says("sysctl -n hw.optional.arm64", "1\n")
        .says("pmset -g", include_str!("recorded/good/pmset.txt"))
        .says(UPDATER, include_str!("recorded/good/softwareupdate.txt"))
        .says("systemsetup -getusingnetworktime", "Network Time: On\n")
        .says(ENTITLEMENTS, include_str!("recorded/good/codesign.txt"))
        .fails(QUARANTINE, "xattr: /usr/local/bin/flyci: No such xattr: com.apple.quarantine")
        .says("launchctl print gui/502", include_str!("recorded/good/launchctl.txt"))
        .says(KEYCHAIN, "")
        .says(LOGIN, "user502\n")
        .says("fdesetup status", "FileVault is Off.\n")
        .says("tmutil isexcluded /var/db/flyci", "[Excluded]    /var/db/flyci\n")
        .says("diskutil info /var/db/flyci", include_str!("recorded/good/diskutil.txt"))
        .says(BOOTPD, include_str!("recorded/good/bootpd.txt"))
        .says("ps -axo pid=,user=,command=", include_str!("recorded/good/ps.txt"))
}

fn bad_mac() -> Recorded {
    Recorded::default()
        .has(HOME, probe::About { uid: 502, mode: 0o755, device: 1, free: GB, is_directory: true })
        .holds(MODE_FILE, "unattended\n")
        .holds("/var/db/dhcpd_leases", include_str!("recorded/bad/dhcpd_leases.txt"))
        .says("sw_vers -productVersion", include_str!("recorded/bad/sw_vers.txt"))
        .fails("sysctl -n hw.optional.arm64", "sysctl: unknown oid 'hw.optional.arm64'")
        .says("pmset -g", include_str!("recorded/bad/pmset.txt"))
        .says(UPDATER, include_str!("recorded/bad/softwareupdate.txt"))
        .says("systemsetup -getusingnetworktime", "Network Time: Off\n")
        .fails(ENTITLEMENTS, include_str!("recorded/bad/codesign.txt"))
        .says(QUARANTINE, "0083;674f1a2b;Safari;D0B3F4A1-77C2-4E0E-9F0B-2B8C3B5C1D11\n")
        .fails("launchctl print gui/502", include_str!("recorded/bad/launchctl.txt"))
        .fails(
            KEYCHAIN,
            "security: SecKeychainCopySettings /Users/user502/Library/Keychains/login.keychain-db: User interaction is not allowed.",
        )
        .fails(LOGIN, "The domain/default pair of (/Library/Preferences/com.apple.loginwindow, autoLoginUser) does not exist")
        .says("fdesetup status", "FileVault is On.\n")
        .says("tmutil isexcluded /var/db/flyci", "[Included]    /var/db/flyci\n")
        .says("diskutil info /var/db/flyci", include_str!("recorded/bad/diskutil.txt"))
        .says(BOOTPD, include_str!("recorded/bad/bootpd.txt"))
        .says("ps -axo pid=,user=,command=", include_str!("recorded/bad/ps.txt"))
}

async fn look(mac: &Recorded) -> Vec<Check> {
    let config = config();
    let subject = Subject {
        system: System::Mac,
        config: &config,
        program: PROGRAM.into(),
        now: "2026-11-25T04:00:00Z".parse().expect("a time"),
    };
    machine(&subject, mac).await
}

fn of<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check `{name}`"))
}

fn page(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let fix = check.fix.as_deref().map(|fix| format!("\n    do: {fix}")).unwrap_or_default();
        format!("{:?} {}: {}{fix}\n", check.verdict, check.name, check.evidence)
    };
    checks.iter().map(line).collect()
}

#[tokio::test]
async fn a_mac_as_it_should_be_has_nothing_to_mend() {
    let checks = look(&good_mac()).await;
    assert!(checks.iter().all(|check| check.verdict == Verdict::Good), "{}", page(&checks));
    assert!(!is_degraded(&checks));
    insta::assert_snapshot!("good_mac", page(&checks));
}

#[tokio::test]
async fn a_mac_out_of_the_box_is_told_everything_at_once() {
    let checks = look(&bad_mac()).await;
    assert!(is_degraded(&checks));
    let well: Vec<&Check> = checks.iter().filter(|check| check.verdict == Verdict::Good).collect();
    assert!(well.iter().all(|check| check.name == "one volume"), "{well:?}");
    assert!(
        checks.iter().filter(|check| check.verdict != Verdict::Good).all(|check| check.fix.is_some()),
        "{}",
        page(&checks)
    );
    insta::assert_snapshot!("bad_mac", page(&checks));
}

#[tokio::test]
async fn a_mac_that_answers_nothing_is_unknown_not_bad() {
    let checks = look(&Recorded::default().directory(HOME, 502, 200 * GB)).await;
    assert!(!is_degraded(&checks), "{}", page(&checks));
    for name in ["macos version", "entitlement", "gui session", "power settings", "apfs", "other VMs"] {
        assert_eq!(of(&checks, name).verdict, Verdict::Unknown, "{name}");
    }
}

#[tokio::test]
async fn the_boot_mode_is_judged_by_what_was_chosen() {
    let mode = |word: &'static str, vault: &'static str, login: Option<&'static str>| async move {
        let mac = good_mac().holds(MODE_FILE, word).says("fdesetup status", vault);
        let mac = match login {
            Some(user) => mac.says(LOGIN, user),
            None => mac.fails(LOGIN, "does not exist"),
        };
        of(&look(&mac).await, "boot mode").verdict
    };
    assert_eq!(mode("attended", "FileVault is On.\n", None).await, Verdict::Good);
    assert_eq!(mode("attended", "FileVault is Off.\n", Some("user502\n")).await, Verdict::Bad);
    assert_eq!(mode("unattended", "FileVault is Off.\n", Some("user502\n")).await, Verdict::Good);
    assert_eq!(mode("unattended", "FileVault is Off.\n", Some("alice\n")).await, Verdict::Bad);
    assert_eq!(mode("nonsense", "FileVault is On.\n", None).await, Verdict::Warning);
    assert_eq!(mode("nonsense", "FileVault is Off.\n", None).await, Verdict::Bad);
}

#[test]
fn commands_are_shown_as_a_shell_reads_them() {
    assert_eq!(shown(&["chmod", "700", "/Volumes/My CI"]), "chmod 700 '/Volumes/My CI'");
    assert_eq!(shown(&["echo", "it's"]), "echo 'it'\\''s'");
}
