//! A Tart image's manifest in a registry (format 2): which layers it has, and what each must decode to.

use super::super::manifest::{Digest, Piece};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The media type of the manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of the stub that describes the image to container tools.
pub const STUB_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const CONFIG_TYPE: &str = "application/vnd.cirruslabs.tart.config.v1";
const DISK_TYPE: &str = "application/vnd.cirruslabs.tart.disk.v2";
const NVRAM_TYPE: &str = "application/vnd.cirruslabs.tart.nvram.v1";
const OLD_DISK_TYPE: &str = "application/vnd.cirruslabs.tart.disk.v1";
const OVERLAY_TYPE: &str = "application/vnd.cirruslabs.tart.disk.asif.overlay.v1";
const TART_TYPES: &str = "application/vnd.cirruslabs.tart.";

const CHUNK_SIZE: &str = "org.cirruslabs.tart.uncompressed-size";
const CHUNK_DIGEST: &str = "org.cirruslabs.tart.uncompressed-content-digest";
const DISK_SIZE: &str = "org.cirruslabs.tart.uncompressed-disk-size";
const UPLOAD_TIME: &str = "org.cirruslabs.tart.upload-time";

/// Most bytes of a manifest.
pub const MANIFEST_LIMIT: u64 = 4 << 20;
/// Most disk layers: 8 TiB of disk in Tart's chunks.
const LAYERS_LIMIT: usize = 16 << 10;
/// Most bytes of disk in one layer.
const CHUNK_LIMIT: u64 = 4 << 30;
/// Most bytes of a vm's description.
const CONFIG_LIMIT: u64 = 1 << 20;
/// Most bytes of auxiliary storage; Apple's is some 33 MB.
const NVRAM_LIMIT: u64 = 128 << 20;

/// Bytes in a registry, by their digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blob {
    /// SHA-256 of the bytes as they are stored there.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
}

/// A part of the disk, compressed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// What the registry stores.
    pub blob: Blob,
    /// What it decodes to.
    pub content: Piece,
}

/// What an image in a registry is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// `config.json`, as it is.
    pub config: Blob,
    /// The disk, from its beginning to its end.
    pub disk: Vec<Chunk>,
    /// `nvram.bin`, as it is.
    pub nvram: Blob,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayoutFault {
    /// It is no manifest.
    #[error("the registry's answer is no manifest of an image")]
    Json(#[source] serde_json::Error),
    /// It is a list of images.
    #[error("it is an index of several images (`{0}`), as containers have; name one Tart image")]
    Index(String),
    /// It is of something else.
    #[error(
        "it is no macOS vm image: its layers are `{0}`; flyci pulls images that `tart push` or `flyci image push` made"
    )]
    Foreign(String),
    /// It is of Tart's first format.
    #[error(
        "it is of Tart's old format (disk.v1), which is not pulled any more: push it again with a Tart of 2023 or later"
    )]
    Old,
    /// It is stacked.
    #[error("its disk is stacked (an ASIF overlay), which flyci cannot boot: push it from a vm that is not stacked")]
    Stacked,
    /// It is not what the format says.
    #[error("its manifest is broken: {0}")]
    Broken(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    media_type: String,
    schema_version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    digest: String,
    media_type: String,
    size: u64,
}

fn broken(what: impl Into<String>) -> LayoutFault {
    LayoutFault::Broken(what.into())
}

impl Layout {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// It is another format, or not what the format says.
    pub fn parse(text: &[u8]) -> Result<Self, LayoutFault> {
        let manifest: RawManifest = serde_json::from_slice(text).map_err(LayoutFault::Json)?;
        if manifest.media_type.contains("index") || manifest.media_type.contains("manifest.list") {
            return Err(LayoutFault::Index(shown(&manifest.media_type)));
        }
        if manifest.schema_version != 2 || manifest.media_type != MANIFEST_TYPE {
            let (schema, media) = (manifest.schema_version, shown(&manifest.media_type));
            return Err(LayoutFault::Foreign(format!("schema {schema}, {media}")));
        }
        refuse_others(&manifest.layers)?;
        let of_type = |kind: &'static str| manifest.layers.iter().filter(move |layer| layer.media_type == kind);
        let layout = Self {
            config: only(of_type(CONFIG_TYPE), "config", CONFIG_LIMIT)?,
            disk: of_type(DISK_TYPE).map(chunk).collect::<Result<_, _>>()?,
            nvram: only(of_type(NVRAM_TYPE), "nvram", NVRAM_LIMIT)?,
        };
        if layout.disk.is_empty() {
            return Err(broken("it has no disk"));
        }
        if let Some(told) = manifest.annotations.get(DISK_SIZE)
            && told.parse() != Ok(layout.disk_size())
        {
            return Err(broken(format!(
                "it tells of {} bytes of disk, and its layers hold {}",
                shown(told),
                layout.disk_size()
            )));
        }
        Ok(layout)
    }

