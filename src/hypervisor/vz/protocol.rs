//! What daemon and `flyci vm` say to each other on the control socket: frames of JSON, each after its length.
//!
//! The process greets with the versions that it speaks, the daemon answers with the one it chose; then requests and
//! answers follow in turn. A daemon speaks to processes of one version before and after its own, since an upgraded
//! daemon adopts running vms, and one that was rolled back does too. So readers pass over fields that they do not know,
//! and words that they do not know have a meaning of their own.

use super::fault::{Fault, FaultReason};
use super::machine::VmState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The protocol's version that this flyci prefers.
pub const NEWEST: u32 = 1;
/// The oldest that it still speaks: the one before, once there is one.
pub const OLDEST: u32 = 1;

/// Most bytes of a frame, without its length.
pub const FRAME_BYTES: u32 = 64 << 10;

/// The versions that a program speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Versions {
    /// This program's.
    pub const OURS: Self = Self { oldest: OLDEST, newest: NEWEST };

    /// The newest version that both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// The process's greeting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// What it speaks.
    pub speaks: Versions,
    /// Its version of flyci, for logs.
    pub program: String,
}

/// The daemon's answer to the greeting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// The version of what follows.
    pub protocol: u32,
    /// Its version of flyci, for logs.
    pub program: String,
}

/// What a daemon asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Boot it, unless it was begun before; answered when it runs.
    Start,
    /// Say how it does.
    State,
    /// Turn it off at once; the process ends then.
    Stop,
    /// Let it stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// Write the paused machine's memory to a file.
    Save {
        /// The file.
        file: PathBuf,
    },
    /// Take the memory of a saved machine, instead of a start.
    Restore {
        /// The file.
        file: PathBuf,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What the process answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done; so the machine does now.
    Done(Condition),
    /// It was not done.
    Refused(Refusal),
}

/// How the machine does, on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Not started, or stopped.
    Stopped,
    /// Being started.
    Starting,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// The guest powered itself off.
    PoweredOff,
    /// It ended by an error.
    Failed,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl From<&VmState> for Condition {
    fn from(state: &VmState) -> Self {
        match state {
            VmState::Stopped => Self::Stopped,
            VmState::Starting => Self::Starting,
            VmState::Running => Self::Running,
            VmState::Paused => Self::Paused,
            VmState::PoweredOff => Self::PoweredOff,
            VmState::Failed(_) => Self::Failed,
        }
    }
}

/// A fault on the wire: the reason is a word, so that a newer one can be read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    reason: String,
    detail: String,
}

/// Most characters of a fault's text.
const DETAIL_CHARS: usize = 2000;

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let word = serde_json::to_value(fault.reason).ok().and_then(|word| word.as_str().map(str::to_owned));
        Self { reason: word.expect("a reason is a word"), detail: fault.detail.chars().take(DETAIL_CHARS).collect() }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let known = serde_json::from_value(serde_json::Value::String(refusal.reason.clone()));
        match known {
            Ok(reason) => Self { reason, detail: refusal.detail },
            Err(_) => Self { reason: FaultReason::Internal, detail: format!("{}: {}", refusal.reason, refusal.detail) },
        }
    }
}

/// Writes one frame.
///
/// # Errors
/// The stream's, or the value is too long.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= FRAME_BYTES);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the frame is too long"))?;
    let mut frame = Vec::with_capacity(4 + text.len());
    frame.extend(length.to_be_bytes());
    frame.extend(text);
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads one frame; none when the peer has nothing more to say.
///
/// # Errors
/// The stream's, or what came is too long, cut, or no such value.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = u32::from_be_bytes(length);
    if length > FRAME_BYTES {
        let text = format!("a frame of {length} bytes, and {FRAME_BYTES} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).await?;
    Ok(Some(serde_json::from_slice(&text)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    #[test]
    fn programs_meet_at_the_newest_version_that_both_speak() {
        let speaks = |oldest, newest| Versions { oldest, newest };
        let table = [
            (speaks(1, 1), speaks(1, 1), Some(1)),
            (speaks(1, 2), speaks(1, 1), Some(1)),
            (speaks(1, 2), speaks(2, 3), Some(2)),
            (speaks(2, 3), speaks(1, 1), None),
            (speaks(1, 1), speaks(2, 3), None),
        ];
        for (one, other, common) in table {
            assert_eq!((one.common(other), other.common(one)), (common, common), "{one:?} {other:?}");
        }
    }

    #[test]
    fn ours_and_the_version_before_ours_are_spoken() {
        assert!(OLDEST == NEWEST.saturating_sub(1).max(1), "one version back, so that a daemon can be rolled back");
    }

    #[test]
    fn what_a_newer_program_says_is_read_as_far_as_it_is_known() {
        let of = |text: &str| serde_json::from_str::<Request>(text).expect("it is read");
        assert_eq!(of(r#"{"do": "start", "faster": true}"#), Request::Start);
        assert_eq!(of(r#"{"do": "teleport", "to": "elsewhere"}"#), Request::Unknown);
        let answer: Answer = serde_json::from_str(r#"{"done": "hibernating"}"#).expect("it is read");
        assert_eq!(answer, Answer::Done(Condition::Unknown));
        let refused = r#"{"refused": {"reason": "chip_melted", "detail": "at 1000 degrees", "since": 1}}"#;
        let Ok(Answer::Refused(refusal)) = serde_json::from_str(refused) else { panic!("it is read") };
        let fault = Fault::from(refusal);
        assert_eq!(fault.reason, FaultReason::Internal);
        assert!(fault.detail.contains("chip_melted") && fault.detail.contains("1000 degrees"), "{fault}");
    }

    #[test]
    fn every_fault_comes_through() {
        let fault = Fault { reason: FaultReason::SessionLost, detail: "VZErrorDomain -9".into() };
        assert_eq!(Fault::from(Refusal::from(fault.clone())), fault);
        let long = Fault { reason: FaultReason::Internal, detail: "x".repeat(1 << 20) };
        assert_eq!(Refusal::from(long).detail.len(), DETAIL_CHARS);
    }

    #[test]
    fn a_frame_that_is_too_long_or_cut_is_an_error_and_an_end_is_none() {
        block_on(async {
            let mut none: &[u8] = &[];
            assert_eq!(read::<Request>(&mut none).await.expect("an end"), None);
            for bad in [&[0xff; 8][..], &[0, 0, 0, 9, b'{'], &[0, 0], &[0, 0, 0, 2, b'{', b'{']] {
                let mut bad = bad;
                read::<Request>(&mut bad).await.expect_err("refused");
            }
            let long = Request::Save { file: "x".repeat(FRAME_BYTES as usize).into() };
            write(&mut tokio::io::sink(), &long).await.expect_err("not written");
        });
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail_otherwise_than_by_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = block_on(async { read::<Request>(&mut bytes.as_slice()).await });
        }
    }
}
