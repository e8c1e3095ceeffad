//! Sends webhooks: signed, with GitHub's headers and its ten seconds, in order per job unless a switch says otherwise,
//! each attempt recorded in the delivery log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Client;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::log::{Delivery, DeliveryRecord, Outcome};
use super::unreliable::{Chance, Fate};
use crate::hub::Hub;
use crate::secret::signature;
use crate::tls;
use crate::world::Event;

/// GitHub counts a delivery without an answer as failed after this long.
pub const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Deliveries that may be under way at once: those of one key always share a lane.
const LANES: u64 = 256;
/// How long reordering waits for more deliveries.
const REORDER_WAIT: Duration = Duration::from_millis(200);
/// The one event that comes in masses: those of different jobs overtake each other.
const JOB_EVENT: &str = "workflow_job";
/// Bytes kept of an answer.
const ANSWER_LIMIT: usize = 2_000;

/// Where webhooks go.
#[derive(Clone)]
pub struct Target {
    url: String,
    client: Client,
}

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The CA is unusable.
    #[error("the CA of the webhook's receiver cannot be used")]
    Ca(#[source] tls::TlsError),
    /// The client was not made.
    #[error("the webhook client could not be made")]
    Client(#[source] reqwest::Error),
}

impl Target {
    /// A target by its URL, and the CA that signed its certificate.
    pub fn new(url: &str, ca_pem: Option<&str>) -> Result<Self, TargetError> {
        let tls = tls::client_config(ca_pem).map_err(TargetError::Ca)?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .timeout(DELIVERY_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(TargetError::Client)?;
        Ok(Self { url: url.into(), client })
    }
}

/// The target as it is now; it can be changed while the server runs.
pub type SharedTarget = Arc<Mutex<Option<Target>>>;

fn current(target: &SharedTarget) -> Option<Target> {
    target.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Where webhooks go now.
pub fn url(target: &SharedTarget) -> Option<String> {
    current(target).map(|t| t.url)
}

struct Planned {
    delivery: Delivery,
    fate: Fate,
    delay: Duration,
    redelivery: bool,
    done: Option<tokio::sync::oneshot::Sender<()>>,
}

/// A request for another attempt.
pub struct Redelivery {
    /// What is sent again.
    pub delivery: Delivery,
}

/// Runs until the hub is gone: takes events, sends them.
pub async fn run(hub: Arc<Hub>, mut events: UnboundedReceiver<Event>, mut again: UnboundedReceiver<Redelivery>) {
    let mut tasks = JoinSet::new();
    let lanes: Vec<UnboundedSender<Planned>> = (0..LANES)
        .map(|_| {
            #[expect(clippy::disallowed_methods, reason = "GitHub accepts every event; a test has few")]
            let (lane, planned) = mpsc::unbounded_channel();
            tasks.spawn(run_lane(hub.clone(), planned));
            lane
        })
        .collect();
    let mut chance = Chance::new(0);
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                dispatch(&hub, &mut chance, &lanes, &mut events, event).await;
            }
            Some(Redelivery { delivery }) = again.recv() => {
                let (fate, delay) = (Fate::Sent(1), Duration::ZERO);
                enter_lane(&lanes, Planned { delivery, fate, delay, redelivery: true, done: None });
            }
        }
    }
}

async fn dispatch(
    hub: &Hub,
    chance: &mut Chance,
    lanes: &[UnboundedSender<Planned>],
    events: &mut UnboundedReceiver<Event>,
    event: Event,
) {
    let reorder = hub.read(|w| w.switches.deliveries.reorder);
    let mut collected = vec![plan(hub, chance, event)];
    if reorder > 1 {
        collect(hub, chance, events, &mut collected, reorder).await;
        chance.shuffle(&mut collected);
        send_in_turn(lanes, collected).await;
    } else if collected.iter().any(|p| p.delivery.event != JOB_EVENT) {
        // Seldom events end before what follows, so that a story's order is kept: installed first, then its jobs.
        send_in_turn(lanes, collected).await;
    } else {
        collected.into_iter().for_each(|p| enter_lane(lanes, p));
    }
}

fn plan(hub: &Hub, chance: &mut Chance, event: Event) -> Planned {
    let (fate, delay) = hub.change(|w| {
        let switches = &mut w.switches.deliveries;
        (chance.fate(switches), Duration::from_millis(switches.delay_ms))
    });
    let body = serde_json::to_vec(&event.payload).expect("a JSON value serializes");
    let delivery = Delivery {
        guid: uuid::Uuid::new_v4().to_string(),
        event: event.name,
        action: event.action,
        installation: event.installation,
        repository: event.repository,
        key: event.key,
        body: Arc::new(body),
    };
    Planned { delivery, fate, delay, redelivery: false, done: None }
}