    /// Bytes of the whole disk.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        self.disk.iter().map(|chunk| chunk.content.size).sum()
    }

    /// Bytes that the registry stores.
    #[must_use]
    pub fn transfer_size(&self) -> u64 {
        self.disk.iter().map(|chunk| chunk.blob.size).sum::<u64>() + self.config.size + self.nvram.size
    }

    /// The manifest of an image that is pushed: keys sorted, without spaces. `time` is RFC 3339.
    #[must_use]
    pub fn manifest(&self, stub: &Blob, time: &str) -> Vec<u8> {
        let mut layers = vec![descriptor(CONFIG_TYPE, &self.config, [])];
        layers.extend(self.disk.iter().map(|chunk| {
            let size = (CHUNK_SIZE.to_owned(), chunk.content.size.to_string());
            let digest = (CHUNK_DIGEST.to_owned(), format!("sha256:{}", chunk.content.sha256));
            descriptor(DISK_TYPE, &chunk.blob, [size, digest])
        }));
        layers.push(descriptor(NVRAM_TYPE, &self.nvram, []));
        let annotations = [(DISK_SIZE, self.disk_size().to_string()), (UPLOAD_TIME, time.to_owned())];
        let manifest = RawManifest {
            annotations: annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            config: Some(descriptor(STUB_TYPE, stub, [])),
            layers,
            media_type: MANIFEST_TYPE.to_owned(),
            schema_version: 2,
        };
        serde_json::to_vec(&manifest).expect("a manifest of texts and numbers is JSON")
    }
}

/// The stub that container tools find in place of their configuration.
#[must_use]
pub fn stub(os: &str, architecture: &str) -> Vec<u8> {
    let labels = serde_json::json!({"org.cirruslabs.tart.disk.format": "raw"});
    let stub = serde_json::json!({"architecture": architecture, "config": {"Labels": labels}, "os": os});
    stub.to_string().into_bytes()
}

fn descriptor<const N: usize>(kind: &str, blob: &Blob, annotations: [(String, String); N]) -> Descriptor {
    Descriptor {
        annotations: annotations.into(),
        digest: blob.digest.to_string(),
        media_type: kind.to_owned(),
        size: blob.size,
    }
}

/// Tells formats that flyci does not pull from one another, so that people know what to do.
fn refuse_others(layers: &[Descriptor]) -> Result<(), LayoutFault> {
    if layers.len() > LAYERS_LIMIT {
        return Err(broken(format!("it has {} layers; at most {LAYERS_LIMIT} are pulled", layers.len())));
    }
    for layer in layers {
        match layer.media_type.as_str() {
            CONFIG_TYPE | DISK_TYPE | NVRAM_TYPE => {}
            OLD_DISK_TYPE => return Err(LayoutFault::Old),
            OVERLAY_TYPE => return Err(LayoutFault::Stacked),
            tart if tart.starts_with(TART_TYPES) => {
                return Err(broken(format!("this flyci knows no layer `{}`: a newer one may", shown(tart))));
            }
            other => return Err(LayoutFault::Foreign(shown(other))),
        }
    }
    if layers.is_empty() { Err(LayoutFault::Foreign("none".to_owned())) } else { Ok(()) }
}

fn only<'a>(mut layers: impl Iterator<Item = &'a Descriptor>, name: &str, limit: u64) -> Result<Blob, LayoutFault> {
    match (layers.next(), layers.next()) {
        (Some(layer), None) if layer.size <= limit => blob(layer),
        (Some(layer), None) => Err(broken(format!("its {name} has {} bytes; at most {limit} are read", layer.size))),
        (None, _) => Err(broken(format!("it has no {name}"))),
        (Some(_), Some(_)) => Err(broken(format!("it has more than one {name}"))),
    }
}

fn blob(layer: &Descriptor) -> Result<Blob, LayoutFault> {
    let digest =
        layer.digest.parse().map_err(|_| broken(format!("`{}` is no SHA-256 digest", shown(&layer.digest))))?;
    Ok(Blob { digest, size: layer.size })
}

fn chunk(layer: &Descriptor) -> Result<Chunk, LayoutFault> {
    let annotation =
        |key: &str| layer.annotations.get(key).ok_or_else(|| broken(format!("a disk layer has no annotation {key}")));
    let size: Option<u64> = annotation(CHUNK_SIZE)?.parse().ok();
    let size = size.filter(|size| (1..=CHUNK_LIMIT).contains(size));
    let size = size.ok_or_else(|| broken(format!("a disk layer's size is none from 1 to {CHUNK_LIMIT}")))?;
    let digest: Option<Digest> = annotation(CHUNK_DIGEST)?.parse().ok();
    let digest = digest.ok_or_else(|| broken("a disk layer's content has no SHA-256 digest"))?;
    // Data that cannot be compressed grows by its frames alone.
    if layer.size > size + size / 128 + 1024 {
        return Err(broken(format!("a disk layer of {size} bytes is stored as {}", layer.size)));
    }
    Ok(Chunk { blob: blob(layer)?, content: Piece { size, sha256: digest.hex().to_owned() } })
}

