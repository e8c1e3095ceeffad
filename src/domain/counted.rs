//! Counts as people read them. The same in what the daemon tells and what commands print.

/// A count with its thousands apart: `1,812`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 host`, `2 hosts`. A number below 0 is none.
#[must_use]
pub fn plural(number: impl TryInto<u64>, noun: &str) -> String {
    let number = number.try_into().unwrap_or_default();
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `1 host is`, `2 hosts are`.
#[must_use]
pub fn are(number: impl TryInto<u64>, noun: &str) -> String {
    let text = plural(number, noun);
    let verb = if text.starts_with("1 ") { "is" } else { "are" };
    format!("{text} {verb}")
}

/// `once`, `3 times`.
#[must_use]
pub fn times(number: impl TryInto<u64>) -> String {
    match number.try_into().unwrap_or_default() {
        1 => "once".to_owned(),
        number => format!("{} times", count(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_nothing_else_is() {
        assert_eq!([0, 999, 1_812, 1_234_567].map(count), ["0", "999", "1,812", "1,234,567"]);
        assert_eq!([0_u32, 1, 2].map(|number| plural(number, "host")), ["0 hosts", "1 host", "2 hosts"]);
        assert_eq!([1_i64, 11, -1].map(|number| are(number, "job")), ["1 job is", "11 jobs are", "0 jobs are"]);
        assert_eq!([1_usize, 1_000].map(times), ["once", "1,000 times"]);
    }
}