async fn collect(
    hub: &Hub,
    chance: &mut Chance,
    events: &mut UnboundedReceiver<Event>,
    collected: &mut Vec<Planned>,
    size: usize,
) {
    let until = tokio::time::Instant::now() + REORDER_WAIT;
    while collected.len() < size {
        match tokio::time::timeout_at(until, events.recv()).await {
            Ok(Some(event)) => collected.push(plan(hub, chance, event)),
            Ok(None) | Err(_) => return,
        }
    }
}

/// Sends one after the other, so that the shuffled order is the order of arrival.
async fn send_in_turn(lanes: &[UnboundedSender<Planned>], collected: Vec<Planned>) {
    for mut planned in collected {
        let (done, ended) = tokio::sync::oneshot::channel();
        planned.done = Some(done);
        enter_lane(lanes, planned);
        // An error means that the lane is gone with the server.
        ended.await.ok();
    }
}

fn enter_lane(lanes: &[UnboundedSender<Planned>], planned: Planned) {
    let lane = usize::try_from(planned.delivery.key % LANES).expect("fewer lanes than fit a usize");
    // A closed lane means that the server stops: what is left is not sent.
    lanes[lane].send(planned).ok();
}

async fn run_lane(hub: Arc<Hub>, mut lane: UnboundedReceiver<Planned>) {
    while let Some(planned) = lane.recv().await {
        tokio::time::sleep(planned.delay).await;
        match planned.fate {
            Fate::Vanished => {}
            Fate::Failed => record(&hub, &planned, String::new(), unanswered(504, "timed out", DELIVERY_TIMEOUT)),
            Fate::Sent(times) => {
                for _ in 0..times {
                    let (url, outcome) = attempt(&hub, &planned.delivery).await;
                    record(&hub, &planned, url, outcome);
                }
            }
        }
        if !planned.redelivery {
            hub.change(|w| w.in_flight = w.in_flight.saturating_sub(1));
        }
        if let Some(done) = planned.done {
            done.send(()).ok();
        }
    }
}

fn record(hub: &Hub, planned: &Planned, url: String, outcome: Outcome) {
    hub.change(|w| {
        let (id, at) = (w.ids.delivery(), w.now());
        let delivery = planned.delivery.clone();
        w.record(DeliveryRecord { id, delivery, redelivery: planned.redelivery, at, url, outcome });
    });
}

async fn attempt(hub: &Hub, delivery: &Delivery) -> (String, Outcome) {
    let Some(target) = current(&hub.wiring.target) else {
        return (String::new(), unanswered(502, "failed to connect to host", Duration::ZERO));
    };
    let (app_id, hook_id) = hub.read(|w| (w.app.id, w.app.hook_id));
    let mut request = target.client.post(&target.url);
    for (name, value) in headers(delivery, app_id, hook_id) {
        request = request.header(name, value);
    }
    let signed = signature(&hub.wiring.webhook_secret, &delivery.body);
    let begun = Instant::now();
    let sent = request.header("X-Hub-Signature-256", signed).body(delivery.body.as_ref().clone()).send().await;
    (target.url, outcome(sent, begun).await)
}

async fn outcome(sent: Result<reqwest::Response, reqwest::Error>, begun: Instant) -> Outcome {
    let response = match sent {
        Ok(response) => response,
        Err(e) if e.is_timeout() => return unanswered(504, "timed out", begun.elapsed()),
        Err(_) => return unanswered(502, "failed to connect to host", begun.elapsed()),
    };
    let status = response.status();
    let mut answer = response.text().await.unwrap_or_default();
    answer.truncate(answer.floor_char_boundary(ANSWER_LIMIT));
    Outcome {
        status: status.canonical_reason().unwrap_or("Unknown").into(),
        code: status.as_u16(),
        seconds: begun.elapsed().as_secs_f64(),
        answer,
    }
}

fn unanswered(code: u16, status: &str, took: Duration) -> Outcome {
    Outcome { status: status.into(), code, seconds: took.as_secs_f64(), answer: String::new() }
}

/// GitHub's headers, without the signature.
pub fn headers(delivery: &Delivery, app_id: u64, hook_id: u64) -> Vec<(&'static str, String)> {
    vec![
        ("Accept", "*/*".into()),
        ("Content-Type", "application/json".into()),
        ("User-Agent", "GitHub-Hookshot/f1ac1d0".into()),
        ("X-GitHub-Delivery", delivery.guid.clone()),
        ("X-GitHub-Event", delivery.event.to_string()),
        ("X-GitHub-Hook-ID", hook_id.to_string()),
        ("X-GitHub-Hook-Installation-Target-ID", app_id.to_string()),
        ("X-GitHub-Hook-Installation-Target-Type", "integration".into()),
    ]
}
