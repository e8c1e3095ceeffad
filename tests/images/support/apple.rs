//! An image as Apple's encoder and `tart push` make it, written here without flyci's own encoder and manifest.

use crate::support::bundle::config;
use serde_json::json;
use sha2::{Digest as _, Sha256};

const BLOCK: usize = 64 << 10;
/// Shortest match, and how much of a block's end is literals, as the LZ4 block format says.
const SHORTEST: usize = 4;
const LAST_LITERALS: usize = 12;

/// A stream of linked 64 KiB blocks. Matches are looked for exactly one block back, so that all reach out of theirs.
pub fn encode(data: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (number, block) in data.chunks(BLOCK).enumerate() {
        let previous = &data[number.saturating_sub(1) * BLOCK..number * BLOCK];
        let encoded = encode_block(previous, block);
        if encoded.len() < block.len() {
            stream.extend(b"bv41");
            stream.extend((block.len() as u32).to_le_bytes());
            stream.extend((encoded.len() as u32).to_le_bytes());
            stream.extend(encoded);
        } else {
            stream.extend(b"bv4-");
            stream.extend((block.len() as u32).to_le_bytes());
            stream.extend(block);
        }
    }
    stream.extend(b"bv4$");
    stream
}

fn encode_block(previous: &[u8], block: &[u8]) -> Vec<u8> {
    // One byte less than a block back: a distance of 65,536 does not fit into its two bytes.
    const BACK: usize = BLOCK - 1;
    let all = [previous, block].concat();
    let (begin, end) = (previous.len(), all.len());
    let (mut out, mut at, mut literals) = (Vec::new(), begin, begin);
    while at + LAST_LITERALS < end {
        let reach =
            if at >= BACK { (at..end - LAST_LITERALS).take_while(|&n| all[n] == all[n - BACK]).count() } else { 0 };
        if reach >= SHORTEST {
            sequence(&mut out, &all[literals..at], Some((BACK as u16, reach)));
            at += reach;
            literals = at;
        } else {
            at += 1;
        }
    }
    sequence(&mut out, &all[literals..], None);
    out
}

fn sequence(out: &mut Vec<u8>, literals: &[u8], found: Option<(u16, usize)>) {
    let length = found.map_or(0, |(_, length)| length - SHORTEST);
    out.push(((literals.len().min(15) << 4) | length.min(15)) as u8);
    rest(out, literals.len());
    out.extend(literals);
    if let Some((back, _)) = found {
        out.extend(back.to_le_bytes());
        rest(out, length);
    }
}

fn rest(out: &mut Vec<u8>, length: usize) {
    if let Some(mut more) = length.checked_sub(15) {
        while more >= 255 {
            out.push(255);
            more -= 255;
        }
        out.push(more as u8);
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// What of an image is put into a registry.
pub struct Made {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: serde_json::Value,
}

/// The image of a disk, in chunks.
pub fn image(disk: &[u8], chunk: usize) -> Made {
    let mut blobs = vec![b"{}".to_vec(), config()];
    let mut layers = vec![layer("config.v1", &blobs[1], json!({}))];
    for part in disk.chunks(chunk) {
        let blob = encode(part);
        let annotations = json!({
            "org.cirruslabs.tart.uncompressed-size": part.len().to_string(),
            "org.cirruslabs.tart.uncompressed-content-digest": digest(part),
        });
        layers.push(layer("disk.v2", &blob, annotations));
        blobs.push(blob);
    }
    let nvram = vec![3; 10_000];
    layers.push(layer("nvram.v1", &nvram, json!({})));
    blobs.push(nvram);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": digest(b"{}")},
        "layers": layers,
        "annotations": {"org.cirruslabs.tart.uncompressed-disk-size": disk.len().to_string()},
    });
    Made { blobs, manifest }
}

fn layer(kind: &str, blob: &[u8], annotations: serde_json::Value) -> serde_json::Value {
    let kind = format!("application/vnd.cirruslabs.tart.{kind}");
    json!({"mediaType": kind, "size": blob.len(), "digest": digest(blob), "annotations": annotations})
}

impl Made {
    /// Puts it into a registry, by hand; answers the digest of its manifest.
    pub async fn put(&self, place: &str, repository: &str, tag: &str) -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let base = format!("http://{place}/v2/{repository}");
        for blob in &self.blobs {
            let begun = http.post(format!("{base}/blobs/uploads/")).send().await.expect("begun");
            let place = begun.headers()["location"].to_str().expect("text").to_owned();
            let place = format!("{place}&digest={}", digest(blob));
            let stored = http.put(place).body(blob.clone()).send().await.expect("sent");
            assert_eq!(stored.status(), 201);
        }
        let text = self.manifest.to_string();
        let kind = self.manifest["mediaType"].as_str().expect("text").to_owned();
        let put = http.put(format!("{base}/manifests/{tag}")).header("content-type", kind).body(text.clone());
        let stored = put.send().await.expect("sent");
        assert_eq!(stored.status(), 201, "{}", stored.text().await.unwrap_or_default());
        digest(text.as_bytes())
    }
}
