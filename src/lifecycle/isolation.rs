//! What a guest must not reach, tried from inside one: the first vm of an image in a new world (`[host] self_test`)
//! connects to this host's addresses and to the metadata service of clouds. Until one has tried in vain, the host
//! takes no job.
//!
//! Does not: keep guests from anything (`hypervisor`, the host's packet filter), or find what nobody listens at: of the
//! local network only the host itself is tried, where flyci listens meanwhile.

use super::Machine;
use crate::api::Trouble;
use crate::guest::{Guest, GuestError};
use crate::store::vms::Vm;
use crate::store::{StoreError, hosts};
use crate::{machine, troubles};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use tokio::net::TcpListener;

/// How long the guest may try; each connection has three seconds, and they are made at once.
const TRIAL: Duration = Duration::from_secs(30);
/// Addresses of this host that are tried at most: containers make many.
const MAX_ADDRESSES: usize = 32;
/// The host as QEMU's own network shows it, where nothing keeps it from that.
const QEMUS_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The metadata service of clouds: credentials for whoever asks.
const METADATA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);

/// Why a guest counts as not isolated.
#[derive(Debug, thiserror::Error)]
pub enum BreachError {
    /// It reaches what it must not.
    #[error("the guest reaches {}, which no job may reach", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Reached(Vec<SocketAddrV4>),
    /// It could not be tried.
    #[error("it could not be tried what the guest reaches")]
    Guest(#[from] GuestError),
    /// The host could not listen, or does not know its addresses.
    #[error("this host could not be made ready for its guest to try")]
    Host(#[from] std::io::Error),
}

/// Lets the guest try, if no vm of its image did in this world. `None`: all is well, or it was not asked for.
pub(super) async fn breach(machine: &Machine, vm: &Vm) -> Result<Option<BreachError>, StoreError> {
    if !machine.probe_network || !hosts::is_untested(&machine.pool, machine.fence.host, &vm.image).await? {
        return Ok(None);
    }
    let outcome = try_all(&*machine.hypervisor.guest(vm.id)).await;
    let reached = match &outcome {
        Err(error @ BreachError::Reached(_)) => Some(trouble(&machine.name, error)),
        Err(BreachError::Guest(_) | BreachError::Host(_)) | Ok(()) => None,
    };
    machine.troubles.set(troubles::NOT_ISOLATED, reached);
    Ok(outcome.err())
}

async fn try_all(guest: &dyn Guest) -> Result<(), BreachError> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = listener.local_addr()?.port();
    let own = machine::addresses()?.into_iter().take(MAX_ADDRESSES).chain([QEMUS_HOST]);
    let targets: Vec<_> = own.map(|address| SocketAddrV4::new(address, port)).chain([METADATA]).collect();
    let reached = tokio::select! {
        reached = tokio::time::timeout(TRIAL, guest.reached(&targets)) => reached,
        error = turn_away(&listener) => return Err(error.into()),
    };
    match reached {
        Ok(Ok(reached)) if reached.is_empty() => Ok(()),
        Ok(Ok(reached)) => Err(BreachError::Reached(reached)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(GuestError::Unreachable(format!("it tried for more than {} s", TRIAL.as_secs())).into()),
    }
}

/// Closes whatever connects; ends when it cannot listen any more.
async fn turn_away(listener: &TcpListener) -> std::io::Error {
    loop {
        if let Err(error) = listener.accept().await {
            return error;
        }
    }
}

fn trouble(host: &str, error: &BreachError) -> Trouble {
    Trouble {
        what: format!("guests of {host} are not isolated: it takes no jobs"),
        evidence: error.to_string(),
        fix:
            "keep them from it: on a Mac by rules of the packet filter for 192.168.64.0/24; then it is tried again by \
              itself. Where guests may reach the host: `probe_network = false` under [host], and restart"
                .to_owned(),
    }
}
