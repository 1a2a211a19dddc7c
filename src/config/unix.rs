//! Reads the settings of socket files.

use std::path::PathBuf;

use super::UnixSocket;
use super::read::Reader;

/// `sun_path` has 108 bytes. The last one is zero (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// The socket of the key `key`: `listen.unix` or `listen.admin_unix`. The inner `None` means that there is none.
pub fn read(r: &mut Reader, key: &'static str) -> Option<Option<UnixSocket>> {
    let path = r.optional(key);
    let mode = mode(r, &format!("{key}_mode"));
    let group = r.optional(&format!("{key}_group"));
    let Some(path) = path? else { return Some(None) };
    if path.len() > PATH_BYTES_MAX {
        return r.refuse(key, "longer than 107 bytes, the longest path of a socket", Some("choose a shorter path"));
    }
    Some(Some(UnixSocket { key, path: PathBuf::from(path), mode: mode?, group: group? }))
}

fn mode(r: &mut Reader, key: &str) -> Option<u32> {
    let text = r.text(key)?;
    let digits = text.strip_prefix("0o").unwrap_or(&text);
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777 && digits.len() >= 3);
    match mode {
        // Only users with write permission can connect (unix(7)).
        Some(mode) if mode & 0o600 == 0o600 => Some(mode),
        Some(_) => r.refuse(key, "does not let its owner connect", Some("write it like \"0660\"")),
        None => r.refuse(key, "not the mode of a file", Some("write it in octal, like \"0660\" or \"0600\"")),
    }
}
