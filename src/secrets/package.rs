//! What is sealed to a host: a runner's name at GitHub and its JIT config, on two lines.

use secrecy::{ExposeSecret, SecretString};

/// Puts the two together. GitHub's names have no line break.
#[must_use]
pub fn join(name: &str, jit_config: &SecretString) -> SecretString {
    format!("{name}\n{}", jit_config.expose_secret()).into()
}

/// Takes the two apart; `None` when it is no such package.
#[must_use]
pub fn split(package: &SecretString) -> Option<(String, SecretString)> {
    let (name, jit_config) = package.expose_secret().split_once('\n')?;
    Some((name.to_owned(), jit_config.to_owned().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_joined_is_split() {
        let (name, jit) = split(&join("flyci-1", &"eyJ=".to_owned().into())).expect("it is a package");
        assert_eq!((name.as_str(), jit.expose_secret()), ("flyci-1", "eyJ="));
        assert!(split(&"eyJ=".to_owned().into()).is_none());
    }
}
