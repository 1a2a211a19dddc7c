//! What every outbox must do, as sentences over the traits alone.
//!
//! An engine inherits all of them by one line, `exercise!(name, a constructor)`, beside its own code: see
//! `embedded/conformance.rs`. Its constructor is a [`Subject`]. [`model`] compares any sequence of calls with a plain map.

use std::collections::BTreeSet;
use std::time::Duration;

use super::operator::{Keys, ListFilter, ListWant, Operator, Purge, Touched};
use super::*;
use crate::clock::Clock;
use crate::event::testing::event;
use crate::event::{Carried, IdempotencyKey, KeySource};

pub mod dead;

pub mod handoff;

pub mod keys_and_windows;

pub mod leases;

pub mod model;

pub mod planted;

pub mod states;

pub const START: UnixMillis = UnixMillis(1_790_000_000_000);

/// Makes a test of every sentence, for the engine that `$subject` opens. It is `None` where that cannot be tested.
macro_rules! exercise {
    ($engine:ident, $subject:expr) => {
        crate::outbox::conformance::exercise! { @each $engine, $subject,
            states:
                what_was_appended_is_leased_whole_also_after_reopening
                a_leased_event_is_nobody_elses_until_the_store_is_reopened
                a_delivered_event_is_gone_for_good
                a_retry_waits_for_its_due_time_and_keeps_its_history_over_reopening
                a_released_event_is_leased_again_unchanged
                an_event_committed_late_with_an_earlier_id_is_not_passed_over
                a_scheduled_event_is_not_due_before_its_time
                a_key_is_a_repeat_within_its_window_and_a_new_event_after_it
                two_repeats_in_one_batch_make_one_event
                a_sweep_forgets_keys_whose_window_is_over_and_no_other
                a_lane_that_held_nothing_for_long_is_retired_and_comes_back_with_its_next_event
                where_functions_are_many_an_empty_one_gives_way_at_once_but_none_that_lambda_took_an_event_for
                a_buried_event_is_leased_for_shipping_only_and_gone_once_shipped
                events_past_their_age_are_leased_whether_due_or_not
                limits_refuse_what_is_beyond_them_and_keep_what_is_there
                counts_by_state_survive_reopening
                settling_twice_changes_nothing
                a_clock_that_stands_before_the_last_commit_is_followed_and_the_step_is_remembered
                a_pause_outlives_a_restart_and_an_empty_lane
                a_purge_counts_first_and_takes_only_what_fits_and_is_not_leased
                a_listing_has_every_event_once_however_it_is_cut_into_pages
                a_listing_shows_what_its_filter_fits_and_ends_a_page_though_nothing_does
                several_events_are_cancelled_and_brought_forward_as_one_is
                an_event_past_its_own_expiry_is_found_wherever_it_rests
                cancelling_and_bringing_forward_reach_only_what_waits;
            dead:
                whoever_waits_for_changes_of_what_is_buried_hears_of_each_and_of_nothing_else
                dead_letters_are_listed_page_by_page_each_once
                a_page_without_payloads_tells_only_their_size
                a_revived_letter_is_a_new_event_of_now_and_the_dead_one_is_gone_also_after_reopening
                what_is_being_shipped_or_came_back_too_often_stays_dead
                a_letter_from_a_queue_is_no_repeat_of_its_original_but_of_its_own_copies
                exported_letters_come_in_once_under_their_own_ids
                letters_that_do_not_fit_are_refused;
            keys_and_windows:
                a_window_holds_over_a_clock_that_went_back_and_ends_no_earlier
                a_window_ends_when_the_clock_went_forward_and_a_sweep_forgets_what_is_over_only
                a_key_is_known_also_if_its_event_was_delivered_just_before_a_crash
                a_conflict_within_one_batch_is_told_and_stores_nothing
                keys_of_the_greatest_length_are_told_apart_by_their_last_character
                what_is_refused_for_want_of_room_leaves_its_key_unknown
                a_key_is_remembered_as_long_as_its_event_is_stored_and_then_for_its_window
                a_buried_event_and_one_that_came_back_keep_their_key
                the_key_of_an_event_that_an_operator_removed_can_be_sent_again
                the_same_key_of_another_tenant_is_another_event
                what_is_remembered_of_a_key_can_be_asked;
            leases:
                find_tells_where_an_event_is_and_nothing_of_others
                lanes_tells_what_changed_since_and_no_more
                nothing_of_a_paused_lane_is_leased_for_an_attempt_whatever_whoever_asks_has_heard
                a_lease_brings_news_that_tell_of_it
                what_was_never_attempted_is_leased_first_if_asked_for
                a_lease_ends_at_its_bytes_but_the_first_event_is_always_taken
                payloads_at_the_sizes_that_an_engine_stores_in_another_way_come_back_whole_and_leave_nothing_behind
                an_event_with_the_longest_head_and_the_longest_history_is_kept_whole
                ten_thousand_lanes_are_kept_and_told_apart;
        }
    };
    (@each $engine:ident, $subject:expr, $($theme:ident: $($sentence:ident)*;)*) => {
        mod $engine {
            use super::*;

            $(mod $theme {
                use super::*;

                $(#[tokio::test(start_paused = true)]
                async fn $sentence() {
                    let Some(subject) = $subject else { return };
                    conformance::$theme::$sentence(conformance::Bench::new(subject).await).await;
                })*
            })*
        }
    };
}

