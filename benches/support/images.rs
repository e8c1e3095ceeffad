//! An image pulled from a registry on loopback, beside what the same data takes `skopeo copy` and a decoder.

use super::stats::Table;
use flyci::images::registry::{Options, Reference};
use flyci::images::tart::layout::Layout;
use flyci::images::tart::{CHUNK, lz4};
use flyci::images::{ImageStore, Progress, import_bundle, push};
use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of the disk that is pulled.
const DISK: u64 = 4 << 30;
/// Most memory that a pull may take, in MB.
const MEMORY_LIMIT: f64 = 256.0;
/// How long the registry may take to start.
const START: Duration = Duration::from_secs(30);
/// Between looks at a process.
const LOOK: Duration = Duration::from_millis(20);

/// A registry that ends with the value.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn run() {
    let root = tempfile::tempdir().expect("a directory");
    let (_registry, place) = start(root.path());
    let reference: Reference = format!("{place}/bench/image:1").parse().expect("a reference");
    let maker = ImageStore::open(&root.path().join("maker")).expect("a store");
    let image = import_bundle(&maker, &bundle(root.path()), "bench").expect("imported");
    // What is measured next is all that has to fit on the disk.
    let gone = |name: &str| std::fs::remove_dir_all(root.path().join(name)).expect("removed");
    gone("bundle");
    push(&maker, &image, &reference, &Options::default(), CHUNK, &Progress::default()).await.expect("pushed");
    gone("maker");

    let (pulled, peak) = pull(root.path(), &reference);
    gone("host");
    let (copied, decoded) = (copy(root.path(), &reference), decode(root.path()));
    let rate = |seconds: f64| format!("{:.0}", DISK as f64 / 1e6 / seconds);
    let mut table = Table::new(&["an image of 4 GiB, a quarter of it holes", "s", "MB of disk/s"]);
    table.row(&["flyci image pull".into(), format!("{pulled:.1}"), rate(pulled)]);
    table.row(&["skopeo copy, then decoding".into(), format!("{:.1}", copied + decoded), rate(copied + decoded)]);
    table.row(&["  skopeo copy".into(), format!("{copied:.1}"), rate(copied)]);
    table.print();
    println!("most memory of the pull: {peak:.0} MB (at most {MEMORY_LIMIT:.0})\n");
    assert!(peak <= MEMORY_LIMIT, "a pull takes more memory than it may");
}

fn start(root: &Path) -> (Registry, String) {
    let place = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").to_string();
    let text = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {place}\n",
        root.join("registry").display()
    );
    let config = root.join("registry.yml");
    std::fs::write(&config, text).expect("a configuration");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let registry = Registry(command.spawn().expect("docker-registry is installed (script/setup)"));
    let begun = Instant::now();
    while TcpStream::connect(&place).is_err() {
        assert!(begun.elapsed() < START, "docker-registry does not start");
        std::thread::sleep(LOOK);
    }
    (registry, place)
}

/// A Linux vm of Tart's, whose disk is like a system's: a quarter holes, half text-like, a quarter noise.
fn bundle(root: &Path) -> PathBuf {
    let path = root.join("bundle");
    std::fs::create_dir(&path).expect("a directory");
    let config = r#"{"version": 1, "os": "linux", "arch": "arm64", "cpuCountMin": 1, "cpuCount": 1,
        "memorySizeMin": 1, "memorySize": 1, "macAddress": "7e:a3:5c:11:22:33"}"#;
    std::fs::write(path.join("config.json"), config).expect("written");
    std::fs::write(path.join("nvram.bin"), [0; 1 << 16]).expect("written");
    let mut disk = File::create(path.join("disk.img")).expect("a disk");
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut megabyte = vec![0_u8; 1 << 20];
    for number in 0..DISK >> 20 {
        for byte in &mut megabyte {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = match number % 4 {
                0 => 0,
                1 => (state >> 24) as u8,
                _ => {
                    if state.is_multiple_of(5) {
                        (state >> 24) as u8
                    } else {
                        b'e'
                    }
                }
            };
        }
        disk.write_all(&megabyte).expect("written");
    }
    path
}

/// Seconds and the most memory (MB) of `flyci image pull`.
fn pull(root: &Path, reference: &Reference) -> (f64, f64) {
    let config = root.join("flyci.toml");
    let data = root.join("host");
    let text = format!(
        "roles = [\"host\"]\ndata_dir = \"{}\"\n[database]\nurl = \"postgres://nowhere/none\"\n[images]\nkeep_free = \"0B\"\n[host]\nname = \"bench\"\nhypervisor = \"fake\"\n",
        data.display()
    );
    std::fs::write(&config, text).expect("written");
    std::fs::create_dir(&data).expect("a directory");
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flyci"));
    command.arg("--config").arg(config).args(["image", "pull", &reference.to_string()]).stdout(Stdio::null());
    let mut child = command.spawn().expect("it runs");
    let mut peak: f64 = 0.0;
    loop {
        peak = peak.max(high_water(child.id()).unwrap_or(0.0));
        if let Some(status) = child.try_wait().expect("asked") {
            assert!(status.success(), "flyci image pull failed");
            return (begun.elapsed().as_secs_f64(), peak);
        }
        std::thread::sleep(LOOK);
    }
}

/// The most memory that a process had so far, in MB.
fn high_water(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1000.0)
}

/// Seconds of copying the same image into a directory.
fn copy(root: &Path, reference: &Reference) -> f64 {
    let begun = Instant::now();
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", &format!("docker://{reference}")]);
    command.arg(format!("dir:{}", root.join("copied").display())).env("HOME", root);
    assert!(command.status().expect("skopeo is installed (script/setup)").success(), "skopeo failed");
    begun.elapsed().as_secs_f64()
}

/// Seconds of decoding what was copied, one layer after the other.
fn decode(root: &Path) -> f64 {
    let copied = root.join("copied");
    let layout = Layout::parse(&std::fs::read(copied.join("manifest.json")).expect("read")).expect("a manifest");
    let mut disk = File::create(root.join("decoded.img")).expect("a disk");
    let begun = Instant::now();
    for chunk in &layout.disk {
        let blob = File::open(copied.join(chunk.blob.digest.hex())).expect("a blob");
        let mut decoder = lz4::Decoder::new(std::io::BufReader::new(blob));
        while let Some(block) = decoder.next_block().expect("well-formed") {
            disk.write_all(block).expect("written");
        }
    }
    begun.elapsed().as_secs_f64()
}
