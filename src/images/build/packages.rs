//! Fetches packages of the system with apt, without root and without installing them.

use super::BuildError;
use crate::hypervisor::process::Tool;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a question to the package lists may take.
const LOOK_UP: Duration = Duration::from_secs(60);

/// How long a download may take: the kernel is some 35 MB.
const DOWNLOAD: Duration = Duration::from_secs(600);

/// How long unpacking may take.
const UNPACK: Duration = Duration::from_secs(120);

/// One version of a package that apt could fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// The names of the packages it depends on, in its order.
    depends: Vec<String>,
}

impl Package {
    /// The newest version that the package lists have, backports included.
    pub(super) async fn newest(name: &str) -> Result<Self, BuildError> {
        let lists = Tool::new("apt-cache", LOOK_UP)?.args(["show", "--all-versions", name]).run().await;
        let unknown = || BuildError::Package {
            name: name.to_owned(),
            reason: "the package lists do not have it; run script/setup".to_owned(),
        };
        // apt-cache fails for an unknown name, too.
        let text = lists.map_err(|_| unknown())?;
        let packages = read_lists(&String::from_utf8_lossy(&text));
        packages.into_iter().rev().max_by_key(|package| release(&package.version)).ok_or_else(unknown)
    }

    /// What a package that only points to another points to.
    pub(super) async fn target(&self, prefix: &str) -> Result<Self, BuildError> {
        let pointed = self.depends.iter().find(|name| name.starts_with(prefix));
        let name = pointed.ok_or_else(|| BuildError::Package {
            name: self.name.clone(),
            reason: format!("it does not depend on any {prefix}…"),
        })?;
        Self::newest(name).await
    }

    /// Downloads it into a directory, unless it is there; returns its file.
    pub(super) async fn fetch(&self, cache: &Path) -> Result<PathBuf, BuildError> {
        let begin = format!("{}_{}_", self.name, self.version.replace(':', "%3a"));
        if let Some(file) = file_beginning(cache, &begin) {
            return Ok(file);
        }
        let wanted = format!("{}={}", self.name, self.version);
        Tool::new("apt-get", DOWNLOAD)?.args(["download", "-qq", &wanted]).directory(cache).run().await?;
        file_beginning(cache, &begin).ok_or_else(|| BuildError::Package {
            name: wanted,
            reason: format!("apt-get left no file {begin}*.deb in {}", cache.display()),
        })
    }

    /// Downloads and unpacks it, unless that was done before; returns the directory.
    pub(super) async fn unpacked(&self, cache: &Path) -> Result<PathBuf, BuildError> {
        let home = cache.join(format!("{}_{}", self.name, self.version.replace(':', "%3a")));
        if home.is_dir() {
            return Ok(home);
        }
        let file = self.fetch(cache).await?;
        let unfinished = cache.join(format!(".{}-{}", self.name, std::process::id()));
        Tool::new("dpkg-deb", UNPACK)?.arg("-x").arg(&file).arg(&unfinished).run().await?;
        match std::fs::rename(&unfinished, &home) {
            // Another build was first.
            Err(_) if home.is_dir() => super::remove_tree(&unfinished)?,
            moved => moved.map_err(super::io_at("move the unpacked package to", &home))?,
        }
        Ok(home)
    }
}

/// The stanzas of package lists.
fn read_lists(text: &str) -> Vec<Package> {
    let field = |stanza: &str, name: &str| {
        let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map(str::to_owned)
    };
    text.split("\n\n")
        .filter_map(|stanza| {
            let depends = field(stanza, "Depends").unwrap_or_default();
            let names = depends.split([',', '|']).filter_map(|one| one.split_whitespace().next());
            Some(Package {
                name: field(stanza, "Package")?,
                version: field(stanza, "Version")?,
                depends: names.map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// The numbers that a version begins with: enough to order a kernel's or a shell's releases.
fn release(version: &str) -> Vec<u64> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let numbers = upstream.split(|c: char| !c.is_ascii_digit());
    numbers.map_while(|number| number.parse().ok()).collect()
}

fn file_beginning(directory: &Path, begin: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(begin) && name.ends_with(".deb"))
    };
    entries.flatten().map(|entry| entry.path()).find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1 (= 6.1.192-2)\n\n\
        Package: linux-image-cloud-amd64\nSource: linux\nVersion: 6.12.95-1~bpo12+1\n\
        Depends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1), other | third\n\n";

    #[test]
    fn the_newest_kernel_is_that_of_the_backports() {
        let packages = read_lists(LISTS);
        assert_eq!(packages.len(), 2);
        let newest = packages.iter().max_by_key(|package| release(&package.version)).expect("two");
        assert_eq!(newest.version, "6.12.95-1~bpo12+1");
        assert_eq!(newest.depends, ["linux-image-6.12.95+deb12-cloud-amd64", "other", "third"]);
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(release("1:1.35.0-4+b1") < release("1:1.36.0-1"));
        assert!(release("6.9.1") < release("6.12"));
    }
}
