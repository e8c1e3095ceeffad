//! Builds guest images out of packages of the system, without root.
//!
//! `linux-minimal` is a kernel and a busybox of the distribution, the agent, and a runner: enough
//! for the demo, for tests, and for jobs that bring their own tools. The same inputs give the same
//! image, as far as the tools allow (`mke2fs -d` takes files in the order of the directory).

mod cpio;
pub(crate) mod disk;
mod kernel;
mod packages;
mod rootfs;

use super::{
    Architecture, DISK, FORMAT, INITRD, Image, ImageError, ImageFile, ImageStore, KERNEL, Kind, MANIFEST_FILE,
};
use super::{Manifest, Os, tree};
use crate::hypervisor::process::{Tool, ToolError};
use kernel::Kernel;
use packages::Package;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The recipe's name, and the image's unless another is given.
pub const LINUX_MINIMAL: &str = "linux-minimal";

/// How long converting the disk may take.
const CONVERT: Duration = Duration::from_secs(600);

/// How long the agent may take to say its version.
const ASK_VERSION: Duration = Duration::from_secs(10);

/// The program that a runner's directory must have.
const RUN: &str = "run.sh";

/// What an image is built from.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The image's name.
    pub name: String,
    /// The agent: a static program for the guest's architecture.
    pub agent: PathBuf,
    /// A runner's directory with `run.sh`; none when the host supplies the runner.
    pub runner: Option<PathBuf>,
    /// The authorities that guests trust, as a PEM file.
    pub certificates: Option<PathBuf>,
    /// Where downloads are kept for the next build.
    pub cache: PathBuf,
}

impl BuildOptions {
    /// The usual way: the agent found beside this program or where cargo leaves it, this machine's
    /// authorities, downloads kept in the data directory.
    ///
    /// # Errors
    /// No agent is found.
    pub fn usual(data_dir: &Path) -> Result<Self, BuildError> {
        const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
        Ok(Self {
            name: LINUX_MINIMAL.to_owned(),
            agent: find_agent()?,
            runner: None,
            certificates: Some(PathBuf::from(AUTHORITIES)).filter(|path| path.is_file()),
            cache: data_dir.join("cache/packages"),
        })
    }
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// This machine has no guests.
    #[error("no guest image for a {0} machine: x86_64 and aarch64 only")]
    Machine(&'static str),
    /// The agent is nowhere.
    #[error("no flyci-agent for guests found (looked at {0}); build it, or name it with --agent")]
    NoAgent(String),
    /// The runner's directory cannot be used.
    #[error("the runner cannot be used: {0}")]
    Runner(String),
    /// A package is missing or strange.
    #[error("package {name}: {reason}")]
    Package { name: String, reason: String },
    /// The kernel is strange.
    #[error("the kernel package cannot be used: {0}")]
    Kernel(String),
    /// A helper program failed.
    #[error("a tool failed")]
    Tool(#[from] ToolError),
    /// The finished image was refused.
    #[error("the image cannot be stored")]
    Store(#[from] ImageError),
    /// The file system did not do what was asked.
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
}

/// Names what was being done when the file system failed.
fn io_at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let doing = format!("{doing} {}", path.display());
    move |source| BuildError::Io { doing, source }
}

fn remove_tree(path: &Path) -> Result<(), BuildError> {
    tree::remove(path).map_err(io_at("remove", path))
}

/// Finds the static agent: beside this program, then where cargo leaves it.
fn find_agent() -> Result<PathBuf, BuildError> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let here = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned())).unwrap_or_default();
    let mut candidates = vec![here.join(format!("flyci-agent-{target}")), here.join("flyci-agent")];
    for up in here.ancestors().take(4) {
        for profile in ["agent", "release", "debug"] {
            candidates.push(up.join(&target).join(profile).join("flyci-agent"));
        }
    }
    let shown = || candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| BuildError::NoAgent(shown()))
}

