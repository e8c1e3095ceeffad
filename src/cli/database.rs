//! `flyci backup`, `flyci restore` and `flyci database upgrade`: the private Postgres, without the daemon's help.

use super::args::{BackupArgs, DatabaseCommand, RestoreArgs};
use super::exit::{CliError, DONE};
use super::out;
use super::progress::Line;
use crate::config::Config;
use crate::store::embedded::{self, EmbeddedError, Options};
use std::fmt::Display;
use std::future::Future;

/// Runs `flyci backup`.
pub async fn backup(config: &Config, args: &BackupArgs) -> Result<u8, CliError> {
    let work = embedded::backup(&config.data_dir, &config.keys.master, &args.file);
    told(config, "writing the backup", work).await
}

/// Runs `flyci restore`.
pub async fn restore(config: &Config, args: &RestoreArgs) -> Result<u8, CliError> {
    let work = embedded::restore(&config.data_dir, &config.keys.master, &args.file, options(config));
    told(config, "restoring", work).await
}

/// Runs `flyci database …`.
pub async fn run(config: &Config, command: &DatabaseCommand) -> Result<u8, CliError> {
    match command {
        DatabaseCommand::Upgrade => {
            let work = embedded::upgrade(&config.data_dir, &config.keys.master, options(config));
            told(config, "moving the database", work).await
        }
    }
}

const fn options(config: &Config) -> Options {
    Options { download: config.database.download }
}

/// Does it with a line of progress, and prints what it says of itself.
async fn told<T: Display>(
    config: &Config,
    doing: &str,
    work: impl Future<Output = Result<T, EmbeddedError>>,
) -> Result<u8, CliError> {
    if config.database.url.is_some() {
        return Err(CliError::Failed(
            "this is for the private database, and `database.url` names another\n  use the tools of that server: \
             pg_dump, pg_restore, pg_upgrade"
                .to_owned(),
        ));
    }
    let line = Line::start(doing);
    let outcome = work.await;
    drop(line);
    let outcome = outcome.map_err(|error| CliError::part(format!("{doing} failed"), error))?;
    out::print(&format!("{outcome}\n"))?;
    Ok(DONE)
}
