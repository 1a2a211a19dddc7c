//! `GET /v1/dead-letters/groups`: dead letters by function, reason and code, the view for triage.
//!
//! The groups are counted when somebody asks, from what the store lists. Nothing is kept for them while nobody does.
//! Limits: [`LOOKED_AT_MAX`] dead letters for one answer, [`GROUPS_MAX`] groups. With more dead letters each function gets
//! its share, and the answer says that it is not complete.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, State};

use super::api::{self, FunctionsQuery, GroupPage, GroupView};
use super::lookup::{matching, pattern};
use super::{Admin, Problem};
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName, Pattern};
use crate::outbox::operator::{ListWant, Listed, Operator, PAGE_MAX};
use crate::outbox::{BuryReason, LaneCensus, Place};

/// The most dead letters that are looked at for one answer.
const LOOKED_AT_MAX: usize = 20_000;

/// The least that a function's share is.
const SHARE_MIN: usize = PAGE_MAX;

/// The most groups of an answer.
const GROUPS_MAX: usize = 500;

/// What the dead letters of a group have in common.
type Kind = (FunctionName, Option<BuryReason>, String);

#[derive(Debug, Default)]
struct Group {
    status: u16,
    events: u64,
    unshippable: u64,
    oldest: Option<UnixMillis>,
    newest: Option<UnixMillis>,
    example: Option<EventId>,
}

impl Group {
    fn add(&mut self, letter: &Listed) {
        let burial = letter.history.burial.as_ref();
        self.events += 1;
        self.unshippable += u64::from(burial.is_some_and(|burial| burial.unshippable.is_some()));
        self.status = letter.history.last.as_ref().map_or(self.status, |last| last.status);
        let at = burial.map(|burial| burial.at);
        self.oldest = [self.oldest, at].into_iter().flatten().min();
        if at >= self.newest {
            (self.newest, self.example) = (at, Some(letter.id));
        }
    }
}

/// Count the dead letters in the store by function, reason and code
#[utoipa::path(
    get,
    path = "/v1/dead-letters/groups",
    operation_id = "list_dead_letter_groups",
    params(FunctionsQuery),
    responses(
        (status = 200, description = "The groups, the largest first", body = GroupPage),
        (status = 404, description = "No known function fits", body = api::Message),
    )
)]
pub(super) async fn list<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<FunctionsQuery>,
) -> Result<Json<GroupPage>, Problem> {
    let store = admin.store()?;
    let lanes = matching(&store, pattern(query.function)?.as_ref()).await?;
    let buried: Vec<(FunctionName, u64)> = lanes.into_iter().filter_map(buried).collect();
    let share = (LOOKED_AT_MAX / buried.len().max(1)).max(SHARE_MIN);
    let mut left = LOOKED_AT_MAX;
    let mut groups: BTreeMap<Kind, Group> = BTreeMap::new();
    let (mut counted, total) = (0_u64, buried.iter().map(|(_, letters)| letters).sum());
    for (function, _) in buried {
        let Ok(exactly) = function.as_str().parse::<Pattern>() else { continue };
        let (mut after, mut looked_at) = (None, 0);
        while looked_at < share && left > 0 {
            let max = PAGE_MAX.min(share - looked_at).min(left);
            let (function, place) = (Some(exactly.clone()), Some(Place::Buried));
            let page = store.list(ListWant { function, place, after, max, ..ListWant::default() }).await?;
            for letter in &page.events {
                groups.entry(kind_of(letter)).or_default().add(letter);
            }
            (looked_at, left) = (looked_at + page.events.len(), left - page.events.len());
            counted += page.events.len() as u64;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.events));
    let complete = counted >= total && groups.len() <= GROUPS_MAX;
    groups.truncate(GROUPS_MAX);
    Ok(Json(GroupPage { groups: groups.into_iter().map(shown).collect(), counted, buried: total, complete }))
}

fn buried((function, lane): (FunctionName, LaneCensus)) -> Option<(FunctionName, u64)> {
    let letters = lane.by_place.get(&Place::Buried).map_or(0, |count| count.events);
    (letters > 0).then_some((function, letters))
}

fn kind_of(letter: &Listed) -> Kind {
    let history = &letter.history;
    let code = history.last.as_ref().map(|last| last.code.clone()).unwrap_or_default();
    (letter.function.clone(), history.burial.as_ref().map(|burial| burial.reason), code)
}

fn shown(((function, reason, code), group): (Kind, Group)) -> GroupView {
    GroupView {
        function: function.as_str().to_owned(),
        reason,
        code,
        status: group.status,
        events: group.events,
        unshippable: group.unshippable,
        oldest_buried_at: group.oldest.map(UnixMillis::rfc3339),
        newest_buried_at: group.newest.map(UnixMillis::rfc3339),
        example: group.example,
    }
}
