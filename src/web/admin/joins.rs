//! `/hosts/{name}/invite` and `/hosts/{name}/revoke`: who belongs to the fleet.

use super::guard::Operator;
use super::input::Body;
use super::{AdminState, record};
use crate::api;
use crate::secrets::vouch;
use crate::store::{StoreError, joins};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::{Path, State};

/// How long an invitation may be used, in minutes.
const MINUTES: i32 = 15;
/// The longest name of a host, and of a login of Postgres, in bytes.
const MAX_NAME: usize = 63;
/// What the logins of hosts begin with, if nothing else is said.
const LOGIN_PREFIX: &str = "flyci_host_";
/// Connections that a host's login may have: twice what its daemon uses at most, for a restart.
const CONNECTIONS: u32 = 20;

/// `POST /hosts/{name}/invite`
pub async fn invite(
    State(state): State<AdminState>,
    operator: Operator,
    Path(name): Path<String>,
    Body(invite): Body<api::Invite>,
) -> Result<Json<api::Invitation>, Failure> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Failure::bad_request(format!(
            "a host's name has 1 to {MAX_NAME} bytes, and no control characters"
        )));
    }
    let login = invite.login.unwrap_or_else(|| login_of(&name));
    if !is_login(&login) {
        return Err(Failure::bad_request(format!(
            "a host's login has lower-case letters, digits and underscores, at most {MAX_NAME} of them: `{LOGIN_PREFIX}…`"
        )));
    }
    let nonce = vouch::nonce();
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    let until = joins::invite(&mut tx, &name, &login, &nonce, MINUTES).await?;
    record(&mut tx, &state, &operator, "host.invite", &name, Some(&format!("login {login}"))).await?;
    tx.commit().await.map_err(StoreError::from)?;
    let token = state.warrant.token(&name, &login, &nonce, until);
    Ok(Json(api::Invitation {
        token: token.text().to_string(),
        until,
        sql: vec![
            format!("CREATE ROLE {login} LOGIN NOINHERIT IN ROLE flyci_host CONNECTION LIMIT {CONNECTIONS};"),
            format!("\\password {login}"),
        ],
        name,
        login,
    }))
}

/// `POST /hosts/{name}/revoke`
pub async fn revoke(
    State(state): State<AdminState>,
    operator: Operator,
    Path(name): Path<String>,
) -> Result<Json<api::Done>, Failure> {
    let mut tx = state.pool.begin().await.map_err(StoreError::from)?;
    let Some((id, login)) = joins::revoke(&mut tx, &name).await? else {
        return Err(Failure::not_found(format!("no host is called `{name}`: `flyci hosts` lists them")));
    };
    record(&mut tx, &state, &operator, "host.revoke", &name, Some(&id.to_string())).await?;
    tx.commit().await.map_err(StoreError::from)?;
    let message = format!(
        "{name} writes nothing any more, and nothing is sealed to it; what it had not begun is served elsewhere. Its VMs \
         are on its machine until somebody ends them. If its login is its own, the database's administrator takes it away: \
         ALTER ROLE {login} NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{login}';"
    );
    Ok(Json(api::Done { message, changed: 1 }))
}

/// The login of a host of this name.
fn login_of(name: &str) -> String {
    let plain =
        name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect::<String>();
    format!("{LOGIN_PREFIX}{plain}").chars().take(MAX_NAME).collect()
}

/// True for what needs no quotes in SQL, and begins as hosts' logins do: no other login becomes a host.
fn is_login(login: &str) -> bool {
    login.starts_with(LOGIN_PREFIX)
        && login.len() <= MAX_NAME
        && login.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_made_of_a_name_and_needs_no_quotes() {
        for (name, login) in [
            ("mini-2", "flyci_host_mini_2"),
            ("Mac mini.local", "flyci_host_mac_mini_local"),
            ("ß'; DROP", "flyci_host_____drop"),
        ] {
            assert_eq!(login_of(name), login);
            assert!(is_login(&login_of(name)), "{login}");
        }
        assert!(is_login(&login_of(&"x".repeat(MAX_NAME))));
        for wrong in ["postgres", "flyci", "flyci_host_a;", "flyci_host_A", "flyci_host_ä"] {
            assert!(!is_login(wrong), "{wrong}");
        }
    }
}
