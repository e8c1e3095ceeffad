//! One file, and for Rust what of it is code: neither comment nor text, and outside its tests.

use std::path::Path;

/// A file of the tree.
pub struct Source {
    /// From the repository's root, with `/`.
    pub path: String,
    /// As it is written.
    pub text: String,
    code: String,
}

impl Source {
    /// A file with this text.
    pub fn new(path: &str, text: &str) -> Self {
        let mut source = Self { path: path.to_owned(), text: text.to_owned(), code: String::new() };
        if source.is_a("rs") {
            source.code = without_texts(text);
        }
        source
    }

    /// Whether its name ends with this extension.
    pub fn is_a(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|one| one == extension)
    }

    /// The text with comments, strings and characters blanked; lines stay where they are.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Like [`Self::code`], up to the file's own tests; nothing of a file that is all tests.
    pub fn shipped_code(&self) -> &str {
        if self.is_test() { "" } else { self.code.get(..self.tests_at()).unwrap_or(&self.code) }
    }

    /// Number of lines before the file's own tests.
    pub fn lines_before_tests(&self) -> usize {
        self.code[..self.tests_at()].lines().count()
    }

    /// Whether the whole file is tests.
    pub fn is_test(&self) -> bool {
        let path = &self.path;
        path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
    }

    /// The lines of the shipped code that hold one of `tokens` as a whole word, with the token.
    pub fn uses<'a>(&'a self, tokens: &'a [&'a str]) -> impl Iterator<Item = (usize, &'a str)> {
        self.shipped_code().lines().enumerate().filter_map(move |(index, line)| {
            tokens.iter().find(|token| holds_token(line, token)).map(|token| (index + 1, *token))
        })
    }

    fn tests_at(&self) -> usize {
        let marks =
            ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub mod tests {", "#[cfg(test)]\npub(crate) mod tests {"];
        marks.iter().filter_map(|mark| self.code.find(mark)).min().unwrap_or(self.code.len())
    }
}

/// Whether `line` holds `token`, not as a part of a longer word.
pub fn holds_token(line: &str, token: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(token).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + token.len()..].chars().next();
        let starts = token.starts_with(is_word) && before.is_some_and(is_word);
        let goes_on = token.ends_with(is_word) && after.is_some_and(is_word);
        !starts && !goes_on
    })
}

/// Blanks comments, strings and characters of Rust code.
fn without_texts(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = text_length(rest, code.chars().next_back());
        let (piece, after) = rest.split_at(if length == 0 { c.len_utf8() } else { length });
        if length == 0 {
            code.push(c);
        } else {
            code.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = after;
    }
    code
}

/// The length of the comment or literal that `rest` begins with; 0 if it begins with code.
fn text_length(rest: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        rest.find('\n').unwrap_or(rest.len())
    } else if rest.starts_with("/*") {
        block_comment_length(rest)
    } else if rest.starts_with('"') {
        quoted_length(rest, '"')
    } else if !in_word && (rest.starts_with("r\"") || rest.starts_with("r#") || rest.starts_with("br")) {
        raw_length(rest)
    } else if rest.starts_with('\'') {
        character_length(rest)
    } else {
        0
    }
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn quoted_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// A raw string `r#"…"#`; 0 when it is a raw identifier or an ordinary word.
fn raw_length(rest: &str) -> usize {
    let opening = rest.trim_start_matches('b').trim_start_matches('r');
    let hashes = opening.len() - opening.trim_start_matches('#').len();
    if !opening[hashes..].starts_with('"') {
        return 0;
    }
    let start = rest.len() - opening.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
}

/// A character `'x'`; 0 when it is a lifetime.
fn character_length(rest: &str) -> usize {
    let mut chars = rest.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => quoted_length(rest, '\''),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}
