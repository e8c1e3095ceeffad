//! `flyci tenants`: who installed the App, who of them is served, and what is stored of them.

use super::args::{VmLimit, vm_limit};
use super::client::{Admin, segment};
use super::exit::{CliError, DONE};
use super::human::ago;
use super::out::{self, Look, Tone, harmless};
use super::print_json;
use super::table::{Cell, Column, Table, toned};
use crate::api::{Done, Erasure, Export, ExportFrom, Limit, Page, Tenant};
use crate::secrets::files::create_private;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `flyci tenants`
#[derive(Args, Debug)]
pub struct TenantsArgs {
    #[command(subcommand)]
    pub command: Option<TenantsCommand>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// `flyci tenants …`
#[derive(Subcommand, Debug)]
pub enum TenantsCommand {
    /// Serve an account's jobs
    Approve {
        /// The organisation or user that installed the App.
        account: String,
    },
    /// Serve an account no more; what runs comes to its end
    Suspend {
        /// The organisation or user that installed the App.
        account: String,
    },
    /// Say how many vms an account may have at once
    Limit {
        /// The organisation or user that installed the App.
        account: String,
        /// How many, or `default` for what the configuration says.
        #[arg(value_name = "VMS", value_parser = vm_limit)]
        vms: VmLimit,
    },
    /// Write all that is stored of an account, as JSON
    Export {
        /// The organisation or user that installed the App.
        account: String,
        /// A new file for it, which only you may read [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Forget an account: its vms are destroyed, its rows and keys deleted
    Erase {
        /// The organisation or user that installed the App.
        account: String,
        /// Do it: nothing brings it back
        #[arg(long)]
        yes: bool,
    },
}

/// Runs `flyci tenants …`.
pub async fn run(admin: &Admin, args: &TenantsArgs, look: &Look) -> Result<u8, CliError> {
    let done: Done = match &args.command {
        None => return list(admin, args.json, look).await,
        Some(TenantsCommand::Export { account, output }) => return export(admin, account, output.as_deref()).await,
        Some(TenantsCommand::Erase { account, yes }) => return erase(admin, account, *yes).await,
        Some(TenantsCommand::Approve { account }) => admin.post(&address(account, "approve"), &()).await?,
        Some(TenantsCommand::Suspend { account }) => admin.post(&address(account, "suspend"), &()).await?,
        Some(TenantsCommand::Limit { account, vms }) => {
            admin.post(&address(account, "limit"), &Limit { vms: vms.0 }).await?
        }
    };
    out::print(&format!("{}\n", harmless(&done.message)))?;
    Ok(DONE)
}

/// Forgets an account, and tells from when on that is final.
async fn erase(admin: &Admin, account: &str, yes: bool) -> Result<u8, CliError> {
    if !yes {
        return Err(CliError::Failed(format!(
            "this destroys {account}'s vms, rows and keys; nothing brings them back\n  to keep what is stored: flyci \
             tenants export {account} --output FILE\n  to do it: flyci tenants erase {account} --yes"
        )));
    }
    let done: Erasure = admin.post(&address(account, "erase"), &()).await?;
    out::print(&format!("{}\n  in the audit trail it is {}\n", harmless(&done.message), done.id))?;
    Ok(DONE)
}

/// All parts of an export, as one JSON object with a list for each table.
async fn export(admin: &Admin, account: &str, output: Option<&Path>) -> Result<u8, CliError> {
    let mut tables: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut after = None;
    loop {
        let part: Export = admin.post(&address(account, "export"), &ExportFrom { after }).await?;
        tables.entry(part.table).or_default().extend(part.rows);
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    let text = serde_json::to_vec_pretty(&tables).expect("the API's types are JSON");
    let Some(file) = output else {
        print_json(&text)?;
        return Ok(DONE);
    };
    let is_new = create_private(file, &text).map_err(|error| CliError::part("the export cannot be written", error))?;
    if !is_new {
        return Err(CliError::Failed(format!("{} is there already: name a new file", file.display())));
    }
    out::print(&format!("All that is stored of {} is in {}.\n", harmless(account), file.display()))?;
    Ok(DONE)
}

fn address(account: &str, verb: &str) -> String {
    format!("/tenants/{}/{verb}", segment(account))
}

async fn list(admin: &Admin, json: bool, look: &Look) -> Result<u8, CliError> {
    let body = admin.read("/tenants", &()).await?;
    if json {
        print_json(&body)?;
        return Ok(DONE);
    }
    let page: Page<Tenant> = super::read_json("/tenants", &body)?;
    if page.items.is_empty() {
        out::print("Nobody has installed the GitHub App yet.\n")?;
    } else {
        out::print(&render(&page.items, Utc::now(), look))?;
    }
    Ok(DONE)
}

/// The list, and what to do about those who wait.
#[must_use]
pub fn render(tenants: &[Tenant], now: DateTime<Utc>, look: &Look) -> String {
    let mut table = Table::new([
        Column::left("ACCOUNT").shrinks_to(14),
        Column::left("KIND").leaves_at(2),
        Column::left("ADMISSION"),
        Column::left("AT GITHUB"),
        Column::right("LIMIT").leaves_at(3),
        Column::right("VMS"),
        Column::right("QUEUED"),
        Column::right("RUNNING"),
        Column::right("SINCE").leaves_at(1),
    ]);
    for tenant in tenants {
        table.row([
            tenant.account.as_deref().unwrap_or("(erased)").into(),
            tenant.account_kind.as_str().into(),
            admission(&tenant.admission),
            standing(&tenant.standing),
            tenant.vm_limit.map_or_else(|| "default".to_owned(), |limit| limit.to_string()).into(),
            tenant.vms.to_string().into(),
            tenant.queued.to_string().into(),
            tenant.running.to_string().into(),
            ago(now, tenant.created_at).into(),
        ]);
    }
    let mut text = table.render(look);
    let pending =
        tenants.iter().filter(|tenant| tenant.admission == "pending").filter_map(|tenant| tenant.account.as_ref());
    for account in pending {
        text.push_str(&format!("  {} flyci tenants approve {}\n", look.paint(Tone::Dim, "do:"), harmless(account)));
    }
    text
}

fn admission(word: &str) -> Cell {
    let tone = match word {
        "approved" => Tone::Good,
        "suspended" => Tone::Bad,
        _ => Tone::Warn,
    };
    toned(tone, word)
}

fn standing(word: &str) -> Cell {
    toned(if word == "active" { Tone::Plain } else { Tone::Warn }, word)
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;

    #[test]
    fn who_waits_for_approval_is_told_with_the_command() {
        let tenant = |account: &str, admission: &str| Tenant {
            id: "1".into(),
            account: Some(account.into()),
            account_kind: "organization".into(),
            installation_id: Some("17".into()),
            admission: admission.into(),
            standing: "active".into(),
            vm_limit: (admission == "approved").then_some(20),
            vms: 5,
            queued: 2,
            running: 4,
            created_at: samples::before(90_000.0),
        };
        let tenants = [tenant("acme", "approved"), tenant("umbrella", "pending")];
        insta::assert_snapshot!("tenants_120", render(&tenants, samples::now(), &look(120)));
        insta::assert_snapshot!("tenants_80", render(&tenants, samples::now(), &look(80)));
    }
}
