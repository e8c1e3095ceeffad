//! Reads one table of the configuration key by key, and writes down every fault instead of stopping at
//! the first.

use super::setting::Setting;
use super::source::{Origin, Source};
use figment::value::{Dict, Num, Value};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

/// Keys whose values may hold a secret: faults do not show them.
const SECRET_KEYS: [&str; 3] = ["database.url", "database.listen_url", "github.proxy_url"];
/// A key this alike (0 to 1, Jaro-Winkler) is taken for the one that was meant.
const ALIKE: f64 = 0.8;
/// Longer values are cut in faults, in characters.
const SHOWN_LENGTH: usize = 80;

/// One thing that is wrong: where, the value, and what is accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The file or the environment variable.
    pub origin: Origin,
    /// The key with its tables: `web.tls.mode`. Empty: the file as a whole.
    pub key: String,
    /// The value that is wrong, if there is one and it is no secret.
    pub value: Option<String>,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        match (&self.key, &self.value) {
            (key, _) if key.is_empty() => write!(f, "{}", self.problem),
            (key, Some(value)) => write!(f, "{key} = {value}: {}", self.problem),
            (key, None) => write!(f, "{key}: {}", self.problem),
        }
    }
}

/// A fault, and the keys whose values it was found by beside its own. When one of them is wrong itself, a default
/// stood in for it, and nothing follows from that.
struct Finding {
    fault: Fault,
    rests_on: Vec<String>,
}

/// What is found out while reading, beside the configuration itself.
pub(super) struct Reading<'a> {
    pub source: &'a Source,
    faults: RefCell<Vec<Finding>>,
    warnings: RefCell<Vec<Finding>>,
    /// Keys and sections that somebody probably meant when a wrong name was written.
    misspelt: RefCell<BTreeSet<String>>,
    /// Where each key that was read came from, and its value as shown.
    read: RefCell<BTreeMap<String, (Origin, Option<String>)>>,
    known: RefCell<BTreeSet<String>>,
}

impl<'a> Reading<'a> {
    pub fn new(source: &'a Source) -> Self {
        Self {
            source,
            faults: RefCell::default(),
            warnings: RefCell::default(),
            misspelt: RefCell::default(),
            read: RefCell::default(),
            known: RefCell::default(),
        }
    }

    /// The outermost table.
    pub fn root(&'a self, values: Dict) -> Table<'a> {
        Table { path: String::new(), values, known: Vec::new(), follows: &[], reading: self }
    }

    /// Writes down what is wrong with a key that was read. Of one key only the first fault is told.
    pub fn fault(&self, key: &str, problem: impl Into<String>) {
        self.fault_after(&[], key, problem);
    }

    /// Writes down what is wrong with a key if the values of others are as they were read: not told when one of
    /// these is wrong itself.
    pub fn fault_after(&self, others: &[&str], key: &str, problem: impl Into<String>) {
        self.faults.borrow_mut().push(self.finding(others, key, problem.into()));
    }

    /// Writes down what is allowed and perhaps not meant.
    pub fn warning(&self, key: &str, problem: impl Into<String>) {
        self.warning_after(&[], key, problem);
    }

    /// As [`fault_after`](Self::fault_after), of what is allowed and perhaps not meant.
    pub fn warning_after(&self, others: &[&str], key: &str, problem: impl Into<String>) {
        self.warnings.borrow_mut().push(self.finding(others, key, problem.into()));
    }

    fn finding(&self, others: &[&str], key: &str, problem: String) -> Finding {
        Finding { fault: self.about(key, problem), rests_on: others.iter().map(|&other| other.to_owned()).collect() }
    }

    fn about(&self, key: &str, problem: String) -> Fault {
        let (origin, value) = match self.read.borrow().get(key) {
            Some((origin, value)) => (origin.clone(), value.clone()),
            None => (self.source.origin(), None),
        };
        Fault { origin, key: key.to_owned(), value, problem }
    }

    /// True when the key is given, by file or environment.
    pub fn is_given(&self, key: &str) -> bool {
        self.read.borrow().contains_key(key)
    }

    /// Where the value of a key came from.
    pub fn origin_of(&self, key: &str) -> Origin {
        self.read.borrow().get(key).map_or_else(|| self.source.origin(), |(origin, _)| origin.clone())
    }

    /// Every key that there is, given or not.
    #[cfg(test)]
    pub fn known(&self) -> BTreeSet<String> {
        self.known.borrow().clone()
    }

    /// The faults and the warnings, without those that only follow from others.
    pub fn into_findings(self) -> (Vec<Fault>, Vec<Fault>) {
        let (faults, warnings) = (self.faults.into_inner(), self.warnings.into_inner());
        let mut wrong = self.misspelt.into_inner();
        wrong.extend(faults.iter().filter(|one| one.rests_on.is_empty()).map(|one| one.fault.key.clone()));
        let stands = |one: &Finding| !one.rests_on.iter().any(|key| wrong.iter().any(|wrong| concerns(wrong, key)));
        let mut told: Vec<Fault> = Vec::new();
        for Finding { fault, .. } in faults.into_iter().filter(stands) {
            if !told.iter().any(|other| other.key == fault.key) {
                told.push(fault);
            }
        }
        (told, warnings.into_iter().filter(stands).map(|one| one.fault).collect())
    }
}

/// True when one of two keys is the other, or a section that holds it.
fn concerns(one: &str, other: &str) -> bool {
    let holds = |section: &str, key: &str| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    one == other || holds(one, other) || holds(other, one)
}

/// One table while it is read.
pub(super) struct Table<'a> {
    path: String,
    values: Dict,
    known: Vec<&'static str>,
    /// Keys elsewhere that decide whether this table must have keys at all.
    follows: &'static [&'static str],
    reading: &'a Reading<'a>,
}

