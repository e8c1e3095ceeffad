//! Profiles: the sizes on offer, and which of them a job asks for.

use super::labels::LabelSet;
use super::units::{Bytes, Span};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A size on offer: a `runs-on` label with what its vm is made of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The label that asks for it.
    pub label: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Free space that the guest finds at least.
    pub disk_free: Bytes,
    /// Which machines may run it; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<HardwareNeed>,
    /// The image: a name, or a reference with its digest.
    pub image: String,
    /// The guest's display, in pixels.
    #[serde(default)]
    pub display: Display,
    /// Vms kept booted without a job, over the whole fleet.
    #[serde(default)]
    pub warm: u32,
    /// How long a job may run, if not the configured limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_timeout: Option<Span>,
}

/// Labels that a job may name beside the profile's own, if they are true of the guest.
const GENERAL_LABELS: [&str; 1] = ["self-hosted"];

/// What a guest is, in GitHub's label words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Platform {
    /// The guest's operating system.
    pub os: Os,
    /// The guest's processor.
    pub architecture: Architecture,
}

/// A guest's operating system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    /// macOS.
    Macos,
    /// Linux.
    Linux,
}

/// A processor's instruction set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit Arm.
    Arm64,
    /// 64-bit x86.
    X64,
}

impl Profile {
    /// True when a job with these labels asks for this profile: its label is among them, and every
    /// other is one that any runner of that kind has.
    ///
    /// `platform` is what is known of the guest; what is not known is not held against the job.
    #[must_use]
    pub fn serves(&self, labels: &LabelSet, platform: Option<Platform>) -> bool {
        labels.contains(&self.label)
            && labels.iter().all(|label| label.eq_ignore_ascii_case(&self.label) || is_true_of(label, platform))
    }
}

fn is_true_of(label: &str, platform: Option<Platform>) -> bool {
    if GENERAL_LABELS.contains(&label) {
        return true;
    }
    match label {
        "macos" => platform.is_none_or(|guest| guest.os == Os::Macos),
        "linux" => platform.is_none_or(|guest| guest.os == Os::Linux),
        "arm64" => platform.is_none_or(|guest| guest.architecture == Architecture::Arm64),
        "x64" => platform.is_none_or(|guest| guest.architecture == Architecture::X64),
        _ => false,
    }
}

/// A generation of Apple's chips, exactly (`m2`) or at least (`m2+`), or any other exact word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HardwareNeed {
    word: String,
    or_later: bool,
}

impl HardwareNeed {
    /// True when a host with this hardware may run it.
    #[must_use]
    pub fn is_met_by(&self, hardware: &str) -> bool {
        let hardware = hardware.to_lowercase();
        if !self.or_later {
            return hardware == self.word;
        }
        match (generation(&self.word), generation(&hardware)) {
            (Some(least), Some(is)) => is >= least,
            _ => hardware == self.word,
        }
    }
}

/// The number of an Apple chip's generation: 2 for `m2`.
fn generation(hardware: &str) -> Option<u32> {
    hardware.strip_prefix('m')?.parse().ok()
}

/// Why a text is no hardware.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no hardware; write one word like `m2` (exactly that) or `m2+` (that or later)")]
pub struct ParseHardwareError(String);

impl FromStr for HardwareNeed {
    type Err = ParseHardwareError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_lowercase();
        let (word, or_later) = lower.strip_suffix('+').map_or((lower.as_str(), false), |word| (word, true));
        let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !plain || (or_later && generation(word).is_none()) {
            return Err(ParseHardwareError(text.to_owned()));
        }
        Ok(Self { word: word.to_owned(), or_later })
    }
}

impl fmt::Display for HardwareNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.word, if self.or_later { "+" } else { "" })
    }
}

impl Serialize for HardwareNeed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HardwareNeed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A display's size in pixels, written `1920x1080`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Display {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Default for Display {
    fn default() -> Self {
        Self { width: 1920, height: 1080 }
    }
}

impl Serialize for Display {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}x{}", self.width, self.height))
    }
}

impl<'de> Deserialize<'de> for Display {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.split_once('x')
            .and_then(|(width, height)| Some(Self { width: width.parse().ok()?, height: height.parse().ok()? }))
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no display size; write it like `1920x1080`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        Profile {
            label: "flyci-macos-large".into(),
            cpus: 4,
            memory: Bytes(7_000_000_000),
            disk_free: Bytes(28_000_000_000),
            hardware: None,
            image: "tahoe".into(),
            display: Display::default(),
            warm: 0,
            job_timeout: None,
        }
    }

    fn labels(list: &[&str]) -> LabelSet {
        list.iter().collect()
    }

    #[test]
    fn a_job_asks_by_the_label_and_by_nothing_that_the_guest_is_not() {
        let mac = Some(Platform { os: Os::Macos, architecture: Architecture::Arm64 });
        for served in [&["flyci-macos-large"][..], &["self-hosted", "macOS", "ARM64", "FlyCI-macos-large"]] {
            assert!(profile().serves(&labels(served), mac), "{served:?}");
        }
        for refused in [&["self-hosted"][..], &["flyci-macos-large", "gpu"], &["flyci-macos-large", "Linux"], &[]] {
            assert!(!profile().serves(&labels(refused), mac), "{refused:?}");
        }
    }

    #[test]
    fn hardware_is_exact_or_at_least() {
        let exact: HardwareNeed = "m2".parse().expect("m2 is hardware");
        let least: HardwareNeed = "M2+".parse().expect("m2+ is hardware");
        assert!(exact.is_met_by("m2") && !exact.is_met_by("m3"));
        assert!(
            least.is_met_by("m2") && least.is_met_by("m10") && !least.is_met_by("m1") && !least.is_met_by("x86_64")
        );
        for text in ["", "+", "x86+", "m 2"] {
            assert!(text.parse::<HardwareNeed>().is_err(), "{text}");
        }
    }
}
