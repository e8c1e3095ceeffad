//! What the same Postgres does without flyci: `pgbench` with a one-row insert.

use super::daemon::Child;
use std::process::Command;

/// How long `pgbench` inserts, in seconds.
const SECONDS: &str = "8";

pub fn inserts_per_second(daemon: &Child) -> f64 {
    let socket = daemon.data_dir().join("postgres").join("socket");
    let script = daemon.data_dir().join("insert.sql");
    std::fs::write(&script, "INSERT INTO bench (guid, event) VALUES (gen_random_uuid(), 'workflow_job');\n")
        .expect("the script is written");
    let psql = |sql: &str| {
        let done =
            Command::new("psql").arg("-h").arg(&socket).args(["-U", "flyci", "-d", "flyci", "-qc", sql]).status();
        assert!(done.expect("psql is installed").success(), "psql failed: {sql}");
    };
    psql("CREATE TABLE IF NOT EXISTS bench (guid uuid PRIMARY KEY, event text, at timestamptz DEFAULT now())");
    let output = Command::new(program())
        .arg("-h")
        .arg(&socket)
        .args([
            "-U",
            "flyci",
            "-n",
            "-M",
            "prepared",
            "-j",
            "2",
            "-T",
            SECONDS,
            "-c",
            &daemon.connections.to_string(),
            "-f",
        ])
        .arg(&script)
        .arg("flyci")
        .output()
        .expect("pgbench is installed");
    psql("DROP TABLE bench");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Debian keeps it beside the server's programs.
fn program() -> String {
    let pattern = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = pattern.map(|entry| entry.path().join("bin/pgbench")).find(|path| path.exists());
    found.map_or("pgbench".into(), |path| path.display().to_string())
}
