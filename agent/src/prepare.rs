//! The commands that the agent answers itself, by the reserved name [`RESERVED`].
//!
//! `flyci-agent prepare` takes from standard input what a machine lacks that was just started or
//! restored, as lines: the time (Unix nanoseconds), entropy (hex, at least 32 bytes) and the host
//! name. It is answered when all is set. `flyci-agent poweroff` asks PID 1 to power off.
//! Only an agent that was told that it is inside a VM answers them.

use crate::exec::{Responses, exit, response};
use crate::proto::exec_request::{Command, Type as Input};
use crate::proto::exec_response::Type as Output;
use crate::proto::{ExecRequest, ExecResponse, IoChunk};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};

/// The name of the commands that are not looked for on the PATH.
pub const RESERVED: &str = "flyci-agent";

/// Least entropy that the host gives, in bytes.
pub const ENTROPY_BYTES_MIN: usize = 32;

/// Most entropy that is taken, in bytes.
pub const ENTROPY_BYTES_MAX: usize = 512;

/// Longest host name, in bytes: Linux takes no longer one.
const HOSTNAME_BYTES: usize = 64;

/// Most bytes of standard input.
const INPUT_BYTES: usize = 4096;

/// How long standard input may take.
const INPUT: Duration = Duration::from_secs(10);

/// What a machine lacks that was just started or restored.
#[derive(PartialEq, Eq)]
pub struct Preparation {
    /// The time, in nanoseconds since the Unix epoch.
    pub unix_nanos: u64,
    /// Bytes that nobody else knows.
    pub entropy: Vec<u8>,
    /// The machine's new name.
    pub hostname: String,
}

