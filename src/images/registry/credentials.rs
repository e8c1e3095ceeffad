//! The logins of registries: from the operator's file, and from what `docker login` left.

use crate::hypervisor::process::{Tool, ToolError};
use crate::secrets::files::{PrivateFileError, read_private};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Most bytes of a docker configuration.
const FILE_LIMIT: u64 = 1 << 20;
/// How long a credential helper may take: it may have to ask a keychain.
const HELPER: Duration = Duration::from_secs(20);

/// User and password of a registry.
#[derive(Clone, Debug)]
pub struct Login {
    user: String,
    password: SecretString,
}

impl Login {
    /// As it is said in `Authorization`.
    pub(super) fn basic(&self) -> HeaderValue {
        let pair = Zeroizing::new(format!("{}:{}", self.user, self.password.expose_secret()));
        let text = Zeroizing::new(format!("Basic {}", *Zeroizing::new(STANDARD.encode(pair.as_bytes()))));
        let mut header = HeaderValue::from_str(&text).expect("base64 is a header's text");
        header.set_sensitive(true);
        header
    }
}

/// Why a login cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The operator's file cannot be used.
    #[error("`images.credentials_file` cannot be used")]
    Private(#[from] PrivateFileError),
    /// A file is not what docker writes.
    #[error("{path} is no configuration of docker (`{{\"auths\": …}}`)")]
    Format { path: PathBuf },
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The helper that docker's configuration names does not help.
    #[error("the credential helper that docker's configuration names does not help")]
    Helper(#[source] ToolError),
    /// The helper's answer is strange.
    #[error("the credential helper `{0}` answered with no login")]
    HelperAnswer(String),
}

/// Where logins are looked for.
#[derive(Clone, Default, Debug)]
pub struct Keyring {
    /// The operator's file, in the format of docker's; of mode 0600.
    pub file: Option<PathBuf>,
    /// Docker's own configuration.
    pub docker: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<SecretString>,
    username: Option<String>,
    password: Option<SecretString>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: SecretString,
}

impl Keyring {
    /// The operator's file, and docker's configuration where docker has it.
    #[must_use]
    pub fn usual(file: Option<PathBuf>) -> Self {
        let named = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
        let docker = named.or_else(home).map(|directory| directory.join("config.json"));
        Self { file, docker }
    }

    /// The login of a registry; `None`: as anybody.
    ///
    /// # Errors
    /// A file that is there cannot be used.
    pub async fn login(&self, registry: &str) -> Result<Option<Login>, CredentialsError> {
        if let Some(path) = &self.file {
            let found = find(parse(path, &read_private(path)?)?, registry).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        match &self.docker {
            Some(path) if path.is_file() => find(parse(path, &read(path)?)?, registry).await,
            Some(_) | None => Ok(None),
        }
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CredentialsError> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_LIMIT).read_to_end(&mut bytes));
    read.map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

fn parse(path: &Path, text: &[u8]) -> Result<DockerConfig, CredentialsError> {
    serde_json::from_slice(text).map_err(|_| CredentialsError::Format { path: path.to_owned() })
}

/// True when a text is what docker writes.
#[must_use]
pub fn is_docker_config(text: &[u8]) -> bool {
    serde_json::from_slice::<DockerConfig>(text).is_ok()
}

async fn find(config: DockerConfig, registry: &str) -> Result<Option<Login>, CredentialsError> {
    // Docker writes a host alone, old versions a URL.
    let names = [registry.to_owned(), format!("https://{registry}"), format!("https://{registry}/")];
    let entry = names.iter().find_map(|name| config.auths.get(name));
    if let Some(login) = entry.and_then(login_of) {
        return Ok(Some(login));
    }
    let helper = config.cred_helpers.get(registry).or(config.creds_store.as_ref().filter(|_| entry.is_some()));
    match helper {
        Some(helper) => ask_helper(helper, registry).await.map(Some),
        None => Ok(None),
    }
}

fn login_of(entry: &Entry) -> Option<Login> {
    if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
        return Some(Login { user: user.clone(), password: password.clone() });
    }
    let pair = Zeroizing::new(STANDARD.decode(entry.auth.as_ref()?.expose_secret()).ok()?);
    let (user, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some(Login { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned().into() })
}

/// Asks a program of docker's, like the keychain's.
/// <https://github.com/docker/docker-credential-helpers>
async fn ask_helper(helper: &str, registry: &str) -> Result<Login, CredentialsError> {
    let strange = || CredentialsError::HelperAnswer(helper.chars().filter(|c| !c.is_control()).collect());
    if !helper.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(strange());
    }
    let tool = Tool::new(&format!("docker-credential-{helper}"), HELPER).map_err(CredentialsError::Helper)?;
    let said = tool.arg("get").input(registry.as_bytes().to_vec()).run().await.map_err(CredentialsError::Helper)?;
    let answer: HelperAnswer = serde_json::from_slice(&Zeroizing::new(said)).map_err(|_| strange())?;
    Ok(Login { user: answer.username, password: answer.secret })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn keyring(text: &str) -> (tempfile::TempDir, Keyring) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).expect("a file");
        (directory, Keyring { file: None, docker: Some(path) })
    }

    async fn header(keyring: &Keyring, registry: &str) -> Option<String> {
        let login = keyring.login(registry).await.expect("readable")?;
        Some(login.basic().to_str().expect("text").to_owned())
    }

    #[tokio::test]
    async fn what_docker_login_left_is_found() {
        let (_home, keyring) =
            keyring(r#"{"auths": {"ghcr.io": {"auth": "bWU6c2VjcmV0"}, "https://r.lan:5000": {"auth": "YTpiOmM="}}}"#);
        assert_eq!(header(&keyring, "ghcr.io").await.as_deref(), Some("Basic bWU6c2VjcmV0"));
        assert_eq!(header(&keyring, "r.lan:5000").await.as_deref(), Some("Basic YTpiOmM="));
        assert_eq!(header(&keyring, "quay.io").await, None);
    }

    #[tokio::test]
    async fn the_operators_file_comes_first_and_must_be_private() {
        let (home, mut keyring) = keyring(r#"{"auths": {"ghcr.io": {"auth": "bWU6c2VjcmV0"}}}"#);
        let file = home.path().join("ours.json");
        std::fs::write(&file, r#"{"auths": {"ghcr.io": {"username": "u", "password": "p"}}}"#).expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("opened");
        keyring.file = Some(file.clone());
        assert!(matches!(keyring.login("ghcr.io").await, Err(CredentialsError::Private(_))));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("closed");
        assert_eq!(header(&keyring, "ghcr.io").await.as_deref(), Some("Basic dTpw"));
    }

    #[tokio::test]
    async fn no_file_is_no_login_and_a_strange_one_is_told() {
        assert!(Keyring::default().login("ghcr.io").await.expect("nothing").is_none());
        let (_home, keyring) = keyring("[]x");
        assert!(matches!(keyring.login("ghcr.io").await, Err(CredentialsError::Format { .. })));
    }

    #[tokio::test]
    async fn a_helper_that_is_not_installed_is_told() {
        let (_home, keyring) = keyring(r#"{"credHelpers": {"ghcr.io": "no-such-helper"}}"#);
        assert!(matches!(keyring.login("ghcr.io").await, Err(CredentialsError::Helper(_))));
    }
}
