//! Rules for Rust code: what is used where, how long things are, what is left undone.

use crate::source::Source;
use crate::tree::Tree;

/// Lines of a function, from its `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Lines of a file before its tests.
const FILE_LINES: usize = 500;

/// A place (a file, or a folder with its `/` at the end) where a rule does not hold, and why.
type Exception = (&'static str, &'static str);

const UNSAFE_PLACES: &[Exception] = &[
    ("src/hypervisor/vz/", "Virtualization.framework is Objective-C"),
    ("src/hypervisor/process.rs", "what a child does between fork and exec"),
    ("agent/src/fd.rs", "a descriptor is registered with the kernel's poll"),
    ("agent/src/init/grow.rs", "two ioctls on a disk and its file system that no crate wraps"),
    ("agent/src/prepare.rs", "two ioctls on /dev/random that no crate wraps"),
];
const PROCESS_PLACES: &[Exception] = &[
    ("src/hypervisor/", "a VM is a process"),
    ("src/program.rs", "runs a tool of the system, with a deadline and bounded output"),
    ("src/store/embedded/", "the private Postgres"),
    ("src/secrets/source/command.rs", "another system's program gives the master key"),
    ("src/images/build", "an image is made with the system's own tools"),
    ("src/cli/demo", "the demo starts a daemon of its own, to look at it from outside"),
    ("agent/src/", "the agent runs what the host asks for"),
    ("fake-github/src/", "the demo's runner runs the steps of its job"),
    ("benches/", "measures a daemon from outside, beside pgbench"),
];
const TASK_PLACES: &[Exception] = &[
    ("src/app/", "builds the roles and owns every task"),
    ("src/web/servers.rs", "hands the task to its caller"),
    ("src/hypervisor/qemu/", "the end of a VM's process is collected, whoever waits for it"),
    ("src/hypervisor/vz/", "likewise; and a VM's own process has tasks and threads of its own"),
    ("src/hypervisor/fake/", "a pretended VM lives as long as a real process would"),
    ("src/cli/", "a command is a process of its own"),
    ("agent/", "a program of its own"),
    ("fake-github/", "a program of its own"),
];

/// SQL is in `src/store` and in tests.
pub fn sql_in_the_store(tree: &Tree) -> Vec<String> {
    let tokens = [
        "query!",
        "query_as!",
        "query_scalar!",
        "query_file!",
        "sqlx::query",
        "query_as",
        "query_scalar",
        "raw_sql",
        "migrate!",
        "QueryBuilder",
    ];
    let excepted = |file: &&Source| file.path.starts_with("src/") && !file.path.starts_with("src/store/");
    found(tree.rust().filter(excepted), &tokens, "is SQL: it belongs in a function of src/store")
}

/// `domain` decides and does nothing else: no clock, no I/O, no async. Ids are random: that is chance enough.
pub fn the_domain_is_pure(tree: &Tree) -> Vec<String> {
    let tokens = [
        "async",
        "tokio",
        "reqwest",
        "octocrab",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "std::io",
        "std::thread",
        "Utc::now",
        "Local::now",
        "SystemTime",
        "Instant",
        "tracing",
    ];
    let domain = tree.rust().filter(|file| file.path.starts_with("src/domain/"));
    found(domain, &tokens, "has no place in src/domain: time, chance and what was read come in as arguments")
}

/// `unsafe` only where a kernel or a framework asks for it.
pub fn unsafe_in_its_places(tree: &Tree) -> Vec<String> {
    found(
        outside(tree, UNSAFE_PLACES),
        &["unsafe"],
        "is used where it need not be: find a safe call, or argue for the file in tests/tidy/rust.rs",
    )
}

/// Processes are started by the hypervisors, the private Postgres and few others.
pub fn processes_in_their_places(tree: &Tree) -> Vec<String> {
    let tokens = ["process::Command", "posix_spawn", "nix::unistd::fork", "libc::fork"];
    found(outside(tree, PROCESS_PLACES), &tokens, "starts a process: only the places listed in tests/tidy/rust.rs may")
}

/// A task that nobody owns outlives its purpose, and its panic is lost.
pub fn tasks_have_owners(tree: &Tree) -> Vec<String> {
    let tokens = ["tokio::spawn", "task::spawn", "thread::spawn"];
    found(
        outside(tree, TASK_PLACES),
        &tokens,
        "makes a task that nobody owns: spawn it on the tracker that src/app hands down",
    )
}

