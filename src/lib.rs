//! flyci turns Macs into ephemeral GitHub Actions runners: one virtual machine per job.
//!
//! The modules, in the order in which data meets them:
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | the configuration file: typed sections, all faults told at once |
//! | [`data_dir`] | the data directory: for its owner alone, one daemon at a time |
//! | [`domain`] | ids, labels, profiles, the states of job, vm and runner: pure, no clock, no I/O |
//! | [`secrets`] | encryption of stored values, keyed look-ups, sealing of JIT configs |
//! | [`store`] | all SQL, and the private Postgres |
//! | [`github`] | the only code that speaks to GitHub |
//! | [`hypervisor`] | clones, boots and destroys VMs: the trait and its backends |
//! | [`guest`] | the only code that speaks to the agent inside a VM |
//! | [`machine`] | what this machine is: CPUs, memory, chip |
//! | [`images`] | the read-only templates VMs are cloned from |
//! | [`place`] | where a call to GitHub goes: the names of a row, opened for the time of a call |
//! | [`points`] | the effects, named, at which tests let the daemon die |
//! | [`errors`] | how errors are told, without foreign text |
//! | [`troubles`] | what a process found wrong that no table tells |
//! | [`wake`] | lets loops sleep until there may be something to do |
//! | [`intake`] | a webhook delivery: verify, parse, store |
//! | [`mint`] | a requested runner becomes a minted one (gateway) |
//! | [`dispatch`] | free slots and ready VMs find demand (host) |
//! | [`lifecycle`] | one driver per VM, from clone to destruction (host) |
//! | [`upkeep`] | tables, machines and GitHub are kept in agreement; pruning |
//! | [`metrics`] | what Prometheus reads |
//! | [`api`] | the JSON of the admin API |
//! | [`web`] | HTTP: webhook, health, API, metrics |
//! | [`app`] | builds the roles, owns every task, shuts down |
//! | [`doctor`] | what could keep this machine from work, looked at before it does |
//! | [`service`] | what makes flyci a service of launchd or systemd, as a plan |
//! | [`logging`] | the log, and what never gets into it |
//! | [`cli`] | the commands |

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod dispatch;
pub mod doctor;
pub mod domain;
pub mod errors;
pub mod github;
pub mod guest;
pub mod hypervisor;
pub mod images;
pub mod intake;
pub mod lifecycle;
pub mod logging;
pub mod machine;
pub mod metrics;
pub mod mint;
pub mod place;
pub mod points;
pub mod secrets;
pub mod service;
pub mod store;
pub mod troubles;
pub mod upkeep;
pub mod wake;
pub mod web;
