//! The guest's root file system: busybox, the agent, certificates, and the runner.

use super::{BuildError, BuildOptions, io_at};
use crate::hypervisor::process::Tool;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

/// How long busybox may take to say what it can do.
const LIST: Duration = Duration::from_secs(10);

/// Where a runner is looked for by the agent.
const RUNNER: &str = "opt/actions-runner";

/// Where programs expect the certificates of the authorities that they trust.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

const DIRECTORIES: [&str; 16] = [
    "bin",
    "dev",
    "etc/ssl/certs",
    "home",
    "lib/modules",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "var/tmp",
];

/// Small files that programs look for.
const FILES: [(&str, &str); 6] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", "flyci\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/os-release", "ID=flyci-linux-minimal\nNAME=\"flyci linux-minimal\"\nPRETTY_NAME=\"flyci linux-minimal\"\n"),
];

/// Lays out the root file system in an empty directory.
pub(super) async fn lay_out(root: &Path, busybox: &Path, options: &BuildOptions) -> Result<(), BuildError> {
    for name in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir_all(&path).map_err(io_at("make the directory", &path))?;
    }
    for name in ["tmp", "var/tmp"] {
        let path = root.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).map_err(io_at("protect", &path))?;
    }
    for (name, text) in FILES {
        let path = root.join(name);
        fs::write(&path, text).map_err(io_at("write", &path))?;
    }
    program(busybox, &root.join("bin/busybox"))?;
    link_applets(root, busybox).await?;
    program(&options.agent, &root.join("sbin/flyci-agent"))?;
    certificates(root, options)?;
    if let Some(runner) = &options.runner {
        copy_tree(runner, &root.join(RUNNER))?;
    }
    Ok(())
}

/// Makes a link for every command that busybox has.
async fn link_applets(root: &Path, busybox: &Path) -> Result<(), BuildError> {
    let program = busybox.to_string_lossy();
    let list = Tool::new(&program, LIST)?.arg("--list-full").run().await?;
    for applet in String::from_utf8_lossy(&list).lines() {
        let path = root.join(applet.trim_start_matches('/'));
        let inside = !applet.split('/').any(|part| part == "..") && !applet.is_empty();
        let Some(parent) = path.parent().filter(|_| inside) else { continue };
        fs::create_dir_all(parent).map_err(io_at("make the directory", parent))?;
        if fs::symlink_metadata(&path).is_err() {
            symlink("/bin/busybox", &path).map_err(io_at("make the link", &path))?;
        }
    }
    Ok(())
}

fn certificates(root: &Path, options: &BuildOptions) -> Result<(), BuildError> {
    let Some(source) = &options.certificates else { return Ok(()) };
    let path = root.join(CERTIFICATES);
    fs::copy(source, &path).map_err(io_at("copy the certificates of", source))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(io_at("protect", &path))
}

fn program(source: &Path, target: &Path) -> Result<(), BuildError> {
    fs::copy(source, target).map_err(io_at("copy the program", source))?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o755)).map_err(io_at("protect", target))
}

/// Copies a directory with its links and permissions. Nothing but files, links and directories
/// belongs into a runner.
fn copy_tree(from: &Path, to: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(to).map_err(io_at("make the directory", to))?;
    for entry in fs::read_dir(from).map_err(io_at("read the directory", from))? {
        let entry = entry.map_err(io_at("read the directory", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(io_at("look at", &source))?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            let link = fs::read_link(&source).map_err(io_at("read the link", &source))?;
            symlink(link, &target).map_err(io_at("make the link", &target))?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(io_at("copy", &source))?;
        } else {
            return Err(BuildError::Runner(format!("{} is neither file, link nor directory", source.display())));
        }
    }
    Ok(())
}
