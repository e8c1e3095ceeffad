//! Free slots and ready vms find demand. Host.
//!
//! One pass: first the ready vms of this host take classes with a deficit, then free slots are planned
//! for profiles that want more vms than there are blank ones. A pass takes no input: a wake only says
//! that there may be something to do.
//!
//! Does not: boot anything (`lifecycle`), or decide which job a vm gets (GitHub does).
//!
//! A host that was silent destroys what was abandoned meanwhile, and takes up what serves on, before it begins anything.
//!
//! With `[host] self_test` an image's first vm since the host, its system or its flyci changed is planned without
//! demand, and nothing else of that image until it was ready: a host that cannot boot takes no job.

use crate::api::Trouble;
use crate::domain::admission::{Capacity, MacosVersion, Need};
use crate::domain::ids::VmId;
use crate::domain::profile::Profile;
use crate::domain::reason::VmEnd;
use crate::domain::vm::VmState;
use crate::images::Images;
use crate::images::registry::Reference;
use crate::lifecycle::{Drivers, Machine};
use crate::points::effect;
use crate::store::demand::{self, Binding};
use crate::store::hosts::Health;
use crate::store::vms::{self, NewVm, Vm};
use crate::store::{Applied, StoreError, hosts, profiles};
use crate::troubles;
use std::collections::HashSet;

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DispatchReport {
    /// Ready vms that took a class.
    pub bound: u32,
    /// Vms planned.
    pub planned: u32,
    /// Others were faster too often: another pass is called for.
    pub contended: u32,
    /// Vms from a time in which this host was silent: nothing is begun before they are settled.
    pub settling: u32,
}

/// What a host told of itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OfferReport {
    /// Profiles that it can boot.
    pub can_boot: usize,
    /// Profiles that its configuration has otherwise than the gateway.
    pub differs: usize,
}

/// The published profiles that are here with another description, or not at all. Before a gateway has published any,
/// none.
fn differing(here: &[Profile], published: &[(String, String)]) -> Vec<String> {
    let same = |label: &str, description: &str| {
        let there = serde_json::from_str::<Profile>(description).ok();
        here.iter().find(|profile| profile.label == label) == there.as_ref()
    };
    let differs = published.iter().filter(|(label, description)| !same(label, description));
    differs.map(|(label, _)| label.clone()).collect()
}

fn no_image(profile: &Profile, host: &str) -> Trouble {
    Trouble {
        what: format!("there is no image for `{}` on {host}", profile.label),
        evidence: format!("`{}` is none of the images there: no vm is made for it", profile.image),
        fix: "`flyci image list` there shows those it has: make this one (`flyci image build`), or change the profile's image"
            .to_owned(),
    }
}

fn slots_lost(lost: u32, configured: u32, host: &str) -> Trouble {
    Trouble {
        what: format!("{lost} of the {configured} slots of {host} are lost"),
        evidence: "the platform starts no vm there, although none of flyci's runs: it counts one that is gone, or \
                   another program's"
            .to_owned(),
        fix:
            "end VMs of other programs; if there are none, drain the host and reboot it. Until then flyci goes on with \
              the slots that are left, and tries a lost one now and then"
                .to_owned(),
    }
}

fn old_macos(profile: &Profile, host: &str, minimum: MacosVersion) -> Trouble {
    Trouble {
        what: format!("the image of `{}` needs a later macOS than {host} runs", profile.label),
        evidence: format!("`{}` boots on macOS {minimum} and later: no vm is made of it there", profile.image),
        fix: "update that Mac's macOS, or give the profile an image that its macOS boots".to_owned(),
    }
}

/// The digest of a profile's image, if it is on this host and the host's system boots it.
fn image_of(profile: &Profile, images: &Images, capacity: &Capacity, host: &str) -> Result<String, Trouble> {
    let found = images.find(&profile.image).ok_or_else(|| no_image(profile, host))?;
    match found.minimum_macos {
        Some(minimum) if capacity.can_boot(Some(minimum)).is_err() => Err(old_macos(profile, host, minimum)),
        Some(_) | None => Ok(found.digest),
    }
}

