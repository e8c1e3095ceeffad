//! Masks secrets in output, as GitHub's runner does: each value, and each line of a value, becomes `***`. No I/O.

/// What a secret is shown as.
const MASK: &str = "***";

/// The values that must not show.
pub struct Mask {
    values: Vec<String>,
}

impl Mask {
    /// Masks these secrets, longest first, so that a secret inside another does not leave the rest of it.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a String>) -> Self {
        let mut values: Vec<String> = secrets
            .into_iter()
            .flat_map(|value| std::iter::once(value.trim()).chain(value.lines().map(str::trim)))
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.dedup();
        Self { values }
    }

    /// The text without secrets.
    pub fn apply(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), MASK))
    }
}

#[cfg(test)]
mod tests {
    use super::Mask;

    #[test]
    fn a_secret_is_masked_also_when_another_is_part_of_it() {
        let secrets = ["key".to_owned(), "monkey-business".to_owned()];
        assert_eq!(Mask::new(&secrets).apply("a monkey-business key"), "a *** ***");
    }

    #[test]
    fn each_line_of_a_secret_is_masked() {
        let secrets = ["first\nsecond\n".to_owned()];
        assert_eq!(Mask::new(&secrets).apply("then second"), "then ***");
    }

    #[test]
    fn an_empty_secret_masks_nothing() {
        assert_eq!(Mask::new(&[String::new()]).apply("text"), "text");
    }
}
