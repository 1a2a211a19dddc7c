//! Users of this machine whom the kernel cannot tell us apart, because this process is in a user namespace of its own.

use std::path::Path;

use crate::config::Config;
use crate::readable;

/// The most bytes of a map: the kernel allows 340 lines.
const BYTES_MAX: u64 = 64 << 10;

/// Logs which users of `[clients]` and `[operators]` can never be known on a Unix socket.
pub(super) fn warn(config: &Config) {
    let Ok(map) = readable::read_text(Path::new("/proc/self/uid_map"), BYTES_MAX) else { return };
    let clients = config.clients.clients.iter().map(|(client, ways)| ("clients", &client.name, &ways.uids));
    let operators = config.operators.operators.iter().map(|(operator, ways)| ("operators", &operator.name, &ways.uids));
    for (family, name, uids) in clients.chain(operators) {
        for uid in uids.iter().filter(|uid| !is_mapped(&map, **uid)) {
            tracing::error!(
                key = format!("{family}.{name}.uid"),
                uid,
                "this user cannot be known: sendoff runs in a user namespace without it. Set PrivateUsers=no in the systemd \
                 unit, or leave it to the permissions of the socket file"
            );
        }
    }
}

/// Whether a user has a number in this namespace: lines of its first number inside, outside, and how many
/// (user_namespaces(7)).
fn is_mapped(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (inside..inside.saturating_add(count)).contains(&u64::from(uid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_tells_which_users_have_a_number() {
        let whole = "         0          0 4294967295\n";
        let private = "         0          0          1\n     61184      61184          1\n";
        assert!(is_mapped(whole, 1001));
        assert!(is_mapped(private, 0) && is_mapped(private, 61_184) && !is_mapped(private, 1001));
        assert!(!is_mapped("nonsense\n", 0));
    }
}
