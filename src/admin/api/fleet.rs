//! The daemons that share an outbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::outbox::operator;

/// The daemons that share an outbox, of `GET /v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Fleet {
    /// The living, by name.
    pub members: Vec<FleetMember>,
    /// Functions that no daemon owned when this one last looked.
    pub unowned: u64,
}

/// A living daemon of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetMember {
    /// `outbox.postgres.member`.
    pub name: String,
    pub version: String,
    /// When it started, by the clock of the database.
    #[schema(format = DateTime)]
    pub since: String,
    /// It is the daemon that answers.
    pub this: bool,
    /// How long its beat has stood still, as seen by the daemon that answers. It beats every 2 s.
    pub beat_age_seconds: f64,
    /// It stops, and gives its functions to others.
    pub draining: bool,
    /// It told its counts in time. If not, its events count in the totals only, as it told them last.
    pub answers: bool,
    /// The functions that it owns: it delivers their events.
    pub functions: u64,
    /// Its events of these functions.
    pub events: u64,
    pub bytes: u64,
}

impl From<&operator::Fleet> for Fleet {
    fn from(fleet: &operator::Fleet) -> Self {
        let member = |member: &operator::FleetMember| FleetMember {
            name: member.name.clone(),
            version: member.version.clone(),
            since: member.since.rfc3339(),
            this: member.is_this,
            beat_age_seconds: member.beat_age.as_secs_f64(),
            draining: member.is_draining,
            answers: member.answers,
            functions: member.functions,
            events: member.events,
            bytes: member.bytes,
        };
        Self { members: fleet.members.iter().map(member).collect(), unowned: fleet.unowned }
    }
}
