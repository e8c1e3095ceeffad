//! What is said to a registry: the few calls of the OCI distribution specification that pulling and pushing take.
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>
//!
//! Owns logins, tokens, retries and mirrors. Does not know what the blobs are, and proves no digest of what it
//! streams: `pull` does. `oci-client` does not serve: it hides the status, `Retry-After` and `Content-Range` that
//! resuming and giving up in time need (see `docs/dependencies.md`).

mod auth;
mod credentials;
mod exchange;
mod reference;

pub use credentials::{CredentialsError, Keyring, Login, is_docker_config};
pub use exchange::RegistryError;
pub(super) use exchange::Tries;
pub use reference::{ParseReferenceError, Reference, Version};

use super::manifest::Digest;
use super::tart::layout::{Blob, MANIFEST_LIMIT, MANIFEST_TYPE};
use exchange::{Ask, Body, Exchange};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// What is asked of the registry, in its words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To read.
    Pull,
    /// To read and write.
    Push,
}

/// A registry whose images are fetched from another place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mirror {
    registry: String,
    place: String,
    prefix: String,
}

/// The text names no mirror.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` names no mirror: write `REGISTRY=HOST` or `REGISTRY=HOST/PREFIX`, like `ghcr.io=registry.lan:5000/ghcr`"
)]
pub struct ParseMirrorError(String);

impl FromStr for Mirror {
    type Err = ParseMirrorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault = || ParseMirrorError(text.to_owned());
        let (registry, target) = text.split_once('=').ok_or_else(fault)?;
        let (place, prefix) = target.split_once('/').unwrap_or((target, ""));
        let good = reference::is_registry(registry)
            && reference::is_registry(place)
            && (prefix.is_empty() || reference::is_repository(prefix));
        let mirror = Self { registry: registry.to_owned(), place: place.to_owned(), prefix: prefix.to_owned() };
        good.then_some(mirror).ok_or_else(fault)
    }
}

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// The logins.
    pub keyring: Keyring,
    /// Where to fetch instead. Pushes go to the registry itself.
    pub mirrors: Vec<Mirror>,
    /// Certificates to trust in place of the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Registries on this machine's loopback are spoken to without TLS.
    pub plain_loopback: bool,
    /// The first wait before a call is tried again; then twice as long each time.
    pub first_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        const FIRST_WAIT: Duration = Duration::from_millis(500);
        Self {
            keyring: Keyring::default(),
            mirrors: Vec::new(),
            ca_pem: None,
            plain_loopback: true,
            first_wait: FIRST_WAIT,
        }
    }
}

/// One repository of a registry, as one user.
#[derive(Debug)]
pub struct Repository {
    exchange: Exchange,
    path: String,
}

/// Bytes of a blob, on their way.
#[derive(Debug)]
pub struct Stream {
    /// How many bytes of the blob are left out at its beginning.
    pub begin: u64,
    response: Response,
}

impl Stream {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, RegistryError> {
        let host = self.response.url().host_str().unwrap_or_default().to_owned();
        self.response.chunk().await.map_err(|error| RegistryError::unreachable(&host, error))
    }
}

impl Repository {
    /// Gets ready to speak to the registry of a reference. Nothing is sent yet.
    ///
    /// # Errors
    /// The certificates or the login cannot be used.
    pub async fn open(reference: &Reference, access: Access, options: &Options) -> Result<Self, RegistryError> {
        let mirror =
            options.mirrors.iter().find(|mirror| access == Access::Pull && mirror.registry == reference.registry);
        let (place, path) = match mirror {
            Some(mirror) if mirror.prefix.is_empty() => (&mirror.place, reference.repository.clone()),
            Some(mirror) => (&mirror.place, format!("{}/{}", mirror.prefix, reference.repository)),
            None => (&reference.registry, reference.repository.clone()),
        };
        let login = options.keyring.login(place).await?;
        let exchange = Exchange::new(place, &path, access, login, options)?;
        Ok(Self { exchange, path })
    }

    fn url(&self, rest: &str) -> Url {
        self.exchange.url(&format!("v2/{}/{rest}", self.path))
    }

