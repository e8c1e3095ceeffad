//! The examples below each command's `--help`: what people most often want of it, ready to be copied.

/// `flyci serve`
pub const SERVE: &str = "\
Examples:
  flyci config check && flyci serve
  flyci serve --config /etc/flyci/flyci.toml --log-file /var/log/flyci/flyci.log";

/// `flyci status`
pub const STATUS: &str = "\
Examples:
  flyci status                      what is wrong first, each with what to do
  flyci status --watch
  flyci status --json | jq '.problems[].what'";

/// `flyci drain`
pub const DRAIN: &str = "\
Examples:
  flyci drain --wait --timeout 30m --reason \"kernel update\"
  flyci drain mini-2 && flyci resume mini-2
  flyci drain --all";

/// `flyci jobs`
pub const JOBS: &str = "\
Examples:
  flyci jobs --state queued
  flyci jobs --since 1h --json
  flyci jobs --refused              those that were not taken
  flyci jobs why https://github.com/acme/app/actions/runs/91/job/4711";

/// `flyci jobs why`
pub const JOBS_WHY: &str = "\
Examples:
  flyci jobs why 4711
  flyci jobs why https://github.com/acme/app/actions/runs/91/job/4711";

/// `flyci vms`
pub const VMS: &str = "\
Examples:
  flyci vms --all                   with those that are gone, and why they ended
  flyci vms kill 3f0c9a4e --reason \"it mines coins\"";

/// `flyci tenants`
pub const TENANTS: &str = "\
Examples:
  flyci tenants approve acme
  flyci tenants limit acme 2
  flyci tenants suspend acme";

/// `flyci deliveries`
pub const DELIVERIES: &str = "\
Examples:
  flyci deliveries --failed
  flyci deliveries --json | jq -r '.items[].guid'";

/// `flyci image`
pub const IMAGE: &str = "\
Examples:
  flyci image build linux-minimal --runner /opt/actions-runner
  flyci image list";

/// `flyci config`
pub const CONFIG: &str = "\
Examples:
  flyci config check --config new.toml     all faults at once, the files that it names too
  flyci config show";

/// `flyci audit`
pub const AUDIT: &str = "\
Examples:
  flyci audit --since 7d
  flyci audit verify";

/// `flyci usage`
pub const USAGE: &str = "\
Examples:
  flyci usage
  flyci usage --month 2026-11 --csv > 2026-11.csv";

/// `flyci backup` and `flyci restore`
pub const BACKUP: &str = "\
Examples:
  flyci backup /backup/flyci-$(date +%F)
  flyci restore /backup/flyci-2026-11-25";

/// `flyci demo`
#[cfg(feature = "demo")]
pub const DEMO: &str = "\
Examples:
  flyci demo                        real VMs: Linux with QEMU
  flyci demo --hypervisor fake      the way of a job, where no VM can be had
  flyci demo --keep                 the log and the database stay, to be looked at";

/// `flyci doctor`
pub const DOCTOR: &str = "\
Examples:
  flyci doctor
  flyci doctor --boot               boots one VM to ready, and destroys it";

/// `flyci service`
pub const SERVICE: &str = "\
Examples:
  sudo flyci service install --dry-run     every file and command, and nothing is done
  sudo flyci service install
  flyci service status";