/// Makes a test of every sentence about events that other stores hand over, for an engine that adopts them.
macro_rules! exercise_handoff {
    ($engine:ident, $subject:expr) => {
        crate::outbox::conformance::exercise! { @each $engine, $subject,
            handoff:
                an_adopted_event_is_as_it_was_also_after_reopening
                an_event_is_adopted_once_however_often_it_is_handed_over
                an_adoption_is_remembered_as_long_as_its_event_is_stored
                an_event_that_was_handed_on_may_come_back
                an_adopted_key_is_known_unless_another_event_has_it
                a_key_whose_event_has_left_drops_no_other_event
                the_window_of_an_adopted_key_counts_from_its_acceptance
                what_there_is_no_room_for_is_not_adopted
                an_event_of_a_paused_function_pauses_it_before_it_can_be_attempted
                events_at_rest_are_leased_by_their_state_from_a_position;
        }
    };
}

pub(crate) use {exercise, exercise_handoff};

/// One store of the engine under test, which can be opened again and again.
pub trait Subject {
    type Store: Operator;

    /// Opens it as the last closing left it.
    fn open(&mut self, limits: &Limits, clock: &Clock) -> impl Future<Output = Opened<Self::Store>>;

    /// Does all that its upkeep would do by itself within an hour.
    fn sweep(store: &Self::Store) -> impl Future<Output = ()>;

    /// Payload sizes around which the engine stores an event like this one in another way. Each is at least 1.
    fn awkward_bytes(_event: &Event) -> Vec<usize> {
        vec![1_000, 4_096, 65_536]
    }
}

pub fn limits() -> Limits {
    Limits {
        bytes_max: 64 << 20,
        events_max: 2_000,
        functions_max: 100,
        dedupe_window: Duration::from_secs(3_600),
        sdk_window: Duration::from_secs(60),
    }
}

/// A store that can be closed and opened again.
pub struct Bench<S: Subject> {
    pub subject: S,
    pub limits: Limits,
    pub clock: Clock,
    open: Option<Opened<S::Store>>,
}

impl<S: Subject> Bench<S> {
    pub async fn new(subject: S) -> Self {
        let mut bench = Self { subject, limits: limits(), clock: Clock::seeded(START, 1), open: None };
        bench.reopen().await;
        bench
    }

    pub fn store(&self) -> &S::Store {
        &self.open.as_ref().unwrap().outbox
    }

    /// Closes the store, whatever is leased, and opens it again.
    pub async fn reopen(&mut self) {
        if let Some(Opened { closing, .. }) = self.open.take() {
            closing.await.unwrap();
        }
        self.open = Some(self.subject.open(&self.limits, &self.clock).await);
    }

    pub async fn sweep(&self) {
        S::sweep(self.store()).await;
    }

    pub fn event(&self, function: &str, payload: &str) -> Event {
        Event { payload: payload.to_owned().into(), ..event(&self.clock, function) }
    }

    pub fn keyed(&self, function: &str, payload: &str, key: &str, source: KeySource) -> Event {
        let key = IdempotencyKey { value: key.into(), source };
        Event { key, ..self.event(function, payload) }
    }

    pub async fn append(&self, event: Event) -> Appended {
        self.store().append(vec![event]).await.unwrap().remove(0)
    }

    pub async fn view(&self, function: &str) -> LaneView {
        let news = self.store().lanes(0).await.unwrap();
        news.lanes.into_iter().find(|lane| lane.function.as_str() == function).unwrap()
    }

    pub async fn lease(&self, function: &str, which: Which, events_max: usize) -> Vec<Leased> {
        let lane = self.view(function).await.lane;
        let want = LeaseWant {
            lanes: vec![LaneWant { lane, which, events_max, bytes_max: u64::MAX, spent: None }],
            bytes_max: u64::MAX,
        };
        self.store().lease(want, None).await.unwrap().events
    }

    pub async fn settle(&self, leased: &Leased, settlement: Settlement) {
        assert_eq!(self.store().settle(vec![(leased.lease, settlement)]).await.unwrap(), []);
    }

    pub async fn find(&self, id: EventId) -> Option<Found> {
        self.store().find(id).await.unwrap()
    }
}

pub fn retry_at(due: UnixMillis) -> History {
    History { attempts: 1, calls: 1, due, ..History::default() }
}

pub fn burial(due: UnixMillis) -> History {
    History { burial: Some(Burial { reason: BuryReason::Refused, at: due, unshippable: None }), ..retry_at(due) }
}
