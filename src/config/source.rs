//! Where the configuration comes from: one TOML file, and environment variables over it.
//!
//! `FLYCI_WEB__LISTEN` is the key `listen` of the section `[web]`: two underscores separate. Variables
//! of the process beside these (`FLYCI_CONFIG`, `FLYCI_LOG`, and what container platforms add, like
//! `FLYCI_PORT`) have no two underscores, and are nobody's keys.

use super::table::Fault;
use figment::error::Kind;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What our variables begin with.
const PREFIX: &str = "FLYCI_";
/// Separates sections and keys in the name of a variable.
const SEPARATOR: &str = "__";
/// Keys outside of any section that may come from the environment.
const TOP_LEVEL: [&str; 2] = ["DATA_DIR", "ROLES"];
/// Names the configuration file.
pub const FILE_VARIABLE: &str = "FLYCI_CONFIG";
/// Where the file is looked for, in this order.
pub const USUAL_PLACES: [&str; 3] = ["/etc/flyci/flyci.toml", "/usr/local/etc/flyci/flyci.toml", "flyci.toml"];

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// There is no file.
    Nowhere,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "{name}"),
            Self::Nowhere => write!(f, "no configuration file (looked for {})", USUAL_PLACES.join(", ")),
        }
    }
}

/// The file's text and the environment's variables.
pub(super) struct Source {
    file: Option<PathBuf>,
    text: String,
    variables: Vec<(String, String)>,
    /// Relative paths begin here.
    directory: PathBuf,
    tags: Option<Figment>,
}

impl Source {
    /// The file that the operator named, else the first that is in a usual place, and the process's
    /// environment.
    pub fn find(named: Option<&Path>) -> Result<Self, Fault> {
        let named = named.map(Path::to_owned).or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from));
        let file = match named {
            Some(file) => Some(file),
            None => USUAL_PLACES.iter().map(PathBuf::from).find(|path| path.exists()),
        };
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        match file {
            None => Ok(Self::new(None, String::new(), variables, working_directory())),
            Some(path) => {
                let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
                let path = std::path::absolute(&path).unwrap_or(path);
                let directory = path.parent().map_or_else(working_directory, Path::to_owned);
                Ok(Self::new(Some(path), text, variables, directory))
            }
        }
    }

    /// A text as if it were in a file of this directory, and no environment.
    pub fn from_text(text: &str, directory: &Path) -> Self {
        Self::new(Some(directory.join("flyci.toml")), text.to_owned(), Vec::new(), directory.to_owned())
    }

    fn new(file: Option<PathBuf>, text: String, variables: Vec<(String, String)>, directory: PathBuf) -> Self {
        Self { file, text, variables, directory, tags: None }
    }

    /// With these environment variables.
    #[cfg(test)]
    pub fn with_variables(mut self, variables: &[(&str, &str)]) -> Self {
        self.variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self
    }

    /// The values of file and environment, merged.
    pub fn values(&mut self) -> Result<Dict, Fault> {
        let mut figment = Figment::from(Toml::string(&self.text));
        for (name, value) in self.variables.iter().filter(|(name, _)| is_ours(name)) {
            figment = figment.merge(Variable { name: name.clone(), value: value.clone() });
        }
        let values = figment.find_value("").map_err(|error| self.malformed(&error))?;
        self.tags = Some(figment);
        Ok(values.into_dict().unwrap_or_default())
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Where a missing key should have been.
    pub fn origin(&self) -> Origin {
        self.file.clone().map_or(Origin::Nowhere, Origin::File)
    }

    /// Where a value came from.
    pub fn origin_of(&self, value: &Value) -> Origin {
        // A section has no origin of its own: that of its first value.
        let value = match value {
            Value::Dict(_, values) => values.values().next().unwrap_or(value),
            _ => value,
        };
        let metadata = self.tags.as_ref().and_then(|figment| figment.get_metadata(value.tag()));
        match metadata {
            Some(metadata) if metadata.name.starts_with(PREFIX) => Origin::Variable(metadata.name.to_string()),
            _ => self.origin(),
        }
    }

    /// A path of the configuration: relative ones begin at the configuration's directory.
    pub fn resolve(&self, path: PathBuf) -> PathBuf {
        self.directory.join(path)
    }

    fn malformed(&self, error: &Error) -> Fault {
        let problem = match &error.kind {
            Kind::Message(message) => format!("is no TOML: {}", message.trim_end()),
            kind => format!("is no TOML: {kind}"),
        };
        Fault { origin: self.origin(), key: String::new(), value: None, problem }
    }
}

fn working_directory() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
}

fn unreadable(path: &Path, error: &io::Error) -> Fault {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => "does not exist: name another by --config".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be read: run flyci as the user that it belongs to".to_owned(),
        io::ErrorKind::InvalidData => "is no text in UTF-8".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Fault { origin: Origin::File(path.to_owned()), key: String::new(), value: None, problem }
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|key| key.contains(SEPARATOR) || TOP_LEVEL.contains(&key))
}

/// One environment variable, as figment wants it.
struct Variable {
    name: String,
    value: String,
}

impl Provider for Variable {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, Error> {
        let path = self.name[PREFIX.len()..].to_lowercase().replace(SEPARATOR, ".");
        let nested = figment::util::nest(&path, Value::from(self.value.as_str()));
        Ok(Profile::Default.collect(nested.into_dict().unwrap_or_default()))
    }
}
