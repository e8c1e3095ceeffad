//! Takes the simulated GitHub's deliveries to the intake of whichever daemon runs.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use flyci::intake::{Delivery, Intake, IntakeError};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

type Connected = Arc<Mutex<Option<Arc<Intake>>>>;

pub struct Receiver {
    address: SocketAddr,
    intake: Connected,
}

impl Receiver {
    pub async fn start() -> Self {
        let intake = Connected::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let router = Router::new().route("/webhooks/github", post(receive)).with_state(Arc::clone(&intake));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, intake }
    }

    pub fn url(&self) -> String {
        format!("http://{}/webhooks/github", self.address)
    }

    pub fn connect(&self, intake: Option<Arc<Intake>>) {
        *self.intake.lock().expect("no delivery panics") = intake;
    }
}

async fn receive(State(intake): State<Connected>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Some(intake) = intake.lock().expect("no delivery panics").clone() else {
        return StatusCode::BAD_GATEWAY;
    };
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let delivery = Delivery {
        guid: header("x-github-delivery"),
        event: header("x-github-event"),
        signature: header("x-hub-signature-256"),
        body: &body,
    };
    match intake.receive(&delivery).await {
        Ok(_) => StatusCode::ACCEPTED,
        Err(IntakeError::Signature) => StatusCode::UNAUTHORIZED,
        Err(IntakeError::Malformed(_)) => StatusCode::BAD_REQUEST,
        Err(IntakeError::Store(_) | IntakeError::Secrets(_)) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
