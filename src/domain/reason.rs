//! The closed lists of reasons: why a job waits, why a vm or a runner ended. The same words in the
//! database, the logs, the CLI, the API and the metrics.

/// Declares a closed list of words: an enum with its stable spelling, read back with `parse`.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every word of the list.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable spelling.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The word with this spelling, if this version knows it.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|word| word.as_str() == text)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// Why a job is not running yet, or is not ours to run.
    Waiting {
        /// GitHub holds it back: an environment wants an approval.
        GithubApproval = "github_approval",
        /// A runner waits for it; GitHub has not handed it out.
        GithubDelay = "github_delay",
        /// The operator has not approved this account.
        TenantNotApproved = "tenant_not_approved",
        /// The repository is public, and public repositories are switched off.
        PublicRepository = "public_repository",
        /// No profile serves its labels.
        LabelUnknown = "label_unknown",
        /// The account runs as many vms as it may.
        TenantLimit = "tenant_limit",
        /// No host can ever run this profile.
        NoHostForProfile = "no_host_for_profile",
        /// Every host that could run it is full.
        NoCapacity = "no_capacity",
        /// The image is still being fetched.
        ImagePulling = "image_pulling",
        /// The hosts that could run it failed too often, and are being tried again slowly.
        HostQuarantined = "host_quarantined",
        /// GitHub limits our calls.
        MintingRateLimited = "minting_rate_limited",
        /// An operator drains the hosts.
        PausedByOperator = "paused_by_operator",
        /// The organisation does not allow runners on repositories.
        OrgForbidsRepoRunners = "org_forbids_repo_runners",
        /// GitHub refuses the image's runner program for its age.
        RunnerTooOld = "runner_too_old",
        /// It was tried too often without success, and is tried again slowly.
        DeferredAfterFailures = "deferred_after_failures",
        /// A vm is being made for it.
        BeingServed = "being_served",
    }
}

words! {
    /// Why a vm ended.
    VmEnd {
        /// Its job ended.
        JobDone = "job_done",
        /// Its job was cancelled while it ran.
        JobCancelled = "job_cancelled",
        /// There was no job for it any more.
        Surplus = "surplus",
        /// Its runner waited for a job that never came.
        Idle = "idle",
        /// Its runner ended before it had a job.
        RunnerExited = "runner_exited",
        /// GitHub refused its runner for its age.
        RunnerTooOld = "runner_too_old",
        /// The clone could not be made.
        CloneFailed = "clone_failed",
        /// The VM's process could not be started, or ended while booting.
        BootFailed = "boot_failed",
        /// The guest reached what no job may reach.
        NotIsolated = "not_isolated",
        /// The platform had no slot for the VM, although the host has one free: no image's fault.
        NoSlot = "no_slot",
        /// The guest was not ready in time.
        BootTimeout = "boot_timeout",
        /// The guest's agent could not start the runner.
        DeliveryFailed = "delivery_failed",
        /// The VM's process ended by itself.
        Vanished = "vanished",
        /// The job ran for longer than it may.
        JobTimeout = "job_timeout",
        /// A second job named the same runner: the vm is not trusted any more.
        SecondJob = "second_job",
        /// An operator said so.
        Killed = "killed",
        /// The host drains, and the vm had no job.
        Drained = "drained",
        /// The tenant was suspended or removed.
        TenantGone = "tenant_gone",
        /// Its host was silent for too long; its demand was given to others.
        Abandoned = "abandoned",
        /// The daemon was restarted at a step that cannot be taken up again.
        Restarted = "restarted",
    }
}

impl VmEnd {
    /// True when the failure is charged to the host and its image.
    #[must_use]
    pub const fn is_host_failure(self) -> bool {
        matches!(
            self,
            Self::CloneFailed | Self::BootFailed | Self::NotIsolated | Self::BootTimeout | Self::DeliveryFailed
        )
    }

    /// True when a job that was running ends with it, through no fault or wish of its owner's.
    #[must_use]
    pub const fn takes_job_along(self) -> bool {
        matches!(self, Self::Vanished | Self::Abandoned | Self::Restarted)
    }

    /// True when the try is counted against the job: its machine was good, and it was not served.
    #[must_use]
    pub const fn is_failed_try(self) -> bool {
        matches!(self, Self::RunnerExited | Self::Idle)
    }
}

words! {
    /// Why a job ended without being done.
    JobEnd {
        /// GitHub ended it before it had a runner.
        CancelledInQueue = "cancelled_in_queue",
        /// Nobody could serve it within `queue_timeout`.
        QueueTimeout = "queue_timeout",
        /// Its vm vanished while it ran.
        VmVanished = "vm_vanished",
        /// GitHub does not know it any more.
        UnknownToGithub = "unknown_to_github",
        /// Its repository or installation is gone.
        RepositoryGone = "repository_gone",
        /// Its run is over, and GitHub left it in the queue.
        RunOver = "run_over",
    }
}

words! {
    /// Why a runner ended, or was never made.
    RunnerEnd {
        /// Its vm is ending.
        VmEnded = "vm_ended",
        /// Its demand went before the call to GitHub.
        DemandGone = "demand_gone",
        /// It waited too long for a job.
        Idle = "idle",
        /// Its JIT config grew too old before it could be delivered.
        Stale = "stale",
        /// GitHub will not make it: see the tenant's state.
        Refused = "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back_and_no_two_are_spelt_alike() {
        for word in Waiting::ALL {
            assert_eq!(Waiting::parse(word.as_str()), Some(*word));
        }
        for word in VmEnd::ALL {
            assert_eq!(VmEnd::parse(word.as_str()), Some(*word));
        }
    }
}
