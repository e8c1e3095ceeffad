//! `[images]`: how images come to this host, and how long they stay.

use super::table::{Reading, Table};
use crate::domain::units::{Bytes, Span};
use crate::images::registry::Mirror;
use serde::Serialize;
use std::path::PathBuf;

/// Layers at once, at most: more only wait for one another.
const MAX_CONCURRENCY: u32 = 32;
const GB: u64 = 1_000_000_000;
const DAY: u64 = 24 * 60 * 60;

/// `[images]`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Images {
    /// Layers that are fetched at once.
    pub concurrency: u32,
    /// How long an image stays that no vm and no profile uses.
    pub keep: Span,
    /// Space that images leave free: a pull that would leave less is refused, and unused images go before `keep`.
    pub keep_free: Bytes,
    /// Whether an image may go before its successor comes, where the disk has no room for both.
    pub replace: bool,
    /// Where images of a registry are fetched instead: `REGISTRY=HOST/PREFIX`.
    pub mirrors: Vec<String>,
    /// Logins of registries, in the format of docker's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// Certificates that registries' are checked against, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Whether registries on this machine's loopback are spoken to without TLS.
    pub plain_loopback: bool,
}

impl Images {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let images = Self {
            concurrency: table.or("concurrency", 8),
            keep: table.or("keep", Span::seconds(30 * DAY)),
            keep_free: table.or("keep_free", Bytes(20 * GB)),
            replace: table.or("replace", false),
            mirrors: table.or("mirrors", Vec::new()),
            credentials_file: table.path("credentials_file"),
            ca_file: table.path("ca_file"),
            plain_loopback: table.or("plain_loopback", true),
        };
        table.finish();
        images
    }

    pub(super) fn check(&self, reading: &Reading<'_>) {
        if !(1..=MAX_CONCURRENCY).contains(&self.concurrency) {
            reading.fault("images.concurrency", format!("write a number from 1 to {MAX_CONCURRENCY}"));
        }
        if let Some(error) = self.mirrors.iter().find_map(|text| text.parse::<Mirror>().err()) {
            reading.fault("images.mirrors", error.to_string());
        }
    }
}