/// Finds work for this host.
pub struct Dispatcher {
    drivers: Drivers,
    capacity: Capacity,
    hardware: String,
}

/// A profile that this host can run now.
struct Offer<'a> {
    profile: &'a Profile,
    image: String,
    need: Need,
    /// So many new vms, even where none is wanted: the canary of an image that is to be tested first.
    at_least: usize,
    /// No more than this many new vms of its image at once.
    at_most: usize,
}

impl Dispatcher {
    /// A dispatcher that gives every vm it plans a driver.
    #[must_use]
    pub const fn new(drivers: Drivers, capacity: Capacity, hardware: String) -> Self {
        Self { drivers, capacity, hardware }
    }

    /// The drivers of this host's vms.
    #[must_use]
    pub const fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    fn machine(&self) -> &Machine {
        self.drivers.machine()
    }

    /// One round.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pass(&self) -> Result<DispatchReport, StoreError> {
        let mut report = DispatchReport::default();
        let machine = self.machine();
        if let Some(dedication) = &machine.dedication {
            dedication.renew(&machine.pool, machine.fence.host).await?;
        }
        if hosts::is_draining(&machine.pool, machine.fence.host).await? {
            return Ok(report);
        }
        let live = vms::live(&machine.pool, machine.fence.host).await?;
        for vm in live.iter().filter(|vm| is_settling(vm.state)) {
            self.drivers.ensure(vm.id);
            report.settling += 1;
        }
        if report.settling > 0 {
            return Ok(report);
        }
        for vm in live.iter().filter(|vm| vm.state == VmState::Ready) {
            self.bind(vm, &mut report).await?;
        }
        self.plan(&live, &mut report).await?;
        Ok(report)
    }

    async fn bind(&self, vm: &Vm, report: &mut DispatchReport) -> Result<(), StoreError> {
        let machine = self.machine();
        let limit = machine.limits.vms_per_tenant;
        let binding =
            effect!("dispatch.bind", demand::bind(&machine.pool, machine.fence, vm.id, &vm.profile, limit).await)?;
        match binding {
            Binding::Bound(_) => {
                report.bound += 1;
                machine.wakes.mint.notify_one();
                machine.wakes.vm(vm.id);
            }
            Binding::NoDemand => {}
            Binding::Contended => report.contended += 1,
        }
        Ok(())
    }

    async fn plan(&self, live: &[Vm], report: &mut DispatchReport) -> Result<(), StoreError> {
        let mut taken: Vec<Need> = live.iter().map(need_of).collect();
        let mut slots: HashSet<u16> = live.iter().map(|vm| vm.slot).collect();
        let usable = self.usable_slots();
        let mut canaries: HashSet<String> = HashSet::new();
        for profile in &self.machine().profiles {
            if slots.len() >= usable as usize {
                break;
            }
            if let Some(offer) = self.offer(profile, live).await? {
                // Profiles may share an image: its canary is one.
                if offer.at_most == 1 && canaries.contains(&offer.image) {
                    continue;
                }
                let planned = self.plan_profile(&offer, &mut taken, &mut slots).await?;
                if offer.at_most == 1 && !planned.is_empty() {
                    canaries.insert(offer.image);
                }
                report.planned += u32::try_from(planned.len()).unwrap_or(u32::MAX);
                for vm in planned {
                    self.drivers.ensure(vm);
                }
            }
        }
        Ok(())
    }

    /// The profiles that the machine is large and new enough for.
    #[must_use]
    pub fn runnable(&self) -> Vec<Profile> {
        self.machine().profiles.iter().filter(|profile| self.could_run(profile)).cloned().collect()
    }

    /// The macOS that the machine runs, if it does.
    #[must_use]
    pub const fn macos(&self) -> Option<MacosVersion> {
        self.capacity.macos
    }

    /// True when the machine is large and new enough for a profile.
    fn could_run(&self, profile: &Profile) -> bool {
        let need = Need { memory: profile.memory, cpus: profile.cpus };
        profile.hardware.as_ref().is_none_or(|hardware| hardware.is_met_by(&self.hardware))
            && self.capacity.could_ever_admit(need).is_ok()
    }

    fn image(&self, profile: &Profile) -> Result<String, Trouble> {
        let machine = self.machine();
        image_of(profile, &machine.images, &self.capacity, &machine.name)
    }

    /// Tells the fleet which profiles this host can boot, and which its configuration has otherwise than the gateway
    /// published them.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn report(&self) -> Result<OfferReport, StoreError> {
        let machine = self.machine();
        let published = profiles::published(&machine.pool).await?;
        let can_boot: Vec<String> = machine
            .profiles
            .iter()
            .filter(|profile| self.could_run(profile) && self.image(profile).is_ok())
            .map(|profile| profile.label.clone())
            .collect();
        let differs = differing(&machine.profiles, &published);
        let report = OfferReport { can_boot: can_boot.len(), differs: differs.len() };
        // Stale: a newer session of this host tells of itself.
        let (host, session) = (machine.fence.host, machine.fence.session);
        let _ = effect!("dispatch.offer", hosts::set_offer(&machine.pool, host, session, &can_boot, &differs).await)?;
        Ok(report)
    }

    /// What this host can do for a profile now; `None` when it cannot run it, or should not try.
    async fn offer<'a>(&self, profile: &'a Profile, live: &[Vm]) -> Result<Option<Offer<'a>>, StoreError> {
        let machine = self.machine();
        if !self.could_run(profile) {
            return Ok(None);
        }
        let need = Need { memory: profile.memory, cpus: profile.cpus };
        let image = self.image(profile);
        // What comes from a registry by itself is told by how far it is (`upkeep::follow`).
        let comes = machine.hypervisor.boots_pulled_images() && profile.image.parse::<Reference>().is_ok();
        let missing = image.as_ref().err().filter(|_| !comes).cloned();
        machine.troubles.set(&troubles::missing_image(&profile.label), missing);
        let Ok(image) = image else { return Ok(None) };
        let comes_up = live.iter().any(|vm| vm.image == image && is_coming_up(vm.state));
        let (at_least, at_most) = match hosts::health(&machine.pool, machine.fence.host, &image).await? {
            Health::Good => (0, usize::MAX),
            Health::Canary | Health::Untested if comes_up => (0, 0),
            Health::Canary => (0, 1),
            Health::Untested => (1, 1),
            Health::Quarantined => (0, 0),
        };
        Ok((at_most > 0).then_some(Offer { profile, image, need, at_least, at_most }))
    }

    /// Plans as many vms as are wanted and fit, under the profile's lock.
    async fn plan_profile(
        &self,
        offer: &Offer<'_>,
        taken: &mut Vec<Need>,
        slots: &mut HashSet<u16>,
    ) -> Result<Vec<VmId>, StoreError> {
        if self.capacity.admit(taken, offer.need).is_err() {
            return Ok(Vec::new());
        }
        let machine = self.machine();
        let mut tx = machine.pool.begin().await?;
        demand::lock_profile(&mut tx, &offer.profile.label).await?;
        let limit = machine.limits.vms_per_tenant;
        let wanted =
            demand::wanted(&mut *tx, machine.fence.host, &offer.profile.label, limit, offer.profile.warm).await?;
        let wanted = usize::try_from(wanted).unwrap_or(0).max(offer.at_least).min(offer.at_most);
        let mut planned = Vec::new();
        while planned.len() < wanted
            && slots.len() < self.usable_slots() as usize
            && self.capacity.admit(taken, offer.need).is_ok()
        {
            let Some(slot) = self.free_slot(slots) else { break };
            let id = VmId::random();
            let vm = NewVm {
                id,
                slot,
                profile: &offer.profile.label,
                image: &offer.image,
                cpus: offer.profile.cpus,
                memory: offer.profile.memory.0,
            };
            if vms::insert(&mut *tx, machine.fence, &vm).await? == Applied::Stale {
                // This daemon is not the host any more.
                return Ok(Vec::new());
            }
            slots.insert(slot);
            taken.push(offer.need);
            planned.push(id);
        }
        effect!("dispatch.plan", tx.commit().await)?;
        Ok(planned)
    }

    /// The configured slots, less those that the platform has lost.
    fn usable_slots(&self) -> u32 {
        let machine = self.machine();
        let lost = machine.hypervisor.lost_slots().min(self.capacity.slots);
        let trouble = (lost > 0).then(|| slots_lost(lost, self.capacity.slots, &machine.name));
        machine.troubles.set(troubles::LOST_SLOTS, trouble);
        self.capacity.slots - lost
    }

    fn free_slot(&self, slots: &HashSet<u16>) -> Option<u16> {
        (0..u16::try_from(self.capacity.slots).unwrap_or(u16::MAX)).find(|slot| !slots.contains(slot))
    }
}

