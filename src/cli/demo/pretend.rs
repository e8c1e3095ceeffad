//! VMs that are not there, for a demo where none can be had: the daemon's own fake backend, with a runner that
//! speaks to the simulated GitHub and pretends to work.

use crate::app::Overrides;
use crate::config::Config;
use crate::guest::RunnerEnd;
use crate::hypervisor::fake::{FakeHypervisor, FakeOptions, FakeRunner};
use fake_github::Conclusion;
use fake_github::runner::{self, Behaviour, Work};
use secrecy::{ExposeSecret, SecretString};
use std::sync::Arc;
use std::time::Duration;

/// How long a pretended job takes.
const JOB: Duration = Duration::from_secs(2);

struct Pretended;

#[async_trait::async_trait]
impl FakeRunner for Pretended {
    async fn run(&self, jit_config: SecretString) -> RunnerEnd {
        let behaviour = Behaviour::working(Work::For(JOB, Conclusion::Success));
        let status = runner::run(jit_config.expose_secret(), behaviour).await;
        RunnerEnd { status, too_old: false }
    }
}

/// What the daemon uses in the place of a hypervisor.
#[must_use]
pub fn overrides(config: &Config) -> Overrides {
    let fake = &config.host.fake;
    let options = FakeOptions {
        clone: fake.clone.0,
        boot: fake.boot.0,
        destroy: fake.destroy.0,
        events_file: fake.events_file.clone(),
    };
    Overrides { hypervisor: Some(FakeHypervisor::new(options, Arc::new(Pretended))) }
}
