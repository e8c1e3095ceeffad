//! The daemon: this program, called again. All of it is real but the machines, which are in the test's process.

use crate::machines::{Remote, SOCKET};
use flyci::app::{Daemon, Overrides};
use flyci::config::Config;
use flyci::errors::chain;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// The environment's variable that names the daemon's directory, and makes this program a daemon.
pub const PLACE: &str = "FLYCI_POINTS_PLACE";
/// The configuration's file there.
pub const CONFIG: &str = "flyci.toml";

/// Runs until it is killed, or the test is gone.
pub fn run(place: &Path) -> ExitCode {
    tracing_subscriber::fmt().with_env_filter("flyci=debug").with_ansi(false).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let machines = Arc::new(Remote::new(place.join(SOCKET)));
        let text = std::fs::read_to_string(place.join(CONFIG)).expect("a configuration");
        let config = Config::from_toml(&text, place).unwrap_or_else(|faults| panic!("{faults}"));
        let overrides = Overrides { hypervisor: Some(Arc::clone(&machines) as Arc<dyn flyci::hypervisor::Hypervisor>) };
        // Kept: a daemon that is dropped ends nothing in order, and this one never ends in order.
        let _daemon = match Daemon::start(&config, overrides).await {
            Ok(daemon) => daemon,
            Err(error) => panic!("{}", chain(&error)),
        };
        machines.until_the_test_is_gone().await;
    });
    ExitCode::FAILURE
}