fn need_of(vm: &Vm) -> Need {
    Need { memory: crate::domain::units::Bytes(vm.memory), cpus: vm.cpus }
}

/// True for what was decided while this host was silent, and is not carried out or taken back yet.
const fn is_settling(state: VmState) -> bool {
    matches!(state, VmState::Abandoned | VmState::Unreachable | VmState::Stopping(VmEnd::Abandoned))
}

const fn is_coming_up(state: VmState) -> bool {
    matches!(state, VmState::Planned | VmState::Cloning | VmState::Cloned | VmState::Booting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::units::Bytes;
    use crate::images::{Architecture, FORMAT, ImageStore, Kind, MANIFEST_FILE, Manifest, Os};

    fn profile(image: &str) -> Profile {
        let described = serde_json::json!({
            "label": "flyci-macos-large", "cpus": 4, "memory": "7GB", "disk_free": "28GB", "image": image,
        });
        serde_json::from_value(described).expect("a profile")
    }

    fn capacity(macos: &str) -> Capacity {
        let macos = Some(macos.parse().expect("a version"));
        Capacity {
            slots: 2,
            memory: Bytes(16_000_000_000),
            cpus: 8,
            reserve_memory: Bytes(0),
            reserve_cpus: 0,
            cpu_overcommit: 1.0,
            macos,
        }
    }

    #[test]
    fn an_image_counts_where_it_is_and_where_the_system_boots_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = ImageStore::open(directory.path()).expect("a store");
        let manifest = Manifest {
            format: FORMAT,
            name: "macos-tahoe".into(),
            os: Os::Macos,
            architecture: Architecture::Aarch64,
            kind: Kind::Vz,
            disk_size: 0,
            command_line: String::new(),
            agent_version: "0".into(),
            runner_version: None,
            created: String::new(),
            files: Vec::new(),
            registry: None,
            minimum_macos: Some("15.0.0".parse().expect("a version")),
        };
        let image = directory.path().join("images").join(manifest.digest().hex());
        std::fs::create_dir_all(&image).expect("a directory");
        std::fs::write(image.join(MANIFEST_FILE), serde_json::to_vec(&manifest).expect("JSON")).expect("written");
        let images = Images::Store(store);
        let found = |reference: &str, macos: &str| image_of(&profile(reference), &images, &capacity(macos), "mini-1");
        assert_eq!(found("macos-tahoe", "15.2.0").ok(), Some(manifest.digest().to_string()));
        let told = |outcome: Result<String, Trouble>| outcome.expect_err("it does not count").what;
        assert!(told(found("macos-tahoe", "14.6.0")).contains("needs a later macOS than mini-1 runs"));
        assert!(told(found("another", "15.2.0")).contains("there is no image"));
    }
}
