//! The GitHub client against a server on the wire that misbehaves on purpose.

#[path = "it/github_contract.rs"]
mod github_contract;
#[path = "it/github_fake.rs"]
mod github_fake;
#[path = "it/github_jobs.rs"]
mod github_jobs;
#[path = "it/github_limits.rs"]
mod github_limits;
#[path = "it/github_names.rs"]
mod github_names;
#[path = "it/github_runners.rs"]
mod github_runners;
#[path = "it/github_stub.rs"]
mod github_stub;
#[path = "it/github_tokens.rs"]
mod github_tokens;
#[path = "it/github_wire.rs"]
mod github_wire;
#[path = "it/support/listening.rs"]
mod listening;
