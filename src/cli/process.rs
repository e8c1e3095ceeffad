//! What this process does to itself before it holds a secret.

use nix::sys::resource::{Resource, setrlimit};

/// No core dump of this process or its children: their memory holds secrets.
pub fn no_core_dumps() {
    // The limit can always be lowered; were it refused, the process would still be of use.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// Nobody but root may look into the daemon's memory, other processes of its own user neither (on Linux).
/// Its children start with a clean slate: `exec` resets it.
pub fn keep_memory_private() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
}
