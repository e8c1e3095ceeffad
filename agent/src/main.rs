//! `flyci-agent`: parses the arguments and serves. As PID 1 it brings the guest up first.

use flyci_agent::server::{Privilege, Server};
use flyci_agent::{VSOCK_PORT, listen};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
flyci-agent: runs commands for the host of this VM

Usage: flyci-agent [--machine] TRANSPORT

Transports:
  --virtio-port NAME  the virtio-serial port of this name (Linux)
  --vsock [PORT]      a vsock port, from any peer; 8080 when not given
  --unix PATH         a Unix socket, made anew

Options:
  --machine           this is a VM of its own: the host may set clock, randomness and host name,
                      and power it off
  --version, --help

As PID 1 it brings the machine up, as told on the kernel's command line by flyci.port,
flyci.modules, flyci.root, flyci.data and flyci.net.
";

/// Where to serve.
enum Transport {
    Virtio(String),
    Vsock(u32),
    Unix(PathBuf),
}

/// What the arguments ask for.
enum Asked {
    Serve(Transport, Privilege),
    Print(String),
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if std::process::id() == 1 {
        flyci_agent::init::run();
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    match parse(std::env::args().skip(1)) {
        Ok(Asked::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Asked::Serve(transport, privilege)) => match serve(transport, privilege) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("flyci-agent: cannot serve: {error}");
                ExitCode::FAILURE
            }
        },
        Err(text) => {
            eprintln!("flyci-agent: {text}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut arguments = arguments.peekable();
    let mut privilege = Privilege::None;
    let mut transport = None;
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next_if(|next| !next.starts_with("--"));
            value.ok_or_else(|| format!("{argument} needs a value"))
        };
        transport = match argument.as_str() {
            "--help" => return Ok(Asked::Print(USAGE.to_owned())),
            "--version" => {
                return Ok(Asked::Print(concat!("flyci-agent ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
            }
            "--machine" => {
                privilege = Privilege::Machine;
                continue;
            }
            _ if transport.is_some() => return Err("more than one transport".to_owned()),
            "--virtio-port" => Some(Transport::Virtio(value()?)),
            "--vsock" => Some(Transport::Vsock(match value() {
                Ok(port) => port.parse().map_err(|_| format!("{port} is no vsock port"))?,
                Err(_) => VSOCK_PORT,
            })),
            "--unix" => Some(Transport::Unix(value()?.into())),
            _ => return Err(format!("unknown argument {argument}")),
        };
    }
    let transport = transport.ok_or("no transport given")?;
    Ok(Asked::Serve(transport, privilege))
}

fn serve(transport: Transport, privilege: Privilege) -> std::io::Result<()> {
    let server = Server::new(privilege);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match transport {
            #[cfg(target_os = "linux")]
            Transport::Virtio(name) => listen::virtio(&name, server).await,
            #[cfg(not(target_os = "linux"))]
            Transport::Virtio(name) => {
                Err(std::io::Error::other(format!("no virtio port {name}: this system has none; use --vsock")))
            }
            Transport::Vsock(port) => listen::vsock(port, server).await,
            Transport::Unix(path) => listen::unix(&path, server).await,
        }
    })
}
