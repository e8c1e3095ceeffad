//! The listeners: the public one, the operator's, and the one for metrics.

use super::AppError;
use super::database::Databases;
use super::gateway;
use super::vault::Vault;
use crate::config::{self, Config};
use crate::domain::ids::FleetId;
use crate::metrics::Metrics;
use crate::troubles::Troubles;
use crate::wake::Wakes;
use crate::web::admin::{self, About, AdminState, RunnerReleases};
use crate::web::servers::{self, Lifetime, Running};
use crate::web::{
    MetricsState, PublicState, Purse, Readiness, SecurityTxt, Tls, TlsMode, metrics_router, public_router,
};
use chrono::Utc;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// What the listeners need of the daemon.
pub struct Backing<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The pools.
    pub databases: &'a Databases,
    /// Takes deliveries in, if this is a gateway.
    pub gateway: Option<&'a gateway::Running>,
    /// Opens stored names, if this is a gateway.
    pub vault: Option<&'a Vault>,
    /// The fleet.
    pub fleet: FleetId,
    /// Wakes loops and drivers.
    pub wakes: &'a Arc<Wakes>,
    /// What `/readyz` says.
    pub readiness: &'a Arc<Readiness>,
    /// What this process found wrong.
    pub troubles: &'a Arc<Troubles>,
    /// What Prometheus reads.
    pub metrics: &'a Arc<Metrics>,
    /// The releases of GitHub's runner.
    pub releases: &'a Arc<RunnerReleases>,
    /// Whom to tell of a hole.
    pub security_txt: Option<&'a Arc<SecurityTxt>>,
}

/// The listeners of a daemon.
#[derive(Default)]
pub struct Servers {
    /// Where deliveries come in.
    pub public: Option<SocketAddr>,
    /// Where metrics are read.
    pub metrics: Option<SocketAddr>,
    tcp: Vec<Running<SocketAddr>>,
    sockets: Vec<Running<PathBuf>>,
    tls: Option<Tls>,
}

impl Servers {
    /// Starts the listeners that the configuration names.
    ///
    /// # Errors
    /// When an address, a certificate or the socket cannot be used.
    pub fn start(backing: &Backing<'_>, lifetime: &Lifetime) -> Result<Self, AppError> {
        let mut servers = Self::default();
        servers.start_operators(backing, lifetime)?;
        if let Some(gateway) = backing.gateway
            && let Some(sources) = &gateway.sources
        {
            let state = PublicState {
                intake: Arc::clone(&gateway.intake),
                readiness: Arc::clone(backing.readiness),
                metrics: Arc::clone(backing.metrics),
                purse: Arc::new(Purse::default()),
                sources: Arc::clone(sources),
                security_txt: backing.security_txt.cloned(),
            };
            servers.start_public(backing.config, state, lifetime)?;
        }
        Ok(servers)
    }

    fn start_public(&mut self, config: &Config, state: PublicState, lifetime: &Lifetime) -> Result<(), AppError> {
        let (listen, sources) = (config.web.listen, Arc::clone(&state.sources));
        let (running, tls) =
            servers::start_public(listen, &tls_mode(config), public_router(state), &sources, lifetime)?;
        tracing::info!(address = %running.address, "deliveries are taken");
        self.public = Some(running.address);
        self.tls = tls;
        self.tcp.push(running);
        Ok(())
    }

    fn start_operators(&mut self, backing: &Backing<'_>, lifetime: &Lifetime) -> Result<(), AppError> {
        let config = backing.config;
        if let Some(vault) = backing.vault {
            let router = admin::router(admin_state(backing, vault));
            self.sockets.push(servers::start_admin_socket(&config.admin.socket, router.clone(), lifetime)?);
            if let Some(listen) = config.admin.listen {
                self.tcp.push(servers::start_admin_tcp(listen, router, lifetime)?);
            }
        }
        if let Some(listen) = config.admin.metrics_listen.0 {
            let pool = backing.databases.any();
            let state = MetricsState { metrics: Arc::clone(backing.metrics), pool: pool.clone() };
            let running = servers::start_metrics(listen, metrics_router(state), lifetime)?;
            self.metrics = Some(running.address);
            self.tcp.push(running);
        }
        Ok(())
    }

    /// Reads the certificate again: it was renewed.
    pub fn reload(&self) {
        let Some(tls) = &self.tls else { return };
        match tls.reload() {
            Ok(()) => tracing::info!("the certificate was read again"),
            Err(error) => {
                tracing::error!(error = %crate::errors::chain(&error), "the certificate cannot be read again; the one before stays in use");
            }
        }
    }

    /// Returns when all listeners have stopped.
    pub async fn stopped(self) {
        for server in self.tcp {
            server.stopped().await;
        }
        for server in self.sockets {
            server.stopped().await;
        }
    }
}

fn admin_state(backing: &Backing<'_>, vault: &Vault) -> AdminState {
    let config = backing.config;
    AdminState {
        pool: backing.databases.gateway().clone(),
        ring: Arc::clone(&vault.ring),
        trail: vault.trail.clone(),
        warrant: Arc::clone(&vault.warrant),
        keeper: Arc::clone(&vault.keeper),
        eraser: Arc::clone(&vault.eraser),
        auditor: Arc::clone(&vault.auditor),
        wakes: Arc::clone(backing.wakes),
        readiness: Arc::clone(backing.readiness),
        troubles: Arc::clone(backing.troubles),
        metrics: Arc::clone(backing.metrics),
        releases: Arc::clone(backing.releases),
        about: Arc::new(About {
            fleet: backing.fleet,
            roles: config.roles.iter().map(ToString::to_string).collect(),
            intake: config.github.as_ref().map_or("none", |github| github.intake.as_str()).to_owned(),
            started_at: Utc::now(),
            vms_per_tenant: config.limits.jobs_per_installation,
            profiles: config.profiles.clone(),
        }),
    }
}

fn tls_mode(config: &Config) -> TlsMode {
    let tls = &config.web.tls;
    match (tls.mode, &tls.cert_file, &tls.key_file) {
        (config::TlsMode::Files, Some(cert_file), Some(key_file)) => {
            TlsMode::Files { cert_file: cert_file.clone(), key_file: key_file.clone() }
        }
        (config::TlsMode::SelfSigned, cert_file, _) => TlsMode::SelfSigned {
            cert_file: cert_file.clone().unwrap_or_else(|| config.data_dir.join("web.crt")),
            names: vec!["localhost".into(), "127.0.0.1".into(), "::1".into()],
        },
        // `files` without its files was refused when the configuration was read.
        (config::TlsMode::Files | config::TlsMode::Off, _, _) => TlsMode::Off,
    }
}