/// Every file opens with `//!`.
pub fn files_say_what_they_own(tree: &Tree) -> Vec<String> {
    let says = |file: &&Source| {
        let first = file.text.lines().find(|line| !line.starts_with("#!["));
        !first.is_some_and(|line| line.starts_with("//! "))
    };
    tree.rust()
        .filter(says)
        .map(|file| format!("{}: does not open with `//!`: say what the file owns, and what it does not", file.path))
        .collect()
}

/// No function is longer than a screen.
pub fn functions_are_short(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.rust() {
        for (name, line, length) in functions(file.code()) {
            if length > FUNCTION_LINES {
                faults.push(format!(
                    "{}:{line}: `{name}` has {length} lines, more than {FUNCTION_LINES}: give its steps names",
                    file.path
                ));
            }
        }
    }
    faults
}

/// No file is longer than one sitting.
pub fn files_are_short(tree: &Tree) -> Vec<String> {
    tree.rust()
        .filter_map(|file| {
            let lines = file.lines_before_tests();
            (lines > FILE_LINES)
                .then(|| format!("{}: has {lines} lines before its tests, more than {FILE_LINES}: part it", file.path))
        })
        .collect()
}

/// No shipped code stops where an answer was not thought of.
pub fn nothing_half_done(tree: &Tree) -> Vec<String> {
    let tokens = [".unwrap()", ".unwrap_err()", "todo!", "unimplemented!", "dbg!"];
    found(tree.rust(), &tokens, "is not for shipped code: return an error, or `expect(\"the invariant\")`")
}

/// Whoever switches a lint off says why.
pub fn exceptions_have_reasons(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.rust() {
        for mark in ["[allow(", "[expect("] {
            for (at, _) in file.code().match_indices(mark) {
                let end = file.code()[at..].find(']').map_or(file.code().len(), |end| at + end);
                if !file.code()[at..end].contains("reason") {
                    let line = file.code()[..at].matches('\n').count() + 1;
                    faults.push(format!("{}:{line}: a lint is switched off without `reason = \"…\"`", file.path));
                }
            }
        }
    }
    faults
}

/// Tests wait for conditions with a deadline (`tests/*/support`), and all of them run.
pub fn tests_wait_for_conditions(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.rust().filter(|file| !file.path.starts_with("tests/tidy")) {
        for (index, line) in file.code().lines().enumerate() {
            if line.contains("#[ignore") {
                faults.push(format!("{}:{}: skips a test: mend it, or delete it", file.path, index + 1));
            }
            if file.path.starts_with("tests/") && !file.path.contains("/support/") && line.contains("sleep(") {
                faults.push(format!(
                    "{}:{}: sleeps: wait for the condition with a deadline (a helper in support/), or step the loop by `pass()`",
                    file.path,
                    index + 1
                ));
            }
        }
    }
    faults
}

fn outside<'a>(tree: &'a Tree, places: &'a [Exception]) -> impl Iterator<Item = &'a Source> {
    tree.rust().filter(move |file| !places.iter().any(|(place, _reason)| file.path.starts_with(place)))
}

fn found<'a>(files: impl Iterator<Item = &'a Source>, tokens: &[&str], fault: &str) -> Vec<String> {
    files
        .flat_map(|file| {
            file.uses(tokens)
                .map(|(line, token)| format!("{}:{line}: `{token}` {fault}", file.path))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Every function that has a body: its name, its line, its number of lines.
fn functions(code: &str) -> Vec<(&str, usize, usize)> {
    let mut functions = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let is_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let signature = &code[at + 3..];
        let end = signature.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
        if is_word || end == 0 {
            continue;
        }
        if let Some(length) = body_end(signature) {
            let line = code[..at].matches('\n').count() + 1;
            functions.push((&signature[..end], line, signature[..length].matches('\n').count() + 1));
        }
    }
    functions
}

/// Where the body that follows a signature ends; `None` for a function without one.
fn body_end(signature: &str) -> Option<usize> {
    let (mut parentheses, mut braces) = (0_i32, 0_i32);
    for (at, c) in signature.char_indices() {
        match c {
            '(' | '[' => parentheses += 1,
            ')' | ']' => parentheses -= 1,
            ';' if parentheses == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}