/// Why the machine is not prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The input is not three lines as described at [`Preparation`].
    #[error("bad input: {0}")]
    Input(&'static str),
    /// The system refused.
    #[error("cannot set the machine's {what}")]
    System {
        /// What could not be set.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Preparation {
    /// The lines for the agent's standard input.
    pub fn to_lines(&self) -> String {
        let entropy: String = self.entropy.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}\n{entropy}\n{}\n", self.unix_nanos, self.hostname)
    }

    /// Reads the lines.
    ///
    /// # Errors
    /// [`PrepareError::Input`]: nothing of a bad input is used.
    pub fn from_lines(lines: &str) -> Result<Self, PrepareError> {
        let mut lines = lines.lines();
        let mut next = |what| lines.next().ok_or(PrepareError::Input(what));
        let unix_nanos = next("no time")?;
        let entropy = next("no entropy")?;
        let hostname = next("no host name")?;
        let fits = (ENTROPY_BYTES_MIN..=ENTROPY_BYTES_MAX).contains(&(entropy.len() / 2));
        if !fits || entropy.len() % 2 != 0 {
            return Err(PrepareError::Input("the entropy is too short, too long or cut"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if hostname.is_empty() || hostname.len() > HOSTNAME_BYTES || !hostname.bytes().all(plain) {
            return Err(PrepareError::Input("the host name is no host name"));
        }
        Ok(Self {
            unix_nanos: unix_nanos.parse().map_err(|_| PrepareError::Input("the time is not in Unix nanoseconds"))?,
            entropy: unhex(entropy).ok_or(PrepareError::Input("the entropy is not hex"))?,
            hostname: hostname.to_owned(),
        })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    text.as_bytes().chunks_exact(2).map(|pair| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()).collect()
}

/// Answers a reserved command.
pub(crate) fn answer(
    command: Command,
    requests: Streaming<ExecRequest>,
    slot: OwnedSemaphorePermit,
) -> mpsc::Receiver<Result<ExecResponse, Status>> {
    // Room for an error's text and the exit: no send waits.
    let (responses, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        let done = match command.args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["prepare"] => prepare(requests).await,
            ["poweroff"] => poweroff(),
            _ => Err("usage: flyci-agent prepare|poweroff".to_owned()),
        };
        tell(done, &responses).await;
        drop(slot);
    });
    receiver
}

/// Tells the outcome as a process would: text on standard error, and an exit code.
async fn tell(done: Result<(), String>, responses: &Responses) {
    let code = i32::from(done.is_err());
    if let Err(text) = done {
        let data = text.into_bytes();
        let _ = responses.send(Ok(response(Output::StandardError(IoChunk { data })))).await;
    }
    let _ = responses.send(Ok(exit(code))).await;
}

async fn prepare(requests: Streaming<ExecRequest>) -> Result<(), String> {
    let text = timeout(INPUT, input(requests)).await.map_err(|_| "the input did not end in time".to_owned())??;
    Preparation::from_lines(&text).and_then(|preparation| apply(&preparation)).map_err(|error| chain(&error))
}

/// Standard input as a whole.
async fn input(mut requests: Streaming<ExecRequest>) -> Result<String, String> {
    let mut bytes = Vec::new();
    loop {
        let message = requests.message().await.map_err(|status| status.to_string())?;
        match message.and_then(|message| message.r#type) {
            Some(Input::StandardInput(chunk)) if chunk.data.is_empty() => break,
            Some(Input::StandardInput(chunk)) => bytes.extend_from_slice(&chunk.data),
            Some(_) => {}
            None => return Err("the input was cut".to_owned()),
        }
        if bytes.len() > INPUT_BYTES {
            return Err(format!("the input is longer than {INPUT_BYTES} bytes"));
        }
    }
    String::from_utf8(bytes).map_err(|_| "the input is not text".to_owned())
}

fn poweroff() -> Result<(), String> {
    kill(Pid::from_raw(1), Signal::SIGUSR2).map_err(|error| format!("cannot ask PID 1: {error}"))
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(not(target_os = "linux"))]
fn apply(_preparation: &Preparation) -> Result<(), PrepareError> {
    Err(PrepareError::Input("this agent prepares Linux guests only"))
}

#[cfg(target_os = "linux")]
fn apply(preparation: &Preparation) -> Result<(), PrepareError> {
    use nix::sys::time::TimeSpec;
    use nix::time::{ClockId, clock_settime};

    let system = |what| move |source: std::io::Error| PrepareError::System { what, source };
    let time = TimeSpec::from_duration(Duration::from_nanos(preparation.unix_nanos));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|error| system("clock")(error.into()))?;
    entropy::add(&preparation.entropy).map_err(system("randomness"))?;
    nix::unistd::sethostname(&preparation.hostname).map_err(|error| system("host name")(error.into()))
}

/// The kernel's random pool.
#[cfg(target_os = "linux")]
mod entropy {
    use std::fs::OpenOptions;
    use std::io;
    use std::os::fd::AsRawFd;

    /// Bytes given to the kernel at once.
    const POOL_BYTES: usize = 64;

    /// The kernel's `rand_pool_info` with a buffer of fixed size.
    #[repr(C)]
    pub(crate) struct Pool {
        entropy_bits: libc_int,
        buffer_bytes: libc_int,
        buffer: [u8; POOL_BYTES],
    }

    #[expect(non_camel_case_types, reason = "named after C's type")]
    type libc_int = i32;

    // linux/random.h: RNDADDENTROPY is _IOW('R', 0x03, int[2]), RNDRESEEDCRNG is _IO('R', 0x07).
    nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 0x03, size_of::<[libc_int; 2]>()), Pool);
    nix::ioctl_none!(reseed, b'R', 0x07);

    /// Mixes the bytes in, credits them in full, and has the generator use them at once: so two
    /// guests restored from one snapshot never give the same numbers.
    pub(crate) fn add(bytes: &[u8]) -> io::Result<()> {
        let device = OpenOptions::new().write(true).open("/dev/random")?;
        for part in bytes.chunks(POOL_BYTES) {
            let mut buffer = [0; POOL_BYTES];
            buffer[..part.len()].copy_from_slice(part);
            let length = part.len() as libc_int;
            let pool = Pool { entropy_bits: length * 8, buffer_bytes: length, buffer };
            // SAFETY: the pool is a live `rand_pool_info` whose buffer is at least as long as
            // `buffer_bytes` says; the kernel only reads it.
            unsafe { add_entropy(device.as_raw_fd(), &raw const pool) }?;
        }
        // SAFETY: this ioctl takes no argument.
        unsafe { reseed(device.as_raw_fd()) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let preparation = Preparation {
            unix_nanos: 1_700_000_000_123_456_789,
            entropy: (0..48).collect(),
            hostname: "vm-1.flyci".to_owned(),
        };
        let read = Preparation::from_lines(&preparation.to_lines());
        assert!(read.is_ok_and(|read| read == preparation));
    }

    #[test]
    fn bad_input_is_refused_whole() {
        let entropy = "ab".repeat(32);
        for bad in [
            String::new(),
            format!("yesterday\n{entropy}\nvm\n"),
            format!("1\n{}\nvm\n", "ab".repeat(31)),
            format!("1\n{}\nvm\n", "ab".repeat(513)),
            format!("1\n{entropy}a\nvm\n"),
            format!("1\n{}\nvm\n", "xy".repeat(32)),
            format!("1\n{entropy}\n\n"),
            format!("1\n{entropy}\na b\n"),
            format!("1\n{entropy}\n"),
        ] {
            assert!(Preparation::from_lines(&bad).is_err(), "{bad:?}");
        }
    }
}
