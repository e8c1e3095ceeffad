//! The system keychain of macOS: unlocked at boot, readable by root and by who is on the item's list.

use super::SourceError;
use security_framework::os::macos::keychain::SecKeychain;
use security_framework::os::macos::passwords::find_generic_password;
use zeroize::Zeroizing;

/// The one keychain that a daemon without a login session has.
const SYSTEM: &str = "/Library/Keychains/System.keychain";
/// The item's account.
const ACCOUNT: &str = "master-key";

/// The item's password.
pub(super) fn item(service: &str) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let refused = |error: security_framework::base::Error| SourceError::Keychain(error.code());
    let keychain = SecKeychain::open(SYSTEM).map_err(refused)?;
    let (password, _) = find_generic_password(Some(&[keychain]), service, ACCOUNT).map_err(refused)?;
    Ok(Zeroizing::new(password.as_ref().to_vec()))
}
