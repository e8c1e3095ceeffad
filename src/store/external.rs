//! How the fleet's own Postgres is reached: `database.url` with the files beside it.
//!
//! A server on another machine is spoken to over TLS, its certificate and name verified, unless the URL
//! says otherwise by `sslmode`.

use crate::secrets::files::{self, PrivateFileError};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use std::path::Path;
use std::str::FromStr;

/// Where the database is.
#[derive(Clone, Copy)]
pub struct External<'a> {
    /// `postgres://…`; may hold a password.
    pub url: &'a str,
    /// Holds the password instead.
    pub password_file: Option<&'a Path>,
    /// Certificates that the server's is checked against, PEM; absent: the system's.
    pub ca_file: Option<&'a Path>,
}

/// Why a database cannot be reached as configured. The URL is not shown: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// The URL is none.
    #[error("`database.url` is no URL of a Postgres: write it like `postgres://flyci@db.example.com/flyci`")]
    Url,
    /// The password's file cannot be used.
    #[error("the file of `database.password_file` cannot be used")]
    PasswordFile(#[source] PrivateFileError),
    /// The password is no text.
    #[error("the file of `database.password_file` holds no text in UTF-8")]
    Password,
}

/// The options to connect with.
///
/// # Errors
/// When the URL is none, or the password's file is unreadable or open to others.
pub fn connect_options(external: External<'_>) -> Result<PgConnectOptions, ExternalError> {
    // What sqlx says of a malformed URL may repeat parts of it.
    let mut options = PgConnectOptions::from_str(external.url).map_err(|_| ExternalError::Url)?;
    if !is_local(&options) {
        if !says_sslmode(external.url) {
            options = options.ssl_mode(PgSslMode::VerifyFull);
        } else if !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull | PgSslMode::VerifyCa) {
            tracing::warn!(
                "`sslmode` in `database.url` lets anybody on the way be the database; `verify-full` does not"
            );
        }
    }
    if let Some(file) = external.ca_file {
        options = options.ssl_root_cert(file);
    }
    if let Some(file) = external.password_file {
        let bytes = files::read_private(file).map_err(ExternalError::PasswordFile)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| ExternalError::Password)?;
        options = options.password(text.trim_end_matches(['\r', '\n']));
    }
    Ok(options.application_name("flyci").disable_statement_logging())
}

/// True when nothing leaves the machine.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    options.get_socket().is_some() || host.starts_with('/') || loopback
}

fn says_sslmode(url: &str) -> bool {
    url.split_once('?').is_some_and(|(_, query)| {
        query.split('&').any(|pair| pair.starts_with("sslmode=") || pair.starts_with("ssl-mode="))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> PgSslMode {
        connect_options(External { url, password_file: None, ca_file: None }).expect(url).get_ssl_mode()
    }

    #[test]
    fn another_machine_must_prove_that_it_is_the_database() {
        assert!(matches!(mode("postgres://flyci@db.example.com/flyci"), PgSslMode::VerifyFull));
        assert!(matches!(mode("postgres://flyci@10.0.0.1/flyci?sslmode=require"), PgSslMode::Require));
        for local in
            ["postgres://flyci@localhost/flyci", "postgres://flyci@[::1]/flyci", "postgres:///flyci?host=/run/pg"]
        {
            assert!(matches!(mode(local), PgSslMode::Prefer), "{local}");
        }
    }

    #[test]
    fn the_password_is_read_from_a_private_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("password");
        files::create_private(&file, b"s3cret\n").expect("it can be written");
        let url = "postgres://flyci@db.example.com/flyci";
        let options =
            connect_options(External { url, password_file: Some(&file), ca_file: None }).expect("it is private");
        let shown = options.to_url_lossy().to_string();
        assert!(shown.contains("flyci:s3cret@db.example.com"), "the line's end is no part of it");
        let missing = directory.path().join("missing");
        let error = connect_options(External { url, password_file: Some(&missing), ca_file: None });
        assert!(matches!(error, Err(ExternalError::PasswordFile(PrivateFileError::Missing { .. }))));
    }

    #[test]
    fn a_malformed_url_is_not_repeated() {
        for url in ["postgres://flyci:s3cret@db:port/flyci", "not a url s3cret"] {
            let error =
                connect_options(External { url, password_file: None, ca_file: None }).expect_err("it is no URL");
            assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
        }
    }
}