impl<'a> Table<'a> {
    /// What is missing from here on is so because of these keys: no fault when one of them is wrong.
    pub fn follow(&mut self, keys: &'static [&'static str]) {
        self.follows = keys;
    }

    /// The key with its tables before it.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, if it is given and well-formed.
    pub fn maybe<T: Setting>(&mut self, key: &'static str) -> Option<T> {
        let value = self.take(key)?;
        let read = T::read(&value);
        if read.is_none() {
            self.reading.fault(&self.path_of(key), format!("write {}", T::accepts()));
        }
        read
    }

    /// The value of a key, or its default.
    pub fn or<T: Setting>(&mut self, key: &'static str, default: T) -> T {
        self.maybe(key).unwrap_or(default)
    }

    /// The value of a key that has no default; `why` says what it is needed for.
    pub fn need<T: Setting>(&mut self, key: &'static str, why: &str) -> Option<T> {
        let given = self.values.contains_key(key);
        let value = self.maybe(key);
        if !given {
            let path = self.path_of(key);
            let others: Vec<&str> = self.follows.iter().copied().chain([path.as_str()]).collect();
            self.reading.fault_after(&others, &path, format!("is missing, and {why}: write {}", T::accepts()));
        }
        value
    }

    /// The path of a file: relative ones begin at the configuration's directory.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.maybe::<PathBuf>(key).map(|path| self.reading.source.resolve(path))
    }

    /// The path of a file that must be named.
    pub fn need_path(&mut self, key: &'static str, why: &str) -> Option<PathBuf> {
        self.need::<PathBuf>(key, why).map(|path| self.reading.source.resolve(path))
    }

    /// The table under a key; an empty one when there is none.
    pub fn table(&mut self, key: &'static str) -> Self {
        let path = self.path_of(key);
        let values = match self.take(key) {
            None => Dict::new(),
            Some(Value::Dict(_, values)) => values,
            Some(_) => {
                self.reading.fault(&path, format!("is a section: write `[{path}]` and its keys below"));
                Dict::new()
            }
        };
        Self { path, values, known: Vec::new(), follows: &[], reading: self.reading }
    }

    /// The tables under a key, each with its name (the text under `named_by`) or its number.
    pub fn tables(&mut self, key: &'static str, named_by: &str) -> Vec<Self> {
        let path = self.path_of(key);
        let items = match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(_, items)) if items.iter().all(|item| item.as_dict().is_some()) => items,
            Some(_) => {
                self.reading.fault(&path, format!("is a list of sections: write `[[{path}]]` before the keys of each"));
                Vec::new()
            }
        };
        let dicts = items.into_iter().filter_map(Value::into_dict);
        let table = |(position, values): (usize, Dict)| {
            let name = values.get(named_by).and_then(Value::as_str).map(str::to_owned);
            let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("#{}", position + 1));
            Self { path: format!("{path}.{name}"), values, known: Vec::new(), follows: &[], reading: self.reading }
        };
        dicts.enumerate().map(table).collect()
    }

    /// Tells of every key that is not known, with the one that was probably meant.
    pub fn finish(mut self) {
        for (key, value) in std::mem::take(&mut self.values) {
            let path = self.path_of(&key);
            self.note(&path, &value);
            self.reading.fault(&path, self.unknown(&key));
        }
    }

    fn unknown(&self, key: &str) -> String {
        let nearest = self.known.iter().map(|known| (strsim::jaro_winkler(key, known), *known));
        match nearest.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((alike, known)) if alike >= ALIKE => {
                self.reading.misspelt.borrow_mut().insert(self.path_of(known));
                format!("is no key; did you mean `{known}`?")
            }
            _ => {
                let mut known = self.known.clone();
                known.sort_unstable();
                format!("is no key; there are: {}", known.join(", "))
            }
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        let path = self.path_of(key);
        self.reading.known.borrow_mut().insert(path.clone());
        let value = self.values.remove(key)?;
        self.note(&path, &value);
        Some(value)
    }

    fn note(&self, path: &str, value: &Value) {
        let shown = (!SECRET_KEYS.contains(&path)).then(|| show(value)).flatten();
        self.reading.read.borrow_mut().insert(path.to_owned(), (self.reading.source.origin_of(value), shown));
    }
}

/// A value as it stands in the file. Tables are not shown.
fn show(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Char(_, letter) => format!("{:?}", letter.to_string()),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => show_number(*number),
        Value::Array(_, items) => format!("[{}]", items.iter().map(show).collect::<Option<Vec<_>>>()?.join(", ")),
        Value::Dict(..) | Value::Empty(..) => return None,
    };
    Some(match text.char_indices().nth(SHOWN_LENGTH) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    })
}

fn show_number(number: Num) -> String {
    let whole = number.to_u128().map(|n| n.to_string()).or_else(|| number.to_i128().map(|n| n.to_string()));
    whole.or_else(|| number.to_f64().map(|n| n.to_string())).unwrap_or_default()
}
