//! Connections of commands to a daemon over TLS, with the failures of commands.

use std::path::Path;

use http::{HeaderValue, Uri};

use super::{Exit, Failure};
use crate::https::{self, Unusable};

pub(super) use crate::https::{Connector, Trust, trouble};

/// A connector for this endpoint. With http:// nothing is verified.
pub(super) fn connector(endpoint: &Uri, trust: &Trust) -> Result<Connector, Failure> {
    https::connector(endpoint, trust).map_err(failure)
}

/// The header that shows the first secret of a file.
pub(super) fn bearer(path: &Path) -> Result<HeaderValue, Failure> {
    https::bearer(path).map_err(failure)
}

fn failure(unusable: Unusable) -> Failure {
    match &unusable {
        Unusable::Certificates { .. } => {
            let remedy = "name the file of the daemon's certificate authority with --ca";
            Failure::saying(Exit::Failed, format!("{unusable}; {remedy}"))
        }
        Unusable::Token { .. } => Failure::new(Exit::Failed, unusable),
        Unusable::Tls(_) => Failure::new(Exit::Internal, unusable),
    }
}
