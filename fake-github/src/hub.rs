//! The one owner of the [`World`]: changes go through it, events leave through it, waits end through it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonwebtoken::DecodingKey;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::webhooks::sender::{Redelivery, SharedTarget};
use crate::world::{Event, World};

/// A wait that met its deadline; says what was waited for.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not come about within {within:?}")]
pub struct Late {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub within: Duration,
}

/// Shared by the server's handlers, the control verbs and the webhook sender.
pub struct Hub {
    world: Mutex<World>,
    changed: watch::Sender<u64>,
    /// What it is connected to.
    pub wiring: Wiring,
}

/// What a hub is connected to besides its world.
pub struct Wiring {
    /// Takes events to the webhook sender.
    pub events: UnboundedSender<Event>,
    /// Asks for another attempt of a delivery.
    pub redeliveries: UnboundedSender<Redelivery>,
    /// Where webhooks go.
    pub target: SharedTarget,
    /// Signs webhooks.
    pub webhook_secret: String,
    /// Checks the App's JWTs.
    pub app_key: DecodingKey,
    /// The server's CA, PEM; absent on plain HTTP.
    pub ca_pem: Option<String>,
    /// Where runners reach the server.
    pub runner_url: String,
    /// Authorises `/_control`.
    pub control_token: String,
}

impl Hub {
    /// Takes over a world.
    pub fn new(world: World, wiring: Wiring) -> Arc<Self> {
        Arc::new(Self { world: Mutex::new(world), changed: watch::Sender::new(0), wiring })
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        // A panic in a test's closure must not hide behind a second one.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the world.
    pub fn read<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.lock())
    }

    /// Changes the world; what it emits goes out in that order, and waits look again.
    pub fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.lock();
        let out = change(&mut world);
        for event in std::mem::take(&mut world.outbox) {
            // Fails only when the sender has stopped with the server.
            self.wiring.events.send(event).ok();
        }
        drop(world);
        self.changed.send_modify(|n| *n += 1);
        out
    }

    /// Counts without waking waits: for what no wait looks at.
    pub fn count<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.lock())
    }

    /// Waits until every event was sent (or dropped) and answered. Answers how many attempts failed.
    pub async fn settled(&self, within: Duration) -> Result<usize, Late> {
        let failed = |w: &World| w.log.iter().filter(|r| !r.ok()).count();
        let look = |w: &World| (w.in_flight == 0).then(|| failed(w));
        self.wait("every event delivered", within, look).await
    }

    /// Waits until `look` answers something.
    pub async fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&World) -> Option<T>,
    ) -> Result<T, Late> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = self.read(&mut look) {
                    return found;
                }
                // The hub outlives this call, so the channel cannot close.
                changed.changed().await.ok();
            }
        };
        tokio::time::timeout(within, waiting).await.map_err(|_| Late { what: what.into(), within })
    }
}
