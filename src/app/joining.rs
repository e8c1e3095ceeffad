//! A host joins its fleet: by a token that an operator got from a gateway, it proves that its key is its own.
//!
//! Nothing but the database is spoken to, by the host's own login: no port is open for it, neither here nor at a
//! gateway. The token stays here; what is written is a MAC by it.

use super::AppError;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::domain::ids::HostId;
use crate::secrets::sealing::HostKey;
use crate::secrets::vouch::{JoinToken, fingerprint};
use crate::store::external::{self, External};
use crate::store::{self, Role, fleet, joins};
use std::time::Duration;
use tokio::time::Instant;

/// How long a gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether one did.
const LOOK: Duration = Duration::from_millis(500);
/// Connections that joining needs.
const CONNECTIONS: u32 = 1;

/// A host that was let in.
pub struct Joined {
    /// Its name.
    pub name: String,
    /// Names its key: the same as in the gateway's audit trail.
    pub fingerprint: String,
}

/// Asks to join, and waits for a gateway's word.
///
/// # Errors
/// When the database refuses, no gateway answers in time, or one says no.
pub async fn join(config: &Config, token: &JoinToken) -> Result<Joined, AppError> {
    let Some(url) = &config.database.url else { return Err(AppError::NothingToJoin) };
    // Its daemon must not run: it would go on with another key.
    let _data_dir = DataDir::lock(&config.data_dir)?;
    let key = HostKey::open_or_create(&config.host_key_file())?;
    let options = external::connect_options(External {
        url: url.expose(),
        password_file: config.database.password_file.as_deref(),
        ca_file: config.database.ca_file.as_deref(),
    })?;
    let pool = store::connect(&options.application_name("flyci join"), Role::Host, CONNECTIONS).await?;
    store::check_schema(&pool).await?;
    let (fleet, login, name) = (fleet::id(&pool).await?, joins::login(&pool).await?, &config.host.name);
    let proof = token.prove(fleet, name, &login, key.public());
    joins::apply(&pool, HostId::random(), name, key.public(), &proof).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = joins::identity(&pool, name).await?.filter(|row| row.public_key == key.public());
        match row {
            Some(row) if row.is_waiting => {}
            Some(row) if row.mac.is_some() => {
                return Ok(Joined { name: name.clone(), fingerprint: fingerprint(key.public()) });
            }
            Some(_) | None => return Err(AppError::JoinRefused { name: name.clone(), login }),
        }
        if Instant::now() >= deadline {
            return Err(AppError::JoinUnanswered(PATIENCE.as_secs()));
        }
        tokio::time::sleep(LOOK).await;
    }
}
