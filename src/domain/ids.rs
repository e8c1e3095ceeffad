//! Ids of our own: random, so that nobody can resolve them to an account or a repository.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random id.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// One account that installed the App: the tenant.
    TenantId
);
id!(
    /// One repository of a tenant.
    RepositoryId
);
id!(
    /// One GitHub `workflow_job`.
    JobId
);
id!(
    /// One clone of an image, booted once, for at most one job.
    VmId
);
id!(
    /// One registration of a vm at GitHub.
    RunnerId
);
id!(
    /// One machine that runs VMs.
    HostId
);
id!(
    /// One fleet: made by the first migration, in every name that leaves the database.
    FleetId
);
