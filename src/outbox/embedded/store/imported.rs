//! A file that says that the events of a store were imported into another one. A daemon that used the store nevertheless
//! would deliver them a second time.
//!
//! Holds: the file is durable before the first event is imported. So also an import that was cut off keeps daemons out.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use super::sync_dir;

const NAME: &str = "imported";

/// What the rest of the file says, for whoever finds it.
const EXPLANATION: &str = "The events of this directory were imported into the outbox above. Daemons refuse the directory while this file exists, because \
they would deliver the events a second time. Nothing else in the directory was changed.\n";

/// Where the events of a store were imported to. `None` if they were not.
pub fn imported(state_dir: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(state_dir.join(NAME)) {
        Ok(text) => Ok(Some(text.lines().next().unwrap_or_default().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps daemons out from now on. The caller holds the store's lock.
pub fn note_import(state_dir: &Path, into: &str) -> io::Result<()> {
    let mut file = super::place::options().write(true).create(true).truncate(true).open(state_dir.join(NAME))?;
    file.write_all(format!("{into}\n\n{EXPLANATION}").as_bytes())?;
    file.sync_all()?;
    sync_dir(state_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_is_noted_with_where_it_went() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(imported(dir.path()).unwrap(), None);
        note_import(dir.path(), "db/orders").unwrap();
        note_import(dir.path(), "db/orders").unwrap();
        assert_eq!(imported(dir.path()).unwrap().as_deref(), Some("db/orders"));
    }
}
