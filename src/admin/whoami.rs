//! `GET /v1/whoami`: who asks, and what they may do.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Extension, Json, Router};

use super::access::Access;
use super::api::Whoami;
use super::operators::{ANYONE, Caller, Operator, Role};

/// What every caller is told.
#[derive(Clone)]
pub struct About {
    pub access: Access,
    /// When the daemon started.
    pub started_at: String,
    /// `listen.admin_prefix`.
    pub prefix: String,
}

pub fn router(about: About) -> Router {
    Router::new().route("/v1/whoami", get(show)).with_state(Arc::new(about))
}

/// The name of the operator who asks.
pub(super) fn name_of(caller: Option<Extension<Caller>>) -> String {
    caller.map_or_else(|| ANYONE.to_owned(), |Extension(caller)| caller.operator.name.clone())
}

/// Show who asks, and what they may do
#[utoipa::path(
    get,
    path = "/v1/whoami",
    operation_id = "show_whoami",
    responses((status = 200, description = "The caller and the daemon", body = Whoami))
)]
pub(super) async fn show(State(about): State<Arc<About>>, Extension(caller): Extension<Caller>) -> Json<Whoami> {
    Json(of(&about, &caller))
}

fn of(about: &About, caller: &Caller) -> Whoami {
    let About { access, started_at, prefix } = about;
    let Caller { operator, proof } = caller;
    Whoami {
        name: operator.name.clone(),
        proof: proof.as_str().to_owned(),
        role: operator.role.as_str().to_owned(),
        rights: rights(operator, access.read_only),
        read_only: access.read_only,
        required: access.operators.borrow().is_required(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        started_at: started_at.clone(),
        prefix: prefix.clone(),
    }
}

fn rights(operator: &Operator, read_only: bool) -> Vec<String> {
    let operate = match operator.role {
        Role::Read => false,
        Role::Operate => !read_only,
    };
    let all = [("read", true), ("operate", operate), ("payloads", operator.payloads)];
    all.into_iter().filter(|(_, may)| *may).map(|(right, _)| right.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_now() {
        let operator = |role, payloads| Operator { name: "x".to_owned(), role, payloads };
        for (operator, read_only, expected) in [
            (operator(Role::Read, false), false, &["read"][..]),
            (operator(Role::Read, true), false, &["read", "payloads"]),
            (operator(Role::Operate, false), false, &["read", "operate"]),
            (operator(Role::Operate, true), true, &["read", "payloads"]),
        ] {
            assert_eq!(rights(&operator, read_only), expected, "{operator:?}");
        }
    }
}
