//! `flyci audit`: who did what, and the proof that nothing of it was changed.

use super::client::Admin;
use super::exit::{CliError, DONE, FAILED};
use super::human::{count, span};
use super::out::{self, Look, Tone, harmless};
use super::status::short;
use super::table::{Column, Table};
use super::{more, print_value};
use crate::api::{AuditEntry, AuditHeads, AuditQuery, AuditVerdict, Page, VerifyQuery};
use crate::domain::units::Span;
use clap::{Args, Subcommand};
use nix::unistd::{Uid, User};

const PAGE: u32 = 500;

/// `flyci audit`
#[derive(Args, Debug)]
pub struct AuditArgs {
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    /// Only what was done within this time
    #[arg(long, value_name = "TIME", default_value = "1d")]
    pub since: Span,
    /// How many to show at most
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// `flyci audit …`
#[derive(Subcommand, Debug)]
pub enum AuditCommand {
    /// Follow each chain from its first entry to its last, and compare with heads that you kept
    Verify {
        /// A head as `audit head` or the log showed it: shows also what was cut off the end
        #[arg(long = "head", value_name = "HEAD")]
        heads: Vec<String>,
    },
    /// Show the ends of the chains, to be kept elsewhere
    Head,
}

/// Runs `flyci audit …`.
pub async fn run(admin: &Admin, args: &AuditArgs, look: &Look) -> Result<u8, CliError> {
    match &args.command {
        Some(AuditCommand::Verify { heads }) => return verify(admin, heads, look).await,
        Some(AuditCommand::Head) => return head(admin).await,
        None => {}
    }
    let since = args.since.to_string();
    let query = |after, wanted: u32| AuditQuery { since: Some(since.clone()), limit: Some(wanted.min(PAGE)), after };
    let page: Page<AuditEntry> = admin.list("/audit", args.limit, query).await?;
    if args.json {
        print_value(&page)?;
    } else if page.items.is_empty() {
        out::print(&format!("Nobody changed anything in the last {}.\n", span(args.since.0)))?;
    } else {
        out::print(&format!("{}{}", audit_table(&page.items, look), more(&page)))?;
    }
    Ok(DONE)
}

fn audit_table(entries: &[AuditEntry], look: &Look) -> String {
    let mut table = Table::new([
        Column::right("NO"),
        Column::left("WHEN"),
        Column::left("WHO").shrinks_to(12),
        Column::left("WHAT"),
        Column::left("TO").shrinks_to(12),
        Column::left("DETAIL").shrinks_to(12),
    ]);
    for entry in entries {
        table.row([
            entry.seq.to_string().into(),
            look.minute(entry.at).into(),
            who(&entry.actor).into(),
            entry.action.as_str().into(),
            entry.account.clone().unwrap_or_else(|| short(&entry.subject)).into(),
            entry.detail.as_deref().unwrap_or("").into(),
        ]);
    }
    table.render(look)
}

/// Who acted: an operator by the name that the uid has on this machine, if it has one.
fn who(actor: &str) -> String {
    let uid = actor.strip_prefix("operator:").and_then(|uid| uid.parse().ok()).map(Uid::from_raw);
    let name = uid.and_then(|uid| User::from_uid(uid).ok().flatten()).map(|user| user.name);
    name.map_or_else(|| actor.to_owned(), |name| format!("{name} ({})", actor.trim_start_matches("operator:")))
}

async fn head(admin: &Admin) -> Result<u8, CliError> {
    let told: AuditHeads = admin.get("/audit/head", &()).await?;
    let lines: String = told.heads.iter().map(|head| format!("{}\n", harmless(head))).collect();
    out::print(if lines.is_empty() { "Nothing is in the audit trail yet.\n" } else { &lines })?;
    Ok(DONE)
}

async fn verify(admin: &Admin, heads: &[String], look: &Look) -> Result<u8, CliError> {
    let heads = (!heads.is_empty()).then(|| heads.join(" "));
    let verdict: AuditVerdict = admin.get("/audit/verify", &VerifyQuery { heads }).await?;
    out::print(&told(&verdict, look))?;
    Ok(if verdict.intact { DONE } else { FAILED })
}

fn told(verdict: &AuditVerdict, look: &Look) -> String {
    let entries =
        if verdict.entries == 1 { "1 entry".to_owned() } else { format!("{} entries", count(verdict.entries)) };
    if !verdict.intact {
        let broken = look.paint(Tone::Bad, "not what was written");
        let at = match (verdict.broken_at, &verdict.broken_chain) {
            (Some(position), Some(chain)) if chain.is_empty() => format!("no. {position} of before it had a key"),
            (Some(position), Some(chain)) => format!("no. {position} of {}", harmless(chain)),
            _ => "an entry".to_owned(),
        };
        let fault = verdict.fault.as_deref().unwrap_or("is wrong");
        return format!(
            "The audit trail is {broken}: {at} {} ({entries} read).\n  compare with your last backup, and find out who \
             can write to the database\n",
            harmless(fault)
        );
    }
    let mut text = format!(
        "The audit trail is {}: {entries}, each follows from the one before, and all were made with the key.\n",
        look.paint(Tone::Good, "intact")
    );
    for head in &verdict.heads {
        text.push_str(&format!("  head {}\n", harmless(head)));
    }
    for head in &verdict.too_old {
        text.push_str(&format!("  not compared, since its entry is beyond the retention: {}\n", harmless(head)));
    }
    text.push_str("  note the heads elsewhere: `--head HEAD` shows later that nothing was cut off the end\n");
    text
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;

    #[test]
    fn an_audit_trail_is_read_and_judged() {
        let entry = AuditEntry {
            seq: 12,
            chain: "gateway:mini-1".into(),
            position: 11,
            at: samples::before(3_600.0),
            actor: format!("operator:{}", u32::MAX - 1),
            action: "tenant.approve".into(),
            subject: "3f0c9a4e-1111-4222-8333-444455556666".into(),
            detail: None,
            account: Some("acme".into()),
        };
        let by_root = AuditEntry { actor: "operator:0".into(), account: None, ..entry.clone() };
        insta::assert_snapshot!("audit_80", audit_table(&[entry, by_root], &look(80)));
        let intact = AuditVerdict {
            intact: true,
            entries: 12,
            broken_at: None,
            broken_chain: None,
            fault: None,
            heads: vec!["gateway:mini-1@12:abcd".into()],
            too_old: vec!["gateway:mini-1@2:0123".into()],
        };
        insta::assert_snapshot!("audit_intact", told(&intact, &look(80)));
        let broken = AuditVerdict {
            intact: false,
            broken_at: Some(7),
            broken_chain: Some("gateway:mini-1".into()),
            fault: Some("does not follow from the row before it".into()),
            ..intact
        };
        insta::assert_snapshot!("audit_broken", told(&broken, &look(80)));
    }
}
