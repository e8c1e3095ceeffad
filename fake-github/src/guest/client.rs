//! Speaks the runner protocol over HTTPS, blocking. Calls that meet an unreachable or failing server are made again for
//! some minutes: a job is not lost because its server restarted.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::StatusCode;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::protocol::{
    Complete, Conclusion, DEPRECATED, Heartbeat, Jit, JobMessage, LogLines, OpenSession, Refusal, Session, StepReport,
};

/// Longer than the server's poll.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);
/// How long the server may be away before the runner gives up.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between tries while the server is away.
const RETRY: Duration = Duration::from_millis(500);
/// Longest answer, in bytes.
const ANSWER_LIMIT: u64 = 8 * 1024 * 1024;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's CA.
    #[error("the CA in the JIT configuration is no PEM certificate")]
    Ca(#[source] ureq::Error),
    /// No answer.
    #[error("the server did not answer for {PATIENCE:?}; check that this machine can reach it")]
    Unreachable(#[source] ureq::Error),
    /// An answer that is none.
    #[error("the server's answer cannot be read")]
    Answer(#[source] ureq::Error),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// In the server's words.
        message: String,
        /// Because of the runner's version.
        deprecated: bool,
    },
}

/// A connection to the server, with the credential of the moment.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    server: String,
    bearer: String,
}

impl Client {
    /// A client with the JIT configuration's credential.
    pub fn new(jit: &Jit) -> Result<Self, ClientError> {
        let roots = match &jit.ca_pem {
            Some(pem) => vec![Certificate::from_pem(pem.as_bytes()).map_err(ClientError::Ca)?],
            None => Vec::new(),
        };
        let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(CALL_TIMEOUT))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .new_agent();
        Ok(Self { agent, server: jit.server.clone(), bearer: jit.token.clone() })
    }

    /// Goes on with the session's credential.
    pub fn authorise(&mut self, token: String) {
        self.bearer = token;
    }

    /// Opens the session of a JIT configuration.
    pub fn open(&self, version: &str) -> Result<Session, ClientError> {
        let os = match std::env::consts::OS {
            "macos" => "macOS",
            _ => "Linux",
        };
        self.post("sessions", &OpenSession { version: version.into(), os: os.into() })
    }

    /// Waits for a job.
    pub fn next_job(&self) -> Result<JobMessage, ClientError> {
        loop {
            let answer = self.patiently(|| {
                self.agent.get(self.url("message")).header("authorization", self.authorization()).call()
            })?;
            if answer.status() != StatusCode::NO_CONTENT {
                return read(answer);
            }
        }
    }

    /// Tells that the runner lives. Says whether the job was cancelled.
    pub fn heartbeat(&self) -> Result<bool, ClientError> {
        self.post::<Heartbeat>("heartbeat", &()).map(|h| h.cancelled)
    }

    /// Sends output.
    pub fn log(&self, lines: Vec<String>) -> Result<(), ClientError> {
        self.tell("log", &LogLines { lines })
    }

    /// Tells that a step began or ended.
    pub fn step(&self, number: usize, conclusion: Option<Conclusion>) -> Result<(), ClientError> {
        self.tell("steps", &StepReport { number, conclusion })
    }

    /// Ends the job.
    pub fn complete(&self, conclusion: Conclusion) -> Result<(), ClientError> {
        self.tell("complete", &Complete { conclusion })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/_runner/{path}", self.server)
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.bearer)
    }

    fn send(&self, path: &str, body: &impl Serialize) -> Result<ureq::http::Response<Body>, ClientError> {
        self.patiently(|| self.agent.post(self.url(path)).header("authorization", self.authorization()).send_json(body))
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        read(self.send(path, body)?)
    }

    fn tell(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let answer = self.send(path, body)?;
        if answer.status().is_success() { Ok(()) } else { Err(refused(answer)) }
    }

    /// Calls until there is an answer below 500, for [`PATIENCE`] at most.
    fn patiently(
        &self,
        call: impl Fn() -> Result<ureq::http::Response<Body>, ureq::Error>,
    ) -> Result<ureq::http::Response<Body>, ClientError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let failed = match call() {
                Ok(answer) if !answer.status().is_server_error() => return Ok(answer),
                Ok(answer) => ureq::Error::StatusCode(answer.status().as_u16()),
                Err(error) => error,
            };
            if Instant::now() >= until {
                return Err(ClientError::Unreachable(failed));
            }
            sleep(RETRY);
        }
    }
}

fn read<T: DeserializeOwned>(mut answer: ureq::http::Response<Body>) -> Result<T, ClientError> {
    if !answer.status().is_success() {
        return Err(refused(answer));
    }
    answer.body_mut().with_config().limit(ANSWER_LIMIT).read_json().map_err(ClientError::Answer)
}

fn refused(mut answer: ureq::http::Response<Body>) -> ClientError {
    let message = answer.body_mut().read_json::<Refusal>().map_or_else(|e| e.to_string(), |r| r.message);
    let deprecated = message.ends_with(DEPRECATED);
    ClientError::Refused { message, deprecated }
}
