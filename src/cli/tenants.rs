//! `flyci tenants`: who installed the App, and who of them is served.

use super::args::{TenantsArgs, TenantsCommand};
use super::client::{Admin, segment};
use super::exit::{CliError, DONE};
use super::human::ago;
use super::out::{self, Look, Tone, harmless};
use super::print_json;
use super::table::{Cell, Column, Table, toned};
use crate::api::{Done, Limit, Page, Tenant};
use chrono::{DateTime, Utc};

/// Runs `flyci tenants …`.
pub async fn run(admin: &Admin, args: &TenantsArgs, look: &Look) -> Result<u8, CliError> {
    let done: Done = match &args.command {
        None => return list(admin, args.json, look).await,
        Some(TenantsCommand::Approve { account }) => admin.post(&address(account, "approve"), &()).await?,
        Some(TenantsCommand::Suspend { account }) => admin.post(&address(account, "suspend"), &()).await?,
        Some(TenantsCommand::Limit { account, vms }) => {
            admin.post(&address(account, "limit"), &Limit { vms: vms.0 }).await?
        }
    };
    out::print(&format!("{}\n", harmless(&done.message)))?;
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