/// Builds `linux-minimal` and takes it into the store. `tell` hears of each step as it begins.
///
/// # Errors
/// A package, a tool, the agent or the runner is missing or fails.
pub async fn linux_minimal(
    options: &BuildOptions,
    store: &ImageStore,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Image, BuildError> {
    let architecture = Architecture::of_this_machine().ok_or(BuildError::Machine(std::env::consts::ARCH))?;
    check_runner(options)?;
    fs::create_dir_all(&options.cache).map_err(io_at("make the directory", &options.cache))?;
    let work = Work::begin(&options.cache)?;
    tell("fetching the kernel and busybox");
    let kernel = Kernel::in_package(&kernel_package(architecture).await?.unpacked(&options.cache).await?)?;
    let busybox = Package::newest("busybox-static").await?.unpacked(&options.cache).await?;
    tell("unpacking the kernel");
    let image = work.directory("image")?;
    kernel.write(architecture, &image.join(KERNEL)).await?;
    let modules = work.directory("modules")?;
    let names = kernel.write_modules(&modules).await?;
    write_initrd(&image.join(INITRD), &options.agent, &modules, &names)?;
    tell("making the disk");
    let root = work.directory("root")?;
    rootfs::lay_out(&root, &busybox_program(&busybox), options).await?;
    let disk_size = write_disk(&root, &work.path, &image.join(DISK)).await?;
    tell("storing the image");
    let manifest = manifest(options, architecture, disk_size, &names, &image).await?;
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is JSON");
    let path = image.join(MANIFEST_FILE);
    fs::write(&path, text).map_err(io_at("write", &path))?;
    Ok(store.import(&image)?)
}

/// A directory that is gone when the build ends, however it ends.
struct Work {
    path: PathBuf,
}

impl Work {
    fn begin(cache: &Path) -> Result<Self, BuildError> {
        let path = cache.join(format!(".build-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        fs::create_dir_all(&path).map_err(io_at("make the directory", &path))?;
        Ok(Self { path })
    }

    fn directory(&self, name: &str) -> Result<PathBuf, BuildError> {
        let path = self.path.join(name);
        fs::create_dir(&path).map_err(io_at("make the directory", &path))?;
        Ok(path)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a build's directory stays");
        }
    }
}

fn check_runner(options: &BuildOptions) -> Result<(), BuildError> {
    match &options.runner {
        Some(runner) if !runner.join(RUN).is_file() => {
            Err(BuildError::Runner(format!("{} has no {RUN}", runner.display())))
        }
        _ => Ok(()),
    }
}

/// The distribution's kernel for virtual machines.
async fn kernel_package(architecture: Architecture) -> Result<Package, BuildError> {
    let debian = match architecture {
        Architecture::X86_64 => "linux-image-cloud-amd64",
        Architecture::Aarch64 => "linux-image-cloud-arm64",
    };
    Package::newest(debian).await?.target("linux-image-").await
}

fn busybox_program(package: &Path) -> PathBuf {
    let old = package.join("bin/busybox");
    if old.is_file() { old } else { package.join("usr/bin/busybox") }
}

/// The agent as the first program, and the modules it loads.
fn write_initrd(target: &Path, agent: &Path, modules: &Path, names: &[String]) -> Result<(), BuildError> {
    /// The kernel's console, where the agent tells its faults.
    const CONSOLE: (u32, u32) = (5, 1);
    let program = fs::read(agent).map_err(io_at("read the agent", agent))?;
    let file = File::create(target).map_err(io_at("make the file", target))?;
    let mut archive = cpio::Archive::new(io::BufWriter::new(file));
    let written = (|| {
        for name in ["dev", "lib", "lib/modules", "newroot", "proc", "sys"] {
            archive.directory(name)?;
        }
        archive.device("dev/console", CONSOLE)?;
        archive.program("init", &program)?;
        for name in names {
            let content = fs::read(modules.join(format!("{name}.ko")))?;
            archive.file(&format!("lib/modules/{name}.ko"), &content)?;
        }
        archive.finish()
    })();
    written.map(drop).map_err(io_at("write", target))
}

/// Makes the disk; returns its virtual size.
async fn write_disk(root: &Path, work: &Path, target: &Path) -> Result<u64, BuildError> {
    let raw = work.join("disk.raw");
    let size = disk::space_for(root)?;
    disk::make(root, size, "flyci", &raw).await?;
    // One coroutine writes the blocks in their order.
    Tool::new("qemu-img", CONVERT)?
        .args(["convert", "-f", "raw", "-O", "qcow2", "-m", "1"])
        .arg(&raw)
        .arg(target)
        .run()
        .await?;
    fs::remove_file(&raw).map_err(io_at("remove", &raw))?;
    Ok(size)
}

async fn manifest(
    options: &BuildOptions,
    architecture: Architecture,
    disk_size: u64,
    modules: &[String],
    image: &Path,
) -> Result<Manifest, BuildError> {
    let mut files = Vec::new();
    for name in [DISK, INITRD, KERNEL] {
        let path = image.join(name);
        let mut source = File::open(&path).map_err(io_at("open", &path))?;
        let (size, sha256) = super::copy_hashing(&mut source, &mut io::sink()).map_err(io_at("read", &path))?;
        files.push(ImageFile { name: name.to_owned(), size, sha256, pieces: Vec::new() });
    }
    Ok(Manifest {
        format: FORMAT,
        name: options.name.clone(),
        os: Os::Linux,
        architecture,
        kind: Kind::QemuDirect,
        disk_size,
        command_line: format!("flyci.modules={}", modules.join(",")),
        agent_version: agent_version(&options.agent).await?,
        runner_version: options.runner.as_deref().and_then(super::runner::version_of),
        created: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        files,
        registry: None,
        minimum_macos: None,
    })
}

/// What the agent says its version is: `flyci-agent 0.1.0`.
async fn agent_version(agent: &Path) -> Result<String, BuildError> {
    let said = Tool::new(&agent.to_string_lossy(), ASK_VERSION)?.arg("--version").run().await?;
    let said = String::from_utf8_lossy(&said);
    Ok(said.split_whitespace().last().unwrap_or("unknown").to_owned())
}
