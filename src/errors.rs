//! How errors are told: one line per failure, with its causes.
//!
//! `Display` of our errors never repeats its source; the chain is put together here, where a failure is
//! handled. This is also the boundary that keeps names out of the logs: errors of octocrab and Postgres
//! carry repository names and row values, so of those only their kind is told.

use std::error::Error;
use std::fmt;

/// Shows an error with its causes, on one line.
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// An error with its causes, on one line, without foreign text.
#[must_use]
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = Some(self.0);
        let mut first = true;
        while let Some(error) = next {
            if !first {
                f.write_str(": ")?;
            }
            first = false;
            match error.downcast_ref::<sqlx::Error>() {
                Some(database) => return redacted(f, database),
                None => write!(f, "{error}")?,
            }
            next = error.source();
        }
        Ok(())
    }
}

/// What may be told of a database error: never its message or detail, which quote values.
fn redacted(f: &mut fmt::Formatter<'_>, error: &sqlx::Error) -> fmt::Result {
    match error {
        sqlx::Error::Database(refusal) => {
            let code = refusal.code();
            write!(f, "Postgres refused (SQLSTATE {}", code.as_deref().unwrap_or("unknown"))?;
            if let Some(constraint) = refusal.constraint() {
                write!(f, ", constraint {constraint}")?;
            }
            f.write_str(")")
        }
        sqlx::Error::Io(error) => write!(f, "no connection to Postgres: {}", error.kind()),
        sqlx::Error::PoolTimedOut => f.write_str("no connection to Postgres became free in time"),
        sqlx::Error::PoolClosed => f.write_str("the connection pool is closed"),
        sqlx::Error::RowNotFound => f.write_str("a row is missing"),
        sqlx::Error::ColumnDecode { index, .. } => write!(f, "column {index} could not be read"),
        _ => f.write_str("the database driver failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the vm could not be cloned")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is full")]
    struct Inner;

    #[test]
    fn the_causes_follow_on_one_line() {
        assert_eq!(chain(&Outer(Inner)).to_string(), "the vm could not be cloned: the disk is full");
    }

    #[test]
    fn what_the_database_quotes_is_not_told() {
        let error = sqlx::Error::Protocol("Key (name)=(acme/secret-project) exists".into());
        let store = crate::store::StoreError::from(error);
        assert!(!chain(&store).to_string().contains("acme"), "{}", chain(&store));
    }
}
