//! Our Objective-C delegates against the protocols of the framework's bindings, on any system.
//!
//! `define_class!` takes any selector and any arguments: a misspelt one is found at run time on a Mac at best, and
//! else is a method that nobody calls. So what our classes declare is compared here, as text, with what the
//! bindings were generated as from Apple's headers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where our classes are.
const FRAMEWORK: &str = "src/hypervisor/vz/framework";

/// A method's arguments, then its result, as types without spaces.
type Signature = Vec<String>;

/// The methods of a protocol, by selector.
type Methods = BTreeMap<String, Signature>;

#[test]
fn our_delegates_have_the_selectors_and_arguments_of_the_protocols() {
    let protocols = protocols();
    let mut compared = 0;
    for source in sources() {
        assert_eq!(faults(&source, &protocols), Vec::<String>::new());
        compared += source.matches(METHOD).count();
    }
    assert!(compared >= 3, "only {compared} methods found in {FRAMEWORK}: does the test still read them?");
}

#[test]
fn each_kind_of_mistake_is_found() {
    let protocols = protocols();
    let delegate = sources().into_iter().find(|source| source.contains("VZVirtualMachineDelegate for")).expect("ours");
    let mistakes = [
        ("didStopWithError:)", "didStopWithEror:)", "has no selector"),
        ("guestDidStopVirtualMachine:)", "guestDidStopVirtualMachine)", "has no selector"),
        ("device: &VZNetworkDevice, ", "", "arguments"),
        ("device: &VZNetworkDevice", "device: &VZNetworkDeviceConfiguration", "arguments"),
        ("_machine: &VZVirtualMachine)", "_machine: &VZVirtualMachine, _more: &NSError)", "arguments"),
        ("_machine: &VZVirtualMachine) {", "_machine: &VZVirtualMachine) -> bool {", "arguments"),
        ("VZVirtualMachineDelegate for", "VZMachineDelegate for", "no protocol"),
        ("unsafe impl VZVirtualMachineDelegate for Delegate", "impl Delegate", "of no protocol"),
    ];
    for (right, wrong, complaint) in mistakes {
        assert!(delegate.contains(right), "{right:?} is not there to be mistaken");
        let found = faults(&delegate.replacen(right, wrong, 1), &protocols);
        assert!(found.iter().any(|fault| fault.contains(complaint)), "{wrong}: {found:?}");
    }
}

/// What declares the selector of the method that follows.
const METHOD: &str = "#[unsafe(method(";

/// What is wrong with the classes of a file.
fn faults(source: &str, protocols: &BTreeMap<String, Methods>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut of_protocols = 0;
    for (protocol, body) in blocks(source, "unsafe impl ", " for ") {
        let ours = methods(body);
        of_protocols += ours.len();
        match protocols.get(protocol) {
            Some(theirs) => faults.extend(differences(protocol, &ours, theirs)),
            None if ours.is_empty() => {}
            None => faults.push(format!("the bindings have no protocol {protocol}")),
        }
    }
    if source.matches(METHOD).count() != of_protocols {
        faults.push("a method is of no protocol: nothing compares it".to_owned());
    }
    faults
}

fn differences(protocol: &str, ours: &Methods, theirs: &Methods) -> Vec<String> {
    let difference = |(selector, our): (&String, &Signature)| match theirs.get(selector) {
        None => Some(format!("{protocol} has no selector {selector}")),
        Some(their) if their != our => Some(format!("{selector}: arguments are {our:?}, must be {their:?}")),
        Some(_) => None,
    };
    ours.iter().filter_map(difference).collect()
}

/// The bodies of the blocks that begin with a word, and the name between it and the next one.
fn blocks<'a>(source: &'a str, before: &str, after: &str) -> Vec<(&'a str, &'a str)> {
    let block = |start: usize| {
        let rest = &source[start..];
        let head = &rest[..rest.find('{')?];
        let name = &head[..head.find(after)?];
        let word = name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
        word.then(|| (name, balanced(&rest[head.len()..], '{', '}')))
    };
    source.match_indices(before).filter_map(|(at, _)| block(at + before.len())).collect()
}

/// What is between the bracket that the text begins with and the one that closes it.
fn balanced(text: &str, open: char, close: char) -> &str {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        depth += i32::from(letter == open) - i32::from(letter == close);
        if depth == 0 {
            return &text[open.len_utf8()..at];
        }
    }
    panic!("no {close} for the {open} of {}", text.lines().next().unwrap_or_default());
}

/// The methods that are declared in a block.
fn methods(block: &str) -> Methods {
    let method = |start: usize| {
        let rest = &block[start..];
        let selector = balanced(&rest[METHOD.len() - 1..], '(', ')').to_owned();
        let function = &rest[rest.find("fn ").expect("a method follows its selector")..];
        let paren = function.find('(').expect("a method has arguments");
        let arguments = balanced(&function[paren..], '(', ')');
        let result = &function[paren + arguments.len() + 2..];
        let result = &result[..result.find([';', '{']).expect("a method ends")];
        (selector, signature(arguments, result))
    };
    block.match_indices(METHOD).map(|(at, _)| method(at)).collect()
}

fn signature(arguments: &str, result: &str) -> Signature {
    let types = arguments.split(',').map(str::trim).filter(|argument| !argument.is_empty() && *argument != "&self");
    let types = types.map(|argument| argument.split_once(':').map_or(argument, |(_name, of_type)| of_type));
    types.chain([result]).map(|of_type| of_type.split_whitespace().collect()).collect()
}

fn sources() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FRAMEWORK);
    read_all(&folder, |_| true)
}

/// The delegates' protocols, of the version in Cargo.lock.
fn protocols() -> BTreeMap<String, Methods> {
    let sources = read_all(&bindings(), |name| name.ends_with("Delegate.rs"));
    let protocols: BTreeMap<_, _> = sources
        .iter()
        .flat_map(|source| blocks(source, "pub unsafe trait ", ":"))
        .map(|(name, body)| (name.to_owned(), methods(body)))
        .collect();
    assert!(protocols.contains_key("VZVirtualMachineDelegate"), "the bindings look otherwise than this test knows");
    protocols
}

fn read_all(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    let wanted = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted);
    paths.filter(wanted).map(|path| std::fs::read_to_string(path).expect("readable")).collect()
}

/// The folder of the bindings: given by `script/test`, whose tests cannot look into cargo's home.
fn bindings() -> PathBuf {
    if let Some(folder) = std::env::var_os("FLYCI_BINDINGS") {
        return folder.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("script/mac/bindings");
    let output = Command::new(script).output().expect("script/mac/bindings runs");
    assert!(output.status.success(), "script/mac/bindings: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a path").trim_end().into()
}
