//! The control protocol on the wire: one daemon's version and another's.

use crate::support::{Host, PATIENCE};
use flyci::hypervisor::vz::client::{Client, ControlError};
use flyci::hypervisor::vz::fault::FaultReason;
use flyci::hypervisor::vz::protocol::{self, Answer, Choice, Condition, Greeting, Request};
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// A process of another version: greets so, and answers one request so.
async fn process(socket: PathBuf, greeting: Value, answer: Value) -> Value {
    let listener = UnixListener::bind(socket).expect("bound");
    let (mut stream, _) = listener.accept().await.expect("a daemon");
    protocol::write(&mut stream, &greeting).await.expect("greeted");
    let Ok(Some(choice)) = protocol::read::<Value>(&mut stream).await else { return Value::Null };
    let request = protocol::read::<Value>(&mut stream).await.expect("read").expect("a request");
    protocol::write(&mut stream, &answer).await.expect("answered");
    json!([choice, request])
}

#[tokio::test]
async fn a_daemon_speaks_to_a_newer_process_that_still_knows_its_version() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("control.sock");
    let greeting = json!({"speaks": {"oldest": 1, "newest": 2, "dialects": []}, "program": "9.9.9", "mood": "good"});
    let newer = tokio::spawn(process(socket.clone(), greeting, json!({"done": "hibernating"})));
    let mut client = timeout(PATIENCE, Client::wait(&socket)).await.expect("in time").expect("they agree");
    assert_eq!(client.program(), "9.9.9");
    assert_eq!(client.ask(&Request::State, PATIENCE).await.expect("answered"), Condition::Unknown);
    let heard = newer.await.expect("no panic");
    assert_eq!((&heard[0]["protocol"], &heard[1]), (&json!(1), &json!({"do": "state"})));
}

#[tokio::test]
async fn a_daemon_refuses_a_process_that_forgot_its_version_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("control.sock");
    let greeting = json!({"speaks": {"oldest": 7, "newest": 8}, "program": "9.9.9"});
    let newer = tokio::spawn(process(socket.clone(), greeting, Value::Null));
    let refused = timeout(PATIENCE, Client::wait(&socket)).await.expect("in time");
    let Err(error @ ControlError::Version { .. }) = refused else { panic!("it is refused") };
    assert!(error.to_string().contains("9.9.9") && error.to_string().contains("7 to 8"), "{error}");
    newer.await.expect("no panic");
}

async fn greeted(host: &Host, vm: flyci::domain::ids::VmId) -> (UnixStream, Greeting) {
    let mut stream = UnixStream::connect(host.path(vm).join("control.sock")).await.expect("it listens");
    let greeting = protocol::read::<Greeting>(&mut stream).await.expect("read").expect("it greets first");
    (stream, greeting)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_hangs_up_on_a_daemon_of_another_age_and_serves_the_next() {
    let host = Host::new();
    let spec = host.booted(0).await;
    let (mut stream, greeting) = greeted(&host, spec.id).await;
    let choice = Choice { protocol: greeting.speaks.newest + 1, program: "9.9.9".into() };
    protocol::write(&mut stream, &choice).await.expect("written");
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0])).await.expect("in time").expect("an end"), 0);

    // What no daemon of this version says is answered, and the conversation goes on.
    let (mut stream, greeting) = greeted(&host, spec.id).await;
    assert_eq!(greeting.program, env!("CARGO_PKG_VERSION"));
    let choice = json!({"protocol": greeting.speaks.newest, "program": "9.9.9", "more": true});
    protocol::write(&mut stream, &choice).await.expect("written");
    protocol::write(&mut stream, &json!({"do": "teleport"})).await.expect("written");
    let answer = protocol::read::<Answer>(&mut stream).await.expect("read").expect("an answer");
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    protocol::write(&mut stream, &Request::State).await.expect("written");
    let answer = protocol::read::<Answer>(&mut stream).await.expect("read").expect("an answer");
    assert_eq!(answer, Answer::Done(Condition::Running));
    host.is_gone(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_stands_still_is_saved_and_goes_on() {
    let host = Host::new();
    let spec = host.booted(0).await;
    let mut client = Client::connect(&host.path(spec.id).join("control.sock")).await.expect("connected");
    let file = host.directory.path().join("memory");
    let refused = client.ask(&Request::Save { file: file.clone() }, PATIENCE).await;
    let Err(ControlError::Refused(fault)) = refused else { panic!("a machine that runs is not saved: {refused:?}") };
    assert_eq!(fault.reason, FaultReason::WrongState);
    let mut asked = async |request| client.ask(&request, PATIENCE).await.expect("done");
    assert_eq!(asked(Request::Pause).await, Condition::Paused);
    assert_eq!(asked(Request::Save { file: file.clone() }).await, Condition::Paused);
    assert_eq!(asked(Request::Resume).await, Condition::Running);
    assert!(file.is_file());
    crate::support::ready(&host.vz, spec.id).await;
    assert_eq!(asked(Request::Stop).await, Condition::Stopped);
    assert_eq!(host.end(spec.id).await, "its machine was stopped");
    host.is_gone(spec.id).await;
}
