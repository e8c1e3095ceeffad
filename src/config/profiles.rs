//! `[[profiles]]`: the sizes on offer.

use super::table::Table;
use crate::domain::profile::{Display, Profile};

/// Reads one profile; `None` when a key is missing that it cannot be without.
pub(super) fn read(mut table: Table<'_>) -> Option<Profile> {
    let why = "every profile needs it";
    let label = table.need("label", "it is what jobs write in `runs-on`");
    let cpus = table.need("cpus", why);
    let memory = table.need("memory", why);
    let disk_free = table.need("disk_free", why);
    let hardware = table.maybe("hardware");
    let image = table.need("image", why);
    let display = table.or("display", Display::default());
    let warm = table.or("warm", 0);
    let job_timeout = table.maybe("job_timeout");
    table.finish();
    Some(Profile {
        label: label?,
        cpus: cpus?,
        memory: memory?,
        disk_free: disk_free?,
        hardware,
        image: image?,
        display,
        warm,
        job_timeout,
    })
}
