//! `flyci keys`: the master keys that everything stored is encrypted under.

use super::client::Admin;
use super::exit::{CliError, DONE};
use super::human::ago;
use super::out::{self, Look, Tone, harmless};
use super::print_json;
use super::table::{Column, Table, toned};
use crate::api::{Done, Keys};
use crate::secrets::{KeyRing, create_master_key};
use chrono::{DateTime, Utc};
use clap::Subcommand;
use std::path::{Path, PathBuf};

/// `flyci keys …`
#[derive(Subcommand, Debug)]
pub enum KeysCommand {
    /// List the master keys, and what is still encrypted under each
    List {
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a new master key, bring everything under it while flyci works, and destroy the old one
    Rotate,
    /// Write a new master key into a new file, for a place that flyci cannot write to
    New {
        /// The file; only you may read it
        file: PathBuf,
    },
}

/// Runs `flyci keys list` and `flyci keys rotate`.
pub async fn run(admin: &Admin, command: &KeysCommand, look: &Look) -> Result<u8, CliError> {
    match command {
        KeysCommand::List { json } => list(admin, *json, look).await,
        KeysCommand::Rotate => {
            let done: Done = admin.post("/keys/rotate", &()).await?;
            out::print(&format!("{}\n", harmless(&done.message)))?;
            Ok(DONE)
        }
        KeysCommand::New { file } => new(file),
    }
}

/// Runs `flyci keys new`: needs no daemon.
pub fn new(file: &Path) -> Result<u8, CliError> {
    let failed = |error| CliError::part("the key cannot be made", error);
    if !create_master_key(file).map_err(failed)? {
        return Err(CliError::Failed(format!("{} is there already: name a new file", file.display())));
    }
    let id = KeyRing::open(file).map_err(failed)?.master_key_id();
    out::print(&format!(
        "Master key {id} is in {}. Bring its line to where `[keys] master` says, before the lines that are there, keep a \
         copy elsewhere, and remove the file.\n",
        file.display()
    ))?;
    Ok(DONE)
}

async fn list(admin: &Admin, json: bool, look: &Look) -> Result<u8, CliError> {
    let body = admin.read("/keys", &()).await?;
    if json {
        print_json(&body)?;
        return Ok(DONE);
    }
    let keys: Keys = super::read_json("/keys", &body)?;
    out::print(&render(&keys, Utc::now(), look))?;
    Ok(DONE)
}

fn render(keys: &Keys, now: DateTime<Utc>, look: &Look) -> String {
    let mut table = Table::new([
        Column::left("KEY"),
        Column::left("STATE"),
        Column::right("SINCE"),
        Column::right("ACCOUNTS"),
        Column::left("AUDIT"),
        Column::right("ERASURES").leaves_at(2),
        Column::left("AT").shrinks_to(10).leaves_at(1),
    ]);
    for key in &keys.keys {
        let tone = match key.state.as_str() {
            "current" => Tone::Good,
            "missing" => Tone::Bad,
            "destroyed" => Tone::Dim,
            _ => Tone::Warn,
        };
        table.row([
            key.id.as_str().into(),
            toned(tone, key.state.as_str()),
            ago(now, key.since).into(),
            key.tenants.to_string().into(),
            if key.audit { "yes" } else { "" }.into(),
            key.erasures.to_string().into(),
            key.gateways.join(", ").into(),
        ]);
    }
    let goes_on = match keys.rotation.as_str() {
        "waits_for_gateways" => format!(
            "The newest key waits for gateways that do not have it: {}. Bring {} there.",
            keys.waits_for.join(", "),
            keys.source
        ),
        "rewrapping" => "A rotation goes on: old keys are destroyed when nothing is under them.".to_owned(),
        "removable" => format!("Nothing is under the old keys: take their lines out of {}.", keys.source),
        _ => format!("The master key is in {}. Keep a copy elsewhere: without it no name is readable.", keys.source),
    };
    format!("{}  {}\n", table.render(look), harmless(&goes_on))
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;
    use crate::api::MasterKey;

    #[test]
    fn what_is_under_each_key_is_shown() {
        let key = |id: &str, state: &str, tenants| MasterKey {
            id: id.into(),
            state: state.into(),
            since: samples::before(90_000.0),
            destroyed_at: None,
            tenants,
            audit: tenants > 0,
            erasures: u64::from(tenants == 0),
            gateways: if state == "destroyed" { Vec::new() } else { vec!["mini-1".into()] },
        };
        let mut keys = Keys {
            source: "the file /var/lib/flyci/master.key".into(),
            rotation: "none".into(),
            waits_for: Vec::new(),
            keys: vec![key("5f1c22aa", "current", 12), key("0badcafe", "destroyed", 0)],
        };
        insta::assert_snapshot!("keys_100", render(&keys, samples::now(), &look(100)));
        keys.rotation = "waits_for_gateways".into();
        keys.waits_for = vec!["mini-2".into()];
        keys.keys[1] = key("0badcafe", "old", 3);
        insta::assert_snapshot!("keys_rotating_80", render(&keys, samples::now(), &look(80)));
    }
}
