//! The daemon's side of the control socket.

use super::fault::Fault;
use super::protocol::{self, Answer, Choice, Condition, Greeting, Request, Versions};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Pause between tries while nothing listens yet.
const LOOK: Duration = Duration::from_millis(10);

/// How long the greeting may take.
const GREET: Duration = Duration::from_secs(10);

/// Why a VM's process did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The machine did not do it.
    #[error("{0}")]
    Refused(Fault),
    /// It is too old or too new for this daemon.
    #[error(
        "the vm's process (flyci {program}) speaks versions {oldest} to {newest} of the control protocol, and this \
         flyci {} to {}: let the vm end, or run a version in between", Versions::OURS.oldest, Versions::OURS.newest
    )]
    Version { program: String, oldest: u32, newest: u32 },
    /// It does not answer.
    #[error("the vm's process did not answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    /// It is gone, or says what it should not.
    #[error("the vm's process cannot be spoken to")]
    Io(#[from] io::Error),
}

/// A connection to a VM's process.
pub struct Client {
    stream: UnixStream,
    program: String,
}

impl Client {
    /// Connects to a process that is there, and agrees on a version.
    ///
    /// # Errors
    /// Nobody listens, or there is no common version.
    pub async fn connect(socket: &Path) -> Result<Self, ControlError> {
        let mut stream = UnixStream::connect(socket).await?;
        let greeting = timeout(GREET, protocol::read::<Greeting>(&mut stream)).await;
        let greeting = greeting.map_err(|_| ControlError::Late(GREET))??;
        let greeting = greeting.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let Greeting { speaks, program } = greeting;
        let Some(version) = Versions::OURS.common(speaks) else {
            return Err(ControlError::Version { program, oldest: speaks.oldest, newest: speaks.newest });
        };
        let choice = Choice { protocol: version, program: env!("CARGO_PKG_VERSION").to_owned() };
        protocol::write(&mut stream, &choice).await?;
        Ok(Self { stream, program })
    }

    /// Connects to a process that is coming up. Resolves when it is there: the caller has a deadline.
    ///
    /// # Errors
    /// As [`Client::connect`], but for a socket that is not there yet.
    pub async fn wait(socket: &Path) -> Result<Self, ControlError> {
        loop {
            match Self::connect(socket).await {
                Err(ControlError::Io(error))
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
                {
                    sleep(LOOK).await;
                }
                other => return other,
            }
        }
    }

    /// The process's version of flyci.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The id of the process.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.stream.peer_cred().ok()?.pid()?.try_into().ok()
    }

    /// Asks for something, and waits for the answer.
    ///
    /// # Errors
    /// The machine did not do it, or the process does not answer in time. The connection is of no use afterwards,
    /// unless the machine refused.
    pub async fn ask(&mut self, request: &Request, deadline: Duration) -> Result<Condition, ControlError> {
        let asked = async {
            protocol::write(&mut self.stream, request).await?;
            protocol::read::<Answer>(&mut self.stream).await?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        match timeout(deadline, asked).await {
            Err(_) => Err(ControlError::Late(deadline)),
            Ok(answer) => match answer? {
                Answer::Done(condition) => Ok(condition),
                Answer::Refused(refusal) => Err(ControlError::Refused(refusal.into())),
            },
        }
    }
}