/// Text of a stranger's manifest, short and harmless for a message.
fn shown(text: &str) -> String {
    const SHOWN_LENGTH: usize = 100;
    text.chars().take(SHOWN_LENGTH).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn blob_of(text: &str) -> Blob {
        Blob { digest: Digest::of(text.as_bytes()), size: text.len() as u64 }
    }

    fn sample() -> Layout {
        let chunk = |text: &str, size| Chunk {
            blob: blob_of(text),
            content: Piece { size, sha256: Digest::of(text.as_bytes()).hex().to_owned() },
        };
        Layout {
            config: blob_of("config"),
            disk: vec![chunk("one", 512 << 20), chunk("two", 7)],
            nvram: blob_of("nvram"),
        }
    }

    fn json_of(layout: &Layout) -> Value {
        let text = layout.manifest(&blob_of("stub"), "2026-01-01T00:00:00Z");
        serde_json::from_slice(&text).expect("JSON")
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Value), said: &str) {
        let mut manifest = json_of(&sample());
        change(&mut manifest);
        let error = Layout::parse(manifest.to_string().as_bytes()).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let layout = sample();
        assert_eq!(Layout::parse(&layout.manifest(&blob_of("stub"), "now")).expect("good"), layout);
        assert_eq!(layout.disk_size(), (512 << 20) + 7);
    }

    #[test]
    fn the_manifest_is_as_tart_writes_it() {
        let text = String::from_utf8(sample().manifest(&blob_of("stub"), "2026-01-01T00:00:00Z")).expect("text");
        assert!(
            text.starts_with(r#"{"annotations":{"org.cirruslabs.tart.uncompressed-disk-size":"536870919","#),
            "{text}"
        );
        assert!(
            text.ends_with(r#","mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}"#),
            "{text}"
        );
    }

    #[test]
    fn other_formats_are_told_apart() {
        refused(|m| m["layers"][1]["mediaType"] = OLD_DISK_TYPE.into(), "old format");
        refused(|m| m["layers"][2]["mediaType"] = OVERLAY_TYPE.into(), "stacked");
        refused(|m| m["layers"][1]["mediaType"] = "application/vnd.trycua.lume.disk".into(), "no macOS vm image");
        refused(|m| m["layers"][1]["mediaType"] = "application/vnd.cirruslabs.tart.disk.v3".into(), "a newer one may");
        refused(|m| m["mediaType"] = "application/vnd.oci.image.index.v1+json".into(), "index of several");
        refused(
            |m| m["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json".into(),
            "no macOS vm image",
        );
        refused(|m| m["layers"] = json!([]), "no macOS vm image");
        assert!(matches!(Layout::parse(b"<html>"), Err(LayoutFault::Json(_))));
    }

    #[test]
    fn broken_manifests_are_refused_by_their_fault() {
        refused(|m| m["layers"][0]["mediaType"] = NVRAM_TYPE.into(), "no config");
        refused(|m| m["layers"][1]["mediaType"] = CONFIG_TYPE.into(), "more than one config");
        refused(|m| m["layers"][0]["size"] = (2 << 20).into(), "at most");
        refused(|m| m["layers"][1]["annotations"] = json!({}), "no annotation");
        refused(|m| m["layers"][1]["annotations"][CHUNK_SIZE] = "0".into(), "size is none");
        refused(|m| m["layers"][1]["annotations"][CHUNK_SIZE] = "99999999999999999999".into(), "size is none");
        refused(|m| m["layers"][1]["annotations"][CHUNK_DIGEST] = "md5:1".into(), "no SHA-256");
        refused(|m| m["layers"][1]["digest"] = "../../etc".into(), "no SHA-256");
        refused(|m| m["layers"][2]["size"] = 100_000.into(), "is stored as");
        refused(|m| m["annotations"][DISK_SIZE] = "12".into(), "tells of 12 bytes");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_manifest_is_too_strange(at in 0_usize..2000, text in "\\PC{0,40}") {
            let mut manifest = sample().manifest(&blob_of("stub"), "now");
            let at = at % manifest.len();
            let end = (at + text.len()).min(manifest.len());
            manifest.splice(at..end, text.into_bytes());
            let _ = Layout::parse(&manifest);
        }
    }
}