    /// The manifest of a version, and its digest. A version that is a digest is proved.
    ///
    /// # Errors
    /// There is none, or the registry does not give it.
    pub async fn manifest(&self, version: &Version) -> Result<(Vec<u8>, Digest), RegistryError> {
        let url = self.url(&format!("manifests/{version}"));
        let mut ask = Ask::new("fetching the manifest", Method::GET, url, &[StatusCode::OK]);
        ask.headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPE));
        let response = self.exchange.send(&ask).await?;
        let bytes = self.exchange.read(response, MANIFEST_LIMIT).await?;
        let digest = Digest::of(&bytes);
        match version {
            Version::Digest(wanted) if *wanted != digest => {
                Err(RegistryError::WrongManifest { wanted: wanted.clone(), got: digest })
            }
            Version::Digest(_) | Version::Tag(_) => Ok((bytes, digest)),
        }
    }

    /// A small blob, whole and proved.
    ///
    /// # Errors
    /// The registry does not give it, or it is another.
    pub async fn small_blob(&self, blob: &Blob) -> Result<Vec<u8>, RegistryError> {
        let ask = Ask::new("fetching a blob", Method::GET, self.blob_url(&blob.digest), &[StatusCode::OK]);
        let bytes = self.exchange.read(self.exchange.send(&ask).await?, blob.size).await?;
        let got = Digest::of(&bytes);
        if got == blob.digest { Ok(bytes) } else { Err(RegistryError::WrongBlob { wanted: blob.digest.clone(), got }) }
    }

    fn blob_url(&self, digest: &Digest) -> Url {
        self.url(&format!("blobs/{digest}"))
    }

    /// A blob's bytes from an offset on. A registry that knows no ranges begins at the beginning: see
    /// [`Stream::begin`].
    ///
    /// # Errors
    /// The registry does not give it.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Stream, RegistryError> {
        const GIVEN: [StatusCode; 2] = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let mut ask = Ask::new("fetching a layer", Method::GET, self.blob_url(digest), &GIVEN);
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-")).expect("digits are a header's text");
            ask.headers.insert(RANGE, range);
        }
        let response = self.exchange.send(&ask).await?;
        if response.status() == StatusCode::OK {
            return Ok(Stream { begin: 0, response });
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let begin = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        match begin {
            Some(begin) if begin == from => Ok(Stream { begin, response }),
            Some(_) | None => Err(self.exchange.strange("a part of a layer that was not asked for")),
        }
    }

    /// Whether the registry has a blob.
    ///
    /// # Errors
    /// It does not say.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        const ANSWERS: [StatusCode; 2] = [StatusCode::OK, StatusCode::NOT_FOUND];
        let ask = Ask::new("looking for a blob", Method::HEAD, self.blob_url(digest), &ANSWERS);
        Ok(self.exchange.send(&ask).await?.status() == StatusCode::OK)
    }

    /// Stores a blob that is in a file, unless it is there already.
    ///
    /// # Errors
    /// The registry does not take it.
    pub async fn store_file(&self, blob: &Blob, file: &Path) -> Result<(), RegistryError> {
        self.store(blob, Body::File(file.to_owned())).await
    }

    /// Stores a small blob, unless it is there already.
    ///
    /// # Errors
    /// The registry does not take it.
    pub async fn store_bytes(&self, bytes: Vec<u8>) -> Result<Blob, RegistryError> {
        let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        self.store(&blob, Body::Bytes(bytes)).await?;
        Ok(blob)
    }

    async fn store(&self, blob: &Blob, body: Body) -> Result<(), RegistryError> {
        if self.has_blob(&blob.digest).await? {
            return Ok(());
        }
        // A body that broke on the way cannot be sent to the same place again: the whole upload is.
        let mut tries = exchange::Tries::new(self.exchange.first_wait());
        loop {
            match self.upload(blob, &body).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_transient() && tries.again(None).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn upload(&self, blob: &Blob, body: &Body) -> Result<(), RegistryError> {
        let mut begin =
            Ask::new("beginning an upload", Method::POST, self.url("blobs/uploads/"), &[StatusCode::ACCEPTED]);
        begin.body = Body::Bytes(Vec::new());
        let begun = self.exchange.send(&begin).await?;
        let place = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let place = place.and_then(|place| begun.url().join(place).ok());
        let mut place = place.ok_or_else(|| self.exchange.strange("no place to upload to"))?;
        place.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let mut put = Ask::new("uploading a blob", Method::PUT, place, &[StatusCode::CREATED]);
        put.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        put.headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
        put.body = body.clone();
        self.exchange.send_once(&put).await.map(drop)
    }

    /// Stores a manifest under a version.
    ///
    /// # Errors
    /// The registry does not take it.
    pub async fn store_manifest(&self, version: &Version, manifest: Vec<u8>) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&manifest);
        let url = self.url(&format!("manifests/{version}"));
        let mut ask = Ask::new("storing the manifest", Method::PUT, url, &[StatusCode::CREATED]);
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static(MANIFEST_TYPE));
        ask.body = Body::Bytes(manifest);
        let response = self.exchange.send(&ask).await?;
        let told = response.headers().get(HeaderName::from_static("docker-content-digest"));
        match told.and_then(|told| told.to_str().ok()?.parse::<Digest>().ok()) {
            Some(told) if told != digest => Err(RegistryError::WrongManifest { wanted: digest, got: told }),
            Some(_) | None => Ok(digest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_named_by_registry_and_place() {
        let mirror: Mirror = "ghcr.io=registry.lan:5000/ghcr".parse().expect("good");
        assert_eq!((mirror.place.as_str(), mirror.prefix.as_str()), ("registry.lan:5000", "ghcr"));
        for text in
            ["", "ghcr.io", "ghcr.io=", "=registry.lan", "ghcr.io=registry.lan/../x", "ghcr.io=https://registry.lan"]
        {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }
}
