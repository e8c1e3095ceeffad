//! The runner in-process: the same protocol as the guest's program, with scripted behaviour instead of a shell. For
//! tests whose machines are not real. Dropping the future is the sudden end of its machine.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use tokio::sync::watch;

use crate::protocol::{
    Complete, Conclusion, Heartbeat, Jit, JobMessage, LogLines, OpenSession, Refusal, Session, StepReport,
};
use crate::tls;

/// The version that it says it has.
const VERSION: &str = "2.329.0";
/// Longer than the server's poll.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);
/// How long the server may be away before the runner gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between tries while the server is away.
const RETRY: Duration = Duration::from_millis(200);
/// The exit status of the real runner's listener when its version is deprecated.
const EXIT_DEPRECATED: i32 = 7;

/// What the runner does with its job.
#[derive(Clone, Debug)]
pub enum Work {
    /// Ends it at once.
    Instant(Conclusion),
    /// Ends it after a time.
    For(Duration, Conclusion),
    /// Ends it when told to; the sender's value is how.
    Told(watch::Receiver<Option<Conclusion>>),
    /// Goes silent with the job, as a machine that froze: the future never ends.
    Freeze,
    /// Its machine dies with the job: the exit status comes at once, GitHub hears nothing.
    Die(i32),
}

/// How the runner behaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// With a job.
    pub work: Work,
    /// Before it opens its session.
    pub start_after: Duration,
    /// Exits with this status instead of opening a session: a runner that does not start.
    pub refuses: Option<i32>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { work: Work::Instant(Conclusion::Success), start_after: Duration::ZERO, refuses: None }
    }
}

impl Behaviour {
    /// Starts at once, and does this with its job.
    pub fn working(work: Work) -> Self {
        Self { work, ..Self::default() }
    }
}

/// Runs a runner to its end. Answers its exit status: 0 after a job (whatever its conclusion), 1 when it was refused.
pub async fn run(jit: &str, behaviour: Behaviour) -> i32 {
    if let Some(status) = behaviour.refuses {
        return status;
    }
    tokio::time::sleep(behaviour.start_after).await;
    let Ok(jit) = Jit::decode(jit) else { return 1 };
    let Ok(client) = client(&jit) else { return 1 };
    let mut link = Link { client, server: jit.server, bearer: jit.token };
    match link.open().await {
        Ok(session) => {
            link.bearer = session.token;
            link.serve(Duration::from_millis(session.heartbeat_ms), behaviour.work).await
        }
        Err(status) => status,
    }
}

fn client(jit: &Jit) -> Result<Client, Box<dyn std::error::Error>> {
    let tls = tls::client_config(jit.ca_pem.as_deref())?;
    Ok(Client::builder().tls_backend_preconfigured(tls).timeout(CALL_TIMEOUT).no_proxy().build()?)
}

struct Link {
    client: Client,
    server: String,
    bearer: String,
}

impl Link {
    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/_runner/{path}", self.server)).bearer_auth(&self.bearer)
    }

    async fn open(&self) -> Result<Session, i32> {
        let asked = OpenSession { version: VERSION.into(), os: "Linux".into() };
        let response = self.patiently(|| self.call(Method::POST, "sessions").json(&asked)).await.ok_or(1)?;
        match response.status() {
            StatusCode::CREATED => response.json().await.map_err(|_| 1),
            StatusCode::FORBIDDEN => Err(EXIT_DEPRECATED),
            _ => {
                let refusal = response.json::<Refusal>().await.map(|r| r.message).unwrap_or_default();
                tracing::info!(%refusal, "the runner was refused");
                Err(1)
            }
        }
    }

    /// Calls until there is an answer below 500, for [`PATIENCE`] at most.
    async fn patiently(&self, request: impl Fn() -> RequestBuilder) -> Option<reqwest::Response> {
        let trying = async {
            loop {
                match request().send().await {
                    Ok(response) if !response.status().is_server_error() => return response,
                    Ok(_) | Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.ok()
    }

    async fn serve(&self, heartbeat: Duration, work: Work) -> i32 {
        let job = loop {
            let Some(response) = self.patiently(|| self.call(Method::GET, "message")).await else {
                return 1;
            };
            match response.status() {
                StatusCode::OK => match response.json::<JobMessage>().await {
                    Ok(job) => break job,
                    Err(_) => return 1,
                },
                StatusCode::NO_CONTENT => {}
                _ => return 1,
            }
        };
        let conclusion = match self.work(heartbeat, work).await {
            Ok(conclusion) => conclusion,
            Err(status) => return status,
        };
        self.report(&job, conclusion).await
    }

    /// Works while heartbeats go out; a cancelled job ends the work.
    async fn work(&self, heartbeat: Duration, work: Work) -> Result<Conclusion, i32> {
        let beats = self.beat(heartbeat);
        match work {
            Work::Instant(conclusion) => Ok(conclusion),
            Work::For(time, conclusion) => tokio::select! {
                () = tokio::time::sleep(time) => Ok(conclusion),
                ended = beats => ended,
            },
            Work::Told(mut told) => tokio::select! {
                // A test that dropped its sender wants no more of this job.
                said = told.wait_for(Option::is_some) => said.ok().and_then(|c| *c).ok_or(1),
                ended = beats => ended,
            },
            Work::Freeze => std::future::pending().await,
            Work::Die(status) => Err(status),
        }
    }

    async fn beat(&self, every: Duration) -> Result<Conclusion, i32> {
        loop {
            tokio::time::sleep(every).await;
            let Some(response) = self.patiently(|| self.call(Method::POST, "heartbeat")).await else {
                return Err(1);
            };
            match response.json::<Heartbeat>().await {
                Ok(Heartbeat { cancelled: true }) => return Ok(Conclusion::Cancelled),
                Ok(_) => {}
                Err(_) => return Err(1),
            }
        }
    }

    async fn report(&self, job: &JobMessage, conclusion: Conclusion) -> i32 {
        for (step, number) in job.steps.iter().zip(1..) {
            let report = StepReport { number, conclusion: Some(conclusion) };
            self.patiently(|| self.call(Method::POST, "steps").json(&report)).await;
            let lines = LogLines { lines: vec![step.name.clone()] };
            self.patiently(|| self.call(Method::POST, "log").json(&lines)).await;
        }
        match self.patiently(|| self.call(Method::POST, "complete").json(&Complete { conclusion })).await {
            Some(response) if response.status().is_success() => 0,
            _ => 1,
        }
    }
}
