//! `flyci vms` and `flyci vms kill`.

use super::args::{VmsArgs, VmsCommand};
use super::client::{Admin, segment};
use super::exit::{CliError, DONE};
use super::human::{between, span};
use super::out::{self, Look, Tone, harmless};
use super::status::short;
use super::table::{Cell, Column, Table, toned};
use super::{more, print_value};
use crate::api::{Done, Kill, Page, Vm, VmsQuery};
use chrono::{DateTime, Utc};

/// The vms that are listed at most.
const LISTED: u32 = 1_000;
const PAGE: u32 = 500;

/// Runs `flyci vms …`.
pub async fn run(admin: &Admin, args: &VmsArgs, look: &Look) -> Result<u8, CliError> {
    let page = list(admin, args.all && args.command.is_none()).await?;
    if let Some(VmsCommand::Kill { vm, reason }) = &args.command {
        let vm = choose(&page.items, vm)?;
        let path = format!("/vms/{}/kill", segment(&vm.id));
        let done: Done = admin.post(&path, &Kill { reason: reason.clone() }).await?;
        out::print(&format!("{}\n", harmless(&done.message)))?;
    } else if args.json {
        print_value(&page)?;
    } else if page.items.is_empty() {
        out::print("No vm exists now. flyci vms --all lists those that are gone.\n")?;
    } else {
        out::print(&format!("{}{}", render(&page.items, Utc::now(), look), more(&page)))?;
    }
    Ok(DONE)
}

async fn list(admin: &Admin, all: bool) -> Result<Page<Vm>, CliError> {
    admin.list("/vms", LISTED, |after, wanted| VmsQuery { all, limit: Some(wanted.min(PAGE)), after }).await
}

/// The one vm whose id begins so.
fn choose<'a>(vms: &'a [Vm], asked: &str) -> Result<&'a Vm, CliError> {
    let asked = asked.to_ascii_lowercase();
    let mut found = vms.iter().filter(|vm| !asked.is_empty() && vm.id.starts_with(&asked));
    match (found.next(), found.next()) {
        (Some(vm), None) => Ok(vm),
        (Some(_), Some(_)) => {
            Err(CliError::Failed(format!("several vms begin with {}: give more of the id", harmless(&asked))))
        }
        (None, _) => Err(CliError::Failed(format!("no living vm begins with {}; see `flyci vms`", harmless(&asked)))),
    }
}

/// The list.
#[must_use]
pub fn render(vms: &[Vm], now: DateTime<Utc>, look: &Look) -> String {
    let mut table = Table::new([
        Column::left("VM"),
        Column::left("STATE"),
        Column::left("HOST").shrinks_to(10),
        Column::right("SLOT").leaves_at(3),
        Column::left("PROFILE").shrinks_to(12).leaves_at(2),
        Column::left("REPOSITORY").shrinks_to(14),
        Column::left("JOB").leaves_at(1),
        Column::right("AGE"),
        Column::left("WHY").shrinks_to(10),
    ]);
    for vm in vms {
        table.row([
            short(&vm.id).into(),
            state(&vm.state),
            vm.host.as_str().into(),
            vm.slot.to_string().into(),
            vm.profile.as_str().into(),
            vm.repository.as_deref().unwrap_or("").into(),
            vm.job_id.as_deref().unwrap_or("").into(),
            span(between(vm.times.planned_at, now)).into(),
            why(vm).into(),
        ]);
    }
    table.render(look)
}

fn state(state: &str) -> Cell {
    let tone = match state {
        "serving" => Tone::Good,
        "unreachable" | "abandoned" => Tone::Bad,
        "stopping" => Tone::Warn,
        _ => Tone::Busy,
    };
    toned(tone, state)
}

fn why(vm: &Vm) -> String {
    match (&vm.reason, &vm.kill_asked) {
        (Some(reason), _) => reason.clone(),
        (None, Some(asked)) => format!("to be destroyed: {asked}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::out::tests::look;
    use super::super::samples;
    use super::*;

    fn vms() -> Vec<Vm> {
        let blank = Vm {
            repository: None,
            job_id: None,
            slot: 1,
            ..samples::vm("5b1dc0de-2222-4333-8444-555566667777", "booting")
        };
        let ending =
            Vm { reason: Some("job_done".into()), ..samples::vm("5b1dffff-2222-4333-8444-555566667777", "stopping") };
        vec![blank, samples::vm("3f0c9a4e-1111-4222-8333-444455556666", "serving"), ending]
    }

    #[test]
    fn the_list_fits_wide_and_narrow_terminals() {
        insta::assert_snapshot!("vms_120", render(&vms(), samples::now(), &look(120)));
        insta::assert_snapshot!("vms_80", render(&vms(), samples::now(), &look(80)));
    }

    #[test]
    fn a_vm_is_named_by_the_beginning_of_its_id() {
        let vms = vms();
        assert_eq!(choose(&vms, "3F0C").map(|vm| vm.state.as_str()).ok(), Some("serving"));
        assert!(choose(&vms, "5b1d").is_err_and(|error| error.to_string().contains("several")));
        for unknown in ["", "9"] {
            assert!(choose(&vms, unknown).is_err(), "{unknown}");
        }
    }
}
