//! A gRPC client on any stream.

use flyci_agent::proto::agent_client::AgentClient;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Error};

/// A client of the agent.
pub type Client = AgentClient<Channel>;

/// Connects through what `connect` opens. A lost connection is opened again the same way.
pub async fn client<C, F, S, E>(connect: C) -> Result<Client, Error>
where
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, E>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let connector = tower::service_fn(move |_| {
        let stream = connect();
        async move { stream.await.map(TokioIo::new).map_err(Into::into) }
    });
    let connector = tower::ServiceExt::<tonic::codegen::http::Uri>::map_err(
        connector,
        |error: Box<dyn std::error::Error + Send + Sync>| error,
    );
    Endpoint::from_static("http://agent").connect_with_connector(connector).await.map(AgentClient::new)
}
