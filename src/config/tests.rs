//! What a configuration may say, and how it is told what it may not.

use super::*;
use crate::domain::units::{Bytes, Span};
use rsa::pkcs1::{EncodeRsaPrivateKey as _, LineEnding};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;
use tempfile::TempDir;

const EXAMPLE: &str = include_str!("../../config/flyci.example.toml");

const LINUX: &str = include_str!("../../config/flyci.linux.toml");

/// Bits of the App's key: the fewest that can sign, since making one takes a while.
const KEY_BITS: usize = 1024;

/// A certificate with its key, and the App's key, in PEM: made once.
fn keys() -> &'static [String; 3] {
    static KEYS: OnceLock<[String; 3]> = OnceLock::new();
    KEYS.get_or_init(|| {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["ci.example.com".to_owned()]).expect("a certificate");
        let app = rsa::PrivateKey::new(&mut rand::rng(), KEY_BITS).expect("a key");
        let app = app.to_pkcs1_pem(LineEnding::LF).expect("it is PEM").to_string();
        [cert.pem(), signing_key.serialize_pem(), app]
    })
}

/// A directory with the files that the example names.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(directory.path().join("tls")).expect("it is writable");
    let [certificate, key, app] = keys();
    for (name, content) in [("tls/fullchain.pem", certificate), ("tls/privkey.pem", key), ("github-app.pem", app)] {
        private(&directory, name, content);
    }
    private(&directory, "webhook-secret", "s3cret\n");
    directory
}

