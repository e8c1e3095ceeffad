//! `flyci host`: which machines belong to the fleet.

use super::client::{Admin, segment};
use super::exit::{CliError, DONE};
use super::out::{self, harmless};
use super::print_json;
use crate::api::{Done, Invitation, Invite};
use crate::app;
use crate::config::Config;
use crate::secrets::files;
use crate::secrets::vouch::JoinToken;
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use zeroize::Zeroizing;

/// The longest text that may be a token, in bytes.
const MAX_TOKEN: u64 = 256;

/// `flyci host …`
#[derive(Subcommand, Debug)]
pub enum HostCommand {
    /// On a gateway: let a machine join within 15 minutes, and show the token that it needs
    Invite(InviteArgs),
    /// On the machine: join the fleet that the configuration's database is of, by the token on standard input
    Join(JoinArgs),
    /// On a gateway: throw a machine out; what it had not begun is served elsewhere
    Revoke {
        /// The host's name.
        host: String,
    },
}

/// `flyci host invite`
#[derive(Args, Debug)]
pub struct InviteArgs {
    /// The host's name: its `host.name`
    pub host: String,
    /// The login of Postgres that it has [default: `flyci_host_` and its name]
    #[arg(long, value_name = "LOGIN")]
    pub login: Option<String>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// `flyci host join`
#[derive(Args, Debug)]
pub struct JoinArgs {
    /// Read the token from this file (mode 0600) instead of standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Runs what asks the daemon.
pub async fn run(admin: &Admin, command: &HostCommand) -> Result<u8, CliError> {
    match command {
        HostCommand::Invite(args) => invite(admin, args).await,
        HostCommand::Revoke { host } => {
            let done: Done = admin.post(&format!("/hosts/{}/revoke", segment(host)), &()).await?;
            out::print(&format!("{}\n", harmless(&done.message)))?;
            Ok(DONE)
        }
        HostCommand::Join(_) => unreachable!("it does not ask the daemon"),
    }
}

async fn invite(admin: &Admin, args: &InviteArgs) -> Result<u8, CliError> {
    let path = format!("/hosts/{}/invite", segment(&args.host));
    let invitation: Invitation = admin.post(&path, &Invite { login: args.login.clone() }).await?;
    if args.json {
        print_json(&serde_json::to_vec(&invitation).expect("the API's types are JSON"))?;
    } else {
        out::print(&told(&invitation))?;
    }
    Ok(DONE)
}

fn told(invitation: &Invitation) -> String {
    let sql: String = invitation.sql.iter().map(|line| format!("    {}\n", harmless(line))).collect();
    format!(
        "{name} may join until {until}, once, with this token:\n\n    {token}\n\n\
         Its login, once, as an administrator of the database (psql):\n\n{sql}\n\
         There, with `database.url` of that login in its configuration:\n\n    flyci host join\n",
        name = harmless(&invitation.name),
        until = invitation.until.format("%H:%M:%S UTC"),
        token = harmless(&invitation.token),
    )
}

/// Runs `flyci host join`.
pub async fn join(config: &Config, args: &JoinArgs) -> Result<u8, CliError> {
    let token = read_token(args)?;
    let joined = app::join(config, &token).await.map_err(|error| CliError::part("cannot join", error))?;
    out::print(&format!(
        "{} belongs to the fleet now: `flyci serve` runs it. Its key is {}: the gateway's `flyci audit` shows the same.\n",
        harmless(&joined.name),
        joined.fingerprint
    ))?;
    Ok(DONE)
}

fn read_token(args: &JoinArgs) -> Result<JoinToken, CliError> {
    let failed = |error| CliError::Failed(format!("the token cannot be read: {error}"));
    let text = match &args.token_file {
        Some(file) => {
            let bytes = files::read_private(file).map_err(|error| CliError::part("the token cannot be read", error))?;
            Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
        }
        None => {
            if std::io::stdin().is_terminal() {
                out::print("The token that `flyci host invite` showed: ")?;
            }
            let mut text = Zeroizing::new(String::new());
            read_line(&mut text).map_err(failed)?;
            text
        }
    };
    JoinToken::parse(&text).map_err(|error| CliError::part("cannot join", error))
}

/// One line of standard input, and no more than a token has.
fn read_line(text: &mut String) -> std::io::Result<()> {
    for byte in std::io::stdin().lock().take(MAX_TOKEN).bytes() {
        match byte? {
            b'\n' => break,
            byte => text.push(char::from(byte)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn an_invitation_says_what_to_do_where() {
        let text = told(&Invitation {
            name: "mini-2".to_owned(),
            login: "flyci_host_mini_2".to_owned(),
            token: "flyci-join-1:00".to_owned(),
            until: samples::now(),
            sql: vec!["CREATE ROLE flyci_host_mini_2 LOGIN;".to_owned()],
        });
        for part in ["mini-2 may join until", "    flyci-join-1:00\n", "    CREATE ROLE", "    flyci host join\n"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
