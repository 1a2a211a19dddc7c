//! Every bug that is planted into an engine is caught, by a sentence and by the model.

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::outbox::conformance::planted::{Bug, Planted, is_caught};

type Planting = Bench<Planted<Memory>>;

async fn plant(bug: Bug) -> Planting {
    Bench::new(Planted { subject: Memory::default(), bug }).await
}

/// Whether a few hundred sequences of calls show that the engine is no plain map.
fn model_catches(bug: Bug) -> bool {
    let config = Config { cases: 300, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let calls = proptest::collection::vec(model::any_call(), 0..80);
    let ran = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)).run(&calls, |calls| {
        model::on_a_virtual_clock(async { model::agree(plant(bug).await, calls).await });
        Ok(())
    });
    ran.is_err()
}

#[test]
fn an_engine_without_a_bug_is_not_caught() {
    assert!(!model_catches(Bug::None));
}

/// Makes two tests of each bug: one sentence must catch it, and so must the model.
macro_rules! caught {
    ($($bug:ident: $theme:ident $sentence:ident, $test:ident;)*) => {
        mod by_a_sentence {
            use super::*;

            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                let bench = plant(Bug::$bug).await;
                assert!(is_caught(conformance::$theme::$sentence(bench)).await);
            })*
        }

        mod by_the_model {
            use super::*;

            $(#[test]
            fn $test() {
                assert!(model_catches(Bug::$bug));
            })*
        }
    };
}

caught! {
    HideLostLeases: states settling_twice_changes_nothing, hiding_lost_leases_is_caught;
    StaleNews: leases a_lease_brings_news_that_tell_of_it, news_from_before_the_lease_are_caught;
    ForgetKeys: states two_repeats_in_one_batch_make_one_event, forgetting_keys_is_caught;
    OverlookTheOld: states events_past_their_age_are_leased_whether_due_or_not, overlooking_the_old_is_caught;
    IgnoreFresh: leases what_was_never_attempted_is_leased_first_if_asked_for, ignoring_what_is_fresh_is_caught;
    IgnoreDueTimes: states a_retry_waits_for_its_due_time_and_keeps_its_history_over_reopening,
        ignoring_due_times_is_caught;
    ForgetPauses: leases nothing_of_a_paused_lane_is_leased_for_an_attempt_whatever_whoever_asks_has_heard,
        forgetting_pauses_is_caught;
    PurgeForReal: states a_purge_counts_first_and_takes_only_what_fits_and_is_not_leased,
        a_dry_run_that_purges_is_caught;
    PurgeEveryState: states a_purge_counts_first_and_takes_only_what_fits_and_is_not_leased,
        purging_every_state_is_caught;
    ForgetKeptKeys: keys_and_windows the_key_of_an_event_that_an_operator_removed_can_be_sent_again,
        forgetting_kept_keys_is_caught;
    PretendToAttempt: states cancelling_and_bringing_forward_reach_only_what_waits, pretending_to_attempt_is_caught;
    LoseTheRevived: dead a_revived_letter_is_a_new_event_of_now_and_the_dead_one_is_gone_also_after_reopening,
        losing_the_revived_is_caught;
    ReviveForEver: dead what_is_being_shipped_or_came_back_too_often_stays_dead, reviving_for_ever_is_caught;
    KeepAdoptions: handoff an_event_that_was_handed_on_may_come_back, keeping_adoptions_is_caught;
    LoseHistories: handoff an_adopted_event_is_as_it_was_also_after_reopening, losing_histories_is_caught;
    ClaimKeys: handoff an_adopted_key_is_known_unless_another_event_has_it, claiming_the_key_of_another_event_is_caught;
    PretendToDiscard: dead what_is_being_shipped_or_came_back_too_often_stays_dead, pretending_to_discard_is_caught;
}