fn private(directory: &TempDir, name: &str, content: &str) {
    let path = directory.path().join(name);
    fs::write(&path, content).expect("it is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
}

fn report(directory: &TempDir, text: &str, variables: &[(&str, &str)]) -> Report {
    examine(Source::from_text(text, directory.path()).with_variables(variables), None)
}

/// The faults without the file's name, which differs from run to run.
fn faults(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let directory = directory();
    let prefix = format!("{}/", directory.path().display());
    report(&directory, text, variables).faults.iter().map(|fault| fault.to_string().replace(&prefix, "")).collect()
}

/// What a gateway cannot be without, and more keys after it.
fn gateway(more: &str) -> String {
    format!(
        "[github]\napp_id = 1\nprivate_key_file = \"github-app.pem\"\nwebhook_secret_file = \"webhook-secret\"\n\
         [web.tls]\nmode = \"self-signed\"\n{more}"
    )
}

/// The example with every default switched on.
fn example_with_defaults() -> String {
    let switched_on = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest.to_owned(),
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(switched_on).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let directory = directory();
    let example = Config::from_toml(EXAMPLE, directory.path()).expect("the example is valid");
    let defaults = Config::from_toml(&example_with_defaults(), directory.path()).expect("so are its defaults");
    assert_ne!(EXAMPLE, example_with_defaults());
    assert_eq!(example, defaults);
}

#[test]
fn the_shortest_configuration_for_linux_works_as_it_is() {
    let directory = directory();
    let config = Config::from_toml(LINUX, directory.path()).expect("it is valid");
    assert!(config.is_gateway() && config.is_host() && config.is_pulling());
}

#[test]
fn the_example_documents_every_key() {
    let directory = directory();
    let mut source = Source::from_text(EXAMPLE, directory.path());
    let values = source.values().expect("the example is TOML");
    let reading = Reading::new(&source);
    read(&reading, values);
    let mut section = String::new();
    let mut documented = std::collections::BTreeSet::new();
    for line in EXAMPLE.lines() {
        let text = line.trim_start_matches(['#', ' ']).trim_start_matches("e.g. ");
        if let Some(name) = text.strip_prefix('[').filter(|_| !line.starts_with('#')) {
            section = format!("{}.", name.trim_matches(['[', ']']));
        } else if let Some((key, _)) = text.split_once(" = ") {
            documented.insert(format!("{section}{key}"));
        }
    }
    let sections = [
        "web",
        "web.tls",
        "web.security_txt",
        "admin",
        "github",
        "tenants",
        "database",
        "host",
        "host.vz",
        "host.qemu",
        "host.fake",
        "runner",
    ];
    for key in reading.known() {
        let is_section = sections.contains(&key.as_str())
            || ["images", "limits", "keys", "keys.master", "retention", "profiles"].contains(&key.as_str());
        let of_a_profile = key.strip_prefix("profiles.").and_then(|rest| rest.rsplit_once('.'));
        let key = of_a_profile.map_or(key.clone(), |(_, name)| format!("profiles.{name}"));
        assert!(is_section || documented.contains(&key), "`{key}` is not in the example");
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Config::from_toml(EXAMPLE, directory().path()).expect("the example is valid");
    assert_eq!(config.roles, [Role::Gateway, Role::Host]);
    assert_eq!(config.web.listen.to_string(), "0.0.0.0:8443");
    assert_eq!(config.host.slots, 2);
    assert_eq!(config.host.reserve_memory, Bytes(4_000_000_000));
    assert_eq!(config.limits.job_timeout, Span::seconds(22_500));
    assert_eq!(config.limits.queue_timeout, Span::seconds(172_800));
    assert_eq!(config.retention.jobs, Span::seconds(34_560_000));
    assert_eq!(config.admin.socket, config.data_dir.join("admin.sock"));
    assert_eq!(config.profiles.len(), 10);
}

#[test]
fn all_faults_are_told_at_once() {
    let text = r#"
role = ["gateway"]
roles = ["gateway", "worker"]
[web]
listen = "everywhere"
[web.tls]
mode = "acme"
[github]
app_id = "one"
private_key_file = "missing.pem"
[limits]
boot_timout = "5m"
idle_timeout = 240
attempts = -1
[[profiles]]
label = "flyci-linux"
cpus = 2
memory = "seven"
disk_free = "28GB"
[colour]
"#;
    insta::assert_snapshot!(faults(text, &[]).join("\n"));
}

#[test]
fn what_keys_say_together_is_checked() {
    let text = r#"
data_dir = "/var/lib/a-directory-with-a-name-that-is-much-too-long-for-sockets"
[web]
listen = "0.0.0.0:9464"
public_url = "http://ci.example.com"
[web.tls]
mode = "off"
[admin]
listen = "0.0.0.0:9465"
[github]
app_id = 0
api_url = "http://api.github.com"
private_key_file = "open.pem"
webhook_secret_file = "webhook-secret"
[host]
name = "mini 1"
hypervisor = "vz"
slots = 3
cpu_overcommit = 0.0
[runner]
directory = "tls"
archive = "runner.tar.gz"
version = "newest"
[limits]
job_timeout = "30d"
jobs_per_installation = 0
[retention]
deliveries = "1h"
jobs = "6d"
[[profiles]]
label = "macOS"
cpus = 0
memory = "1MB"
disk_free = "1GB"
image = ""
[[profiles]]
label = "two words"
cpus = 1
memory = "1GB"
disk_free = "1GB"
image = "x"
[[profiles]]
label = "MACOS"
cpus = 1
memory = "1GB"
disk_free = "1GB"
image = "x"
"#;
    let directory = directory();
    private(&directory, "open.pem", "…");
    fs::set_permissions(directory.path().join("open.pem"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let prefix = format!("{}/", directory.path().display());
    let faults: Vec<_> =
        report(&directory, text, &[]).faults.iter().map(|fault| fault.to_string().replace(&prefix, "")).collect();
    // What depends on the system that the test runs on.
    let keys = ["host.hypervisor", "host.slots", ": data_dir = "];
    let (of_the_system, faults): (Vec<_>, Vec<_>) =
        faults.into_iter().partition(|fault| keys.iter().any(|key| fault.contains(key)));
    assert!(of_the_system.iter().any(|fault| fault.contains("the sockets below it")), "{of_the_system:?}");
    insta::assert_snapshot!(faults.join("\n"));
}

#[test]
fn pulled_deliveries_need_no_certificate_and_no_secret() {
    let text = "[github]\napp_id = 1\nprivate_key_file = \"github-app.pem\"\nintake = \"pull\"\n\
        [host]\nhypervisor = \"fake\"\nname = \"mini-1\"\n";
    assert_eq!(faults(text, &[]), Vec::<String>::new());
    let by_webhook = faults(&text.replace("pull", "webhook"), &[]).join("\n");
    for key in ["web.tls.cert_file", "web.tls.key_file", "github.webhook_secret_file"] {
        assert!(by_webhook.contains(key), "{by_webhook}");
    }
}

#[test]
fn the_environment_goes_over_the_file_and_is_named_in_faults() {
    let variables = [
        ("FLYCI_HOST__SLOTS", "1"),
        ("FLYCI_ROLES", "gateway"),
        ("FLYCI_HOST__QEMU__ALLOW_HOST_PORTS", "3000,3001"),
        ("FLYCI_GITHUB__APP_ID", "42"),
        ("FLYCI_PORT", "tcp://10.0.0.1:80"),
        ("FLYCI_CONFIG", "/etc/flyci/flyci.toml"),
    ];
    let config = report(&directory(), &gateway("[host]\nslots = 2\n"), &variables).config.expect("it is valid");
    assert_eq!(config.host.slots, 1);
    assert_eq!(config.roles, [Role::Gateway]);
    assert_eq!(config.host.qemu.allow_host_ports, [3000, 3001]);
    assert_eq!(config.github.expect("it is a gateway").app_id, 42);
    let variables = [("FLYCI_WEB__LISTEN", "nowhere"), ("FLYCI_HOST__SLOT", "1")];
    insta::assert_snapshot!(faults(&gateway(""), &variables).join("\n"));
}

#[test]
fn the_master_key_is_in_one_place_that_flyci_can_use() {
    let told = |keys: &str| faults(&gateway(keys), &[]).join("\n");
    for (keys, expected) in [
        ("[keys.master]\nfile = \"k\"\ncredential = \"c\"\n", "keys.master"),
        ("[keys.master]\ncredential = \"a/b\"\n", "keys.master.credential"),
        ("[keys.master]\ndescriptor = 2\n", "keys.master.descriptor"),
        ("[keys.master]\ncommand = [\"kms\", \"flyci\"]\n", "keys.master.command"),
        ("[keys]\nrotate_every = \"1h\"\n", "keys.rotate_every"),
        ("[keys]\nrotate_every = \"30d\"\n[keys.master]\ndescriptor = 3\n", "keys.rotate_every"),
        ("[retention]\naudit = \"30d\"\n", "retention.audit"),
    ] {
        assert!(told(keys).contains(expected), "{keys}: {}", told(keys));
    }
    for keys in [
        "",
        "[keys]\nrotate_every = \"30d\"\nmaster = { file = \"k\" }\n",
        "[keys]\nmaster = { command = [\"/usr/bin/kms\", \"flyci\"] }\n",
        "[keys]\nmaster = { credential = \"flyci\" }\n",
    ] {
        assert_eq!(told(keys), "", "{keys}");
    }
}

#[test]
fn a_fleet_host_needs_the_database_and_no_app() {
    let host = "roles = [\"host\"]\n";
    let told = faults(host, &[]);
    assert!(told.len() == 1 && told[0].contains("database.url: is missing"), "{told:?}");
    let url = "[database]\nurl = \"postgres://flyci@db/flyci\"\n";
    let config = report(&directory(), &format!("{host}{url}"), &[]).config.expect("it is valid");
    assert!(config.github.is_none() && config.is_host() && !config.is_gateway());
}

#[test]
fn a_password_is_masked_wherever_the_configuration_is_shown() {
    let text = gateway("[database]\nurl = \"postgres://flyci:s3cret@db/flyci\"\n");
    let config = Config::from_toml(&text, directory().path()).expect("it is valid");
    let url = config.database.url.as_ref().expect("it was given");
    assert_eq!(url.expose(), "postgres://flyci:s3cret@db/flyci");
    for shown in [show(&config), format!("{config:?}")] {
        assert!(shown.contains("postgres://flyci:***@db/flyci") && !shown.contains("s3cret"), "{shown}");
    }
    let malformed = gateway("[database]\nurl = \"postgre://flyci:s3cret@db/flyci\"\n");
    assert!(faults(&malformed, &[]).iter().all(|fault| !fault.contains("s3cret")));
}

#[test]
fn a_password_is_refused_where_others_can_read_it() {
    let url = "postgres://flyci:s3cret@db/flyci";
    let told = faults(&gateway(""), &[("FLYCI_DATABASE__URL", url)]);
    assert!(
        told.len() == 1 && told[0].starts_with("FLYCI_DATABASE__URL: database.url: has a password in it"),
        "{told:?}"
    );
    let directory = directory();
    let text = gateway(&format!("[database]\nurl = \"{url}\"\n"));
    let file = directory.path().join("flyci.toml");
    private(&directory, "flyci.toml", &text);
    assert!(Config::load(Some(&file)).is_ok());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let error = Config::load(Some(&file)).expect_err("others can read it");
    assert!(error.to_string().contains("run `chmod 600"), "{error}");
}

#[test]
fn what_is_shown_is_a_configuration_again() {
    let directory = directory();
    let config = Config::from_toml(EXAMPLE, directory.path()).expect("the example is valid");
    let again = Config::from_toml(&show(&config), directory.path()).expect("so is what is shown of it");
    assert_eq!(config, again);
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let directory = directory();
    let missing = directory.path().join("missing.toml");
    let error = Config::load(Some(&missing)).expect_err("it is missing");
    assert!(error.to_string().contains("missing.toml: does not exist"), "{error}");
    let told = faults("[web\nlisten = 1", &[]);
    assert!(told.len() == 1 && told[0].starts_with("flyci.toml: is no TOML:"), "{told:?}");
}

#[test]
fn a_profile_that_the_machine_can_never_run_is_a_warning() {
    let directory = directory();
    let machine = Machine { cpus: 8, memory: Bytes(16_000_000_000), hardware: "m2".into() };
    let text = EXAMPLE.replace("hardware = \"m1\"", "hardware = \"m3+\"");
    let source = Source::from_text(&text, directory.path());
    let report = examine(source, Some(&machine));
    assert!(report.config.is_some(), "a warning is no fault: {:?}", report.faults);
    let told: Vec<_> = report.warnings.iter().map(|warning| format!("{}: {}", warning.key, warning.problem)).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_host_is_dedicated_by_ids_that_it_can_find() {
    let id = "3f0c9a4e-1111-4222-8333-444455556666";
    let host = |to: &str| {
        let text = format!(
            "roles = [\"host\"]\n[database]\nurl = \"postgres://db/flyci\"\n[host]\nname = \"m\"\n\
             hypervisor = \"fake\"\ndedicated_to = [{to}]\n"
        );
        Config::from_toml(&text, Path::new("/etc/flyci"))
    };
    let config = host(&format!("\"{id}\"")).expect("our own ids need no key");
    assert_eq!(config.host.dedicated_to, [Beneficiary::Tenant(id.parse().expect("an id"))]);
    let faults = host("123").expect_err("GitHub's ids are found by the gateway's key").to_string();
    assert!(faults.contains("host.dedicated_to") && faults.contains("flyci tenants --json"), "{faults}");
    assert!(host("\"acme\"").is_err(), "a name is no id");
}

#[test]
fn only_the_real_thing_is_tested_before_work_by_default() {
    let tests = |hypervisor: &str, more: &str| {
        let text = format!(
            "roles = [\"host\"]\n[database]\nurl = \"postgres://db/flyci\"\n[host]\nname = \"m\"\n\
             hypervisor = \"{hypervisor}\"\n{more}"
        );
        Config::from_toml(&text, Path::new("/etc/flyci")).map(|config| config.host.self_test)
    };
    assert_eq!(tests("fake", ""), Ok(false));
    assert_eq!(tests("fake", "self_test = true\n"), Ok(true));
}

#[test]
fn a_file_that_is_not_what_its_key_wants_is_told_by_the_check() {
    let directory = directory();
    for name in ["no.pem", "passwords"] {
        private(&directory, name, "…");
    }
    private(&directory, "empty", "\n");
    private(&directory, "latin1", "…");
    fs::write(directory.path().join("latin1"), b"p\xe4ss").expect("it is ours");
    let other = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    private(&directory, "other.pem", &other);
    let text = r#"
[web.tls]
cert_file = "tls/fullchain.pem"
key_file = "other.pem"
[github]
app_id = 1
private_key_file = "no.pem"
previous_private_key_file = "other.pem"
webhook_secret_file = "empty"
previous_webhook_secret_file = "missing"
ca_file = "no.pem"
[database]
url = "postgres://flyci@db/flyci"
password_file = "latin1"
ca_file = "tls"
[host]
hypervisor = "fake"
name = "mini-1"
[images]
credentials_file = "passwords"
ca_file = "tls/fullchain.pem"
"#;
    let prefix = format!("{}/", directory.path().display());
    let told = |text: &str| -> Vec<String> {
        report(&directory, text, &[]).faults.iter().map(|fault| fault.to_string().replace(&prefix, "")).collect()
    };
    insta::assert_snapshot!(told(text).join("\n"));
    let server = |certificate: &str, key: &str| {
        let text = text.replace(
            "\"tls/fullchain.pem\"\nkey_file = \"other.pem\"",
            &format!("{certificate:?}\nkey_file = {key:?}"),
        );
        told(&text).into_iter().filter(|fault| fault.contains("web.tls")).collect::<Vec<_>>()
    };
    assert_eq!(server("tls/fullchain.pem", "tls/privkey.pem"), Vec::<String>::new());
    let neither = server("no.pem", "no.pem").join("\n");
    assert!(neither.contains("no certificate in PEM") && neither.contains("no private key in PEM"), "{neither}");
}

#[test]
fn one_wrong_value_is_one_fault() {
    let webhook = "[github]\napp_id = 1\nprivate_key_file = \"github-app.pem\"\n";
    let tls = "[web.tls]\nmode = \"self-signed\"\n";
    for (text, fault) in [
        // A mode that is none needs no files, an intake that is none no secret and no certificate.
        (gateway("").replace("self-signed", "acme"), "web.tls.mode"),
        (format!("{webhook}intake = \"webhok\"\n"), "github.intake"),
        // Roles that are none do not make it a gateway, nor no gateway.
        ("roles = [\"gatway\"]\n".to_owned(), "roles"),
        ("roles = [\"hosst\"]\n[host]\nhypervisor = \"fake\"\ndedicated_to = [7]\n".to_owned(), "roles"),
        ("role = [\"host\"]\n".to_owned(), "role"),
        // A section or key under another name is not missing.
        (format!("{tls}[githb]\napp_id = 1\n"), "githb"),
        (gateway("").replace("app_id", "app_ip"), "github.app_ip"),
        (gateway("").replace("[web.tls]\nmode", "[web]\ntls"), "web.tls"),
        // A listener that is none is on no address and has no port.
        (gateway("[web]\nlisten = 8443\n").replace("self-signed", "off"), "web.listen"),
        (gateway("[admin]\nmetrics_listen = \"127.0.0.1:8443\"\n[web]\nlisten = \"::\"\n"), "web.listen"),
        (gateway("[database]\nurl = 5432\npassword_file = \"webhook-secret\"\n"), "database.url"),
        (gateway("[runner]\nversion = \"2.330.0\"\ndirectory = 7\n"), "runner.directory"),
    ] {
        let directory = directory();
        let report = report(&directory, &text, &[]);
        let keys: Vec<&str> = report.faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, [fault], "{text}\n{:#?}", report.faults);
    }
    for text in
        ["profiles = 3\n", "[[profiles]]\nlabel = \"flyci-x\"\ncpus = \"two\"\n", "[[profile]]\nlabel = \"x\"\n"]
    {
        let directory = directory();
        let report = report(&directory, &format!("{text}{}", gateway("[host]\nhypervisor = \"fake\"\n")), &[]);
        assert!(!report.faults.is_empty());
        assert!(report.warnings.iter().all(|warning| warning.key != "profiles"), "{text}: {:#?}", report.warnings);
    }
}
