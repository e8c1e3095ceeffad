//! Points at which the daemon can be made to die: before and after each of its effects.
//!
//! What intake, dispatch, mint, lifecycle and upkeep change (a commit, a call to GitHub, a step of a
//! machine) stands in an [`effect!`], which names it. Built with the feature `failpoints`, the daemon kills
//! itself at the point that a test chose, as `kill -9` would; `tests/points` does so at each of them.
//! Without the feature, which no release has, the macro is the effect alone.

/// Does what may change something, and is a point before and after it.
///
/// The name is `module.what`, once in the program: `effect!("mint.call", self.github.mint(…).await)`.
/// `tests/tidy/points.rs` finds effects without one.
#[cfg(feature = "failpoints")]
macro_rules! effect {
    ($name:literal, $act:expr) => {{
        $crate::points::reached(concat!("before ", $name));
        let outcome = $act;
        $crate::points::reached(concat!("after ", $name));
        outcome
    }};
}

#[cfg(not(feature = "failpoints"))]
macro_rules! effect {
    ($name:literal, $act:expr) => {
        $act
    };
}

pub(crate) use effect;

/// Whether this build has the points.
pub const ENABLED: bool = cfg!(feature = "failpoints");

#[cfg(feature = "failpoints")]
pub use dying::{DIE, DIED, DIRECTORY, REACHED, reached};

#[cfg(feature = "failpoints")]
mod dying {
    //! The test and its daemon share a directory. `reached` gets a line for each point; `die` holds the points
    //! that must be reached one after the other, and at the last of them the daemon dies. The file is called
    //! `died` then: the next daemon lives.

    use nix::sys::signal::{Signal, raise};
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};

    /// The environment's variable that names the directory.
    pub const DIRECTORY: &str = "FLYCI_POINTS";
    /// The file of the points that were reached.
    pub const REACHED: &str = "reached";
    /// The file of the points that are to be reached, a line each.
    pub const DIE: &str = "die";
    /// What it is called when the daemon died.
    pub const DIED: &str = "died";

    static SHARED: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(DIRECTORY).map(PathBuf::from));
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Tells that a point is reached, and dies there if it is the one.
    ///
    /// # Panics
    /// When the directory that the test named cannot be used.
    pub fn reached(point: &str) {
        let Some(directory) = SHARED.as_deref() else { return };
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        tell(directory, point).expect("the test's directory takes the points that are reached");
        if is_last(directory, point).expect("the test's directory says where to die") {
            // There is no handler for it, and nothing is flushed: it is `kill -9`.
            raise(Signal::SIGKILL).expect("a process may kill itself");
        }
    }

    fn tell(directory: &Path, point: &str) -> std::io::Result<()> {
        let file = fs::OpenOptions::new().create(true).append(true).open(directory.join(REACHED));
        file.and_then(|mut file| writeln!(file, "{point}"))
    }

    fn is_last(directory: &Path, point: &str) -> std::io::Result<bool> {
        let plan = directory.join(DIE);
        let Ok(text) = fs::read_to_string(&plan) else { return Ok(false) };
        let (next, rest) = text.split_once('\n').unwrap_or((text.as_str(), ""));
        if next != point {
            return Ok(false);
        }
        if rest.is_empty() {
            fs::rename(&plan, directory.join(DIED))?;
            return Ok(true);
        }
        fs::write(&plan, rest)?;
        Ok(false)
    }
}
